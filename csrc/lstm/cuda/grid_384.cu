#include "lstm/cuda/kernels_impl.h"

namespace penstock::lstm::cuda {

const Tier kGrid384 = make_tier<384, 12, 2, false>("groups of 12", {1400, 700}, {1600, 1000});

}  // namespace penstock::lstm::cuda
