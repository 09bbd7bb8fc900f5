#include "lstm/cuda/kernels_impl.h"

namespace penstock::lstm::cuda {

const Tier kCluster256 = make_tier<256, 4, 1, true>("clusters of 4", {400, 280}, {500, 330});

}  // namespace penstock::lstm::cuda
