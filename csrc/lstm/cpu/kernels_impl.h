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
    [](DType dtype, int64_t rounds) {
      alignas(64) float sink[kLanes] = {};
      return dtype == DType::float32 ? multiply_in_registers<float>(rounds, sink)
                                     : multiply_in_registers<bf16>(rounds, sink);
    },
};

}  // namespace penstock::lstm::PENSTOCK_ISA
