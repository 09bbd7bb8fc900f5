#include "lstm/cuda/kernels_impl.h"

namespace penstock::lstm::cuda {

const Tier kCluster128 = make_tier<128, 4, 1, true>("clusters of 4", {400, 160}, {480, 200});

}  // namespace penstock::lstm::cuda
