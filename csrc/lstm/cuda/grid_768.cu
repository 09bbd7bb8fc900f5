#include "lstm/cuda/kernels_impl.h"

namespace penstock::lstm::cuda {

const Tier kGrid768 = make_tier<768, 48, 3, false>("groups of 48", {1500, 900}, {1700, 2700});

}  // namespace penstock::lstm::cuda
