#include "lstm/cuda/kernels_impl.h"

namespace penstock::lstm::cuda {

const Tier kGrid512 = make_tier<512, 16, 2, false>("groups of 16", {1400, 700}, {1600, 1200});

}  // namespace penstock::lstm::cuda
