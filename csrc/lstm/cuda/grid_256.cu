#include "lstm/cuda/kernels_impl.h"

namespace penstock::lstm::cuda {

const Tier kGrid256 = make_tier<256, 4, 1, false>("groups of 4", {1300, 480}, {1500, 600});

}  // namespace penstock::lstm::cuda
