#include "lstm/cuda/kernels_impl.h"

namespace penstock::lstm::cuda {

const Tier kCluster512 = make_tier<512, 16, 2, true>("clusters of 16", {550, 300}, {650, 600});

}  // namespace penstock::lstm::cuda
