// Included last by the file of each instruction set, which has defined PENSTOCK_ISA.
#pragma once

#include "kernels.h"
#include "layer_backward.h"
#include "peak.h"

namespace penstock::lstm::PENSTOCK_ISA {

const Kernels kernels = {
    [](const Layer& layer, const Forward& out) {
      layer.dtype == DType::float32 ? forward<float>(layer, out) : forward<bf16>(layer, out);
    },
    [](const Layer& layer, const Backward& io) {
      layer.dtype == DType::float32 ? backward<float>(layer, io) : backward<bf16>(layer, io);
    },
    [](const Layer& layer) {
      return layer.dtype == DType::float32 ? PackedWeights<float>::bytes(layer) : PackedWeights<bf16>::bytes(layer);
    },
    [](const Layer& layer, void* memory) {
      layer.dtype == DType::float32 ? pack<float>(layer, memory) : pack<bf16>(layer, memory);
    },
    [](DType dtype, int64_t rounds) {
      alignas(64) float sink[kLanes] = {};
      return dtype == DType::float32 ? multiply_in_registers<float>(rounds, sink)
                                     : multiply_in_registers<bf16>(rounds, sink);
    },
};

}  // namespace penstock::lstm::PENSTOCK_ISA
