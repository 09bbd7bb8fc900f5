// One instruction set's kernels: included once by each of portable.cpp, avx2.cpp, avx512.cpp and avx512_bf16.cpp.
#pragma once

#include "rowwise/cpu/adamw.h"
#include "rowwise/cpu/dropout_rows.h"
#include "rowwise/cpu/gelu.h"
#include "rowwise/cpu/norm.h"
#include "rowwise/cpu/rotary.h"

namespace penstock {
namespace PENSTOCK_ISA {

static void norm_forward(const NormProblem& p, const Item& item, Scratch& scratch) {
  (p.dtype == DType::float32            ? norm_forward_rows<float, float>
   : p.residual_dtype == DType::float32 ? norm_forward_rows<bf16, float>
                                        : norm_forward_rows<bf16, bf16>)(p, item, scratch);
}
static void norm_backward(const NormProblem& p, const Item& item, Scratch& scratch) {
  (p.dtype == DType::float32            ? norm_backward_rows<float, float>
   : p.residual_dtype == DType::float32 ? norm_backward_rows<bf16, float>
                                        : norm_backward_rows<bf16, bf16>)(p, item, scratch);
}
static void gelu_forward(const GeluProblem& p, const Item& item) {
  (p.dtype == DType::float32 ? gelu_forward_rows<float> : gelu_forward_rows<bf16>)(p, item);
}
static void gelu_backward(const GeluProblem& p, const Item& item) {
  (p.dtype == DType::float32 ? gelu_backward_rows<float> : gelu_backward_rows<bf16>)(p, item);
}
static void geglu_forward(const GegluProblem& p, const Item& item) {
  (p.dtype == DType::float32 ? geglu_forward_rows<float> : geglu_forward_rows<bf16>)(p, item);
}
static void geglu_backward(const GegluProblem& p, const Item& item) {
  (p.dtype == DType::float32 ? geglu_backward_rows<float> : geglu_backward_rows<bf16>)(p, item);
}
static void rotary(const RotaryProblem& p, const Item& item) {
  (p.dtype == DType::float32 ? rotary_rows<float> : rotary_rows<bf16>)(p, item);
}
static void dropout(const DropoutProblem& p, const Item& item, Scratch& scratch) {
  (p.dtype == DType::float32 ? dropout_rows<float> : dropout_rows<bf16>)(p, item, scratch);
}

}  // namespace PENSTOCK_ISA

#define PENSTOCK_JOIN(a, b) a##b
#define PENSTOCK_KERNELS(isa) PENSTOCK_JOIN(isa, _kernels)
const rowwise::Kernels rowwise::PENSTOCK_KERNELS(PENSTOCK_ISA){
    PENSTOCK_ISA::norm_forward,  PENSTOCK_ISA::norm_backward,  PENSTOCK_ISA::gelu_forward, PENSTOCK_ISA::gelu_backward,
    PENSTOCK_ISA::geglu_forward, PENSTOCK_ISA::geglu_backward, PENSTOCK_ISA::rotary,       PENSTOCK_ISA::dropout,
    PENSTOCK_ISA::adamw_rows,    PENSTOCK_ISA::decay_rows};

}  // namespace penstock
