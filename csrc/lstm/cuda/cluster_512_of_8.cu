#include "lstm/cuda/kernels_impl.h"

namespace penstock::lstm::cuda {

const Tier kCluster512Of8 = make_tier<512, 8, 1, true>("clusters of 8", {500, 750}, {600, 900});

}  // namespace penstock::lstm::cuda
