#include "lstm/cuda/kernels_impl.h"

namespace penstock::lstm::cuda {

const Tier kCluster384 = make_tier<384, 8, 1, true>("clusters of 8", {500, 450}, {600, 550});

}  // namespace penstock::lstm::cuda
