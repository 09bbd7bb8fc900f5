#include "bindings.h"

#include "without_cuda.h"

PYBIND11_MODULE(_native, module) {
  module.doc() = "penstock's compiled core";
  penstock::bind_attention(module);
  penstock::bind_bag(module);
  penstock::bind_data(module);
  penstock::bind_isa(module);
  penstock::bind_linear(module);
  penstock::bind_lstm_cpu(module);
#if defined(PENSTOCK_CUDA)
  penstock::bind_lstm_cuda(module);
#endif
  penstock::bind_packed_linear(module);
  penstock::bind_philox(module);
  penstock::bind_rowwise(module);
  penstock::bind_sampled(module);
  module.attr("without_cuda") = kWithoutCuda;
}
