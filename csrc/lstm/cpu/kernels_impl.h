// Included last by the file of each instruction set, which has defined PENSTOCK_ISA.
#pragma once

#include "kernels.h"
#include "layer_backward.h"
#include "peak.h"

namespace penstock::lstm::PENSTOCK_ISA {

// Calls work<T, R>(), R being what the recurrent product multiplies.
template <class Work>
auto by_types(const Layer& layer, const Work& work) {
  if (layer.dtype == DType::float32)
    return layer.quantised ? work.template operator()<float, int8_t>() : work.template operator()<float, float>();
  return layer.quantised ? work.template operator()<bf16, int8_t>() : work.template operator()<bf16, bf16>();
}

const Kernels kernels = {
    [](const Layer& layer, const Forward& out) {
      by_types(layer, [&]<class T, class R>() { forward<T, R>(layer, out); });
    },
    [](const Layer& layer, const Backward& io) {
      layer.dtype == DType::float32 ? backward<float>(layer, io) : backward<bf16>(layer, io);
    },
    [](const Layer& layer) {
      return by_types(layer, [&]<class T, class R>() { return PackedWeights<T, R>::bytes(layer); });
    },
    [](const Layer& layer, void* memory) { by_types(layer, [&]<class T, class R>() { pack<T, R>(layer, memory); }); },
    [](DType dtype, int64_t rounds) {
      alignas(64) float sink[kLanes] = {};
      return dtype == DType::float32 ? multiply_in_registers<float>(rounds, sink)
                                     : multiply_in_registers<bf16>(rounds, sink);
    },
};

}  // namespace penstock::lstm::PENSTOCK_ISA
