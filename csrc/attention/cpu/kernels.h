// One instruction set's attention: included once by each of portable.cpp, avx2.cpp, avx512.cpp and avx512_bf16.cpp.
#pragma once

#include "attention/cpu/backward.h"
#include "attention/cpu/forward.h"

namespace penstock {
namespace PENSTOCK_ISA {

#if defined(__AVX512BF16__)
using Bf16Unit = Pair;
#else
using Bf16Unit = float;
#endif

static void forward(const Problem& p, const Item& item, Scratch& scratch) {
  if (p.dtype == DType::float32)
    forward_item<float, float>(p, item, scratch);
  else
    forward_item<bf16, Bf16Unit>(p, item, scratch);
}

static void backward(const Problem& p, const Item& item, Scratch& scratch) {
  if (p.dtype == DType::float32)
    backward_item<float, float>(p, item, scratch);
  else
    backward_item<bf16, Bf16Unit>(p, item, scratch);
}

}  // namespace PENSTOCK_ISA

#define PENSTOCK_JOIN(a, b) a##b
#define PENSTOCK_KERNELS(isa) PENSTOCK_JOIN(isa, _kernels)
const attention::Kernels attention::PENSTOCK_KERNELS(PENSTOCK_ISA){PENSTOCK_ISA::forward, PENSTOCK_ISA::backward};

}  // namespace penstock
