#include "lstm/cuda/kernels_impl.h"

namespace penstock::lstm::cuda {

const Tier kGrid128 = make_tier<128, 4, 1, false>("groups of 4", {1300, 250}, {1500, 350});

}  // namespace penstock::lstm::cuda
