#include "lstm/cuda/kernels_impl.h"

namespace penstock::lstm::cuda {

const Tier kGrid1024 = make_tier<1024, 64, 4, false>("groups of 64", {1500, 1100}, {1700, 3500});

}  // namespace penstock::lstm::cuda
