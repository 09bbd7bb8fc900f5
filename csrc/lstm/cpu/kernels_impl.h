// Included last by the file of each instruction set, which has defined PENSTOCK_ISA.
#pragma once

#include "kernels.h"
#include "layer_backward.h"

namespace penstock::lstm::PENSTOCK_ISA {

const Kernels kernels = {
    [](const Layer& layer, const Forward& out) {
      layer.dtype == DType::float32 ? forward<float>(layer, out) : forward<bfloat16>(layer, out);
    },
    [](const Layer& layer, const Backward& io) {
      layer.dtype == DType::float32 ? backward<float>(layer, io) : backward<bfloat16>(layer, io);
    },
};

}  // namespace penstock::lstm::PENSTOCK_ISA
