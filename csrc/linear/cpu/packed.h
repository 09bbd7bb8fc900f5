// Linear layers for inference, on weights that stay packed between calls, as they are or in whole numbers of 8 bits
// (quantised.h): one instruction set's kernels, included once by each of portable.cpp, avx2.cpp and so on.
//
// Rows go through in blocks, whose sums stay in the second-level cache until they are what is asked for: the product is
// never rounded or written before its bias, activation or norm.
#pragma once

#include "linear/cpu/packed_problem.h"
#include "lstm/cpu/row_product.h"
#include "rowwise/cpu/gelu.h"
#include "rowwise/cpu/norm.h"

namespace penstock::linear::PENSTOCK_ISA {

using namespace lstm::PENSTOCK_ISA;

// R is float, bf16 or, quantised, int8_t.
template <class R>
struct PackedLinear {
  PackedColumns<R> w;
  float* bias;  // (columns, rounded up to a panel)

  static int64_t padded(int64_t columns) { return panels_of(columns) * kPanel; }
  static int64_t words(int64_t in_features, int64_t out_features) {
    return PackedColumns<R>::words(padded(out_features), Operand<R>::lanes(in_features));
  }
  static size_t bytes(int64_t in_features, int64_t out_features) {
    return size_t(words(in_features, out_features) + padded(out_features)) * sizeof(uint32_t);
  }

  // `memory` holds as many bytes.
  PackedLinear(int64_t in_features, int64_t out_features, void* memory)
      : w(padded(out_features), Operand<R>::lanes(in_features), static_cast<uint32_t*>(memory)),
        bias(static_cast<float*>(memory) + words(in_features, out_features)) {}

  template <class T>
  void pack(const Weights& weights) const {
    for (int64_t first = 0; first < weights.out_features; first += kPanel) {
      const int64_t width = vecs_of_panel(weights.out_features, first / kPanel) * kLanes;
      w.template pack<T>(first, width, weights.in_features, 1.0f, [&](int64_t j) -> const T* {
        int64_t row = first + j;
        for (int64_t i = 0; i < weights.count; row -= weights.parts[i++].rows)
          if (row < weights.parts[i].rows)
            return static_cast<const T*>(weights.parts[i].weight) + row * weights.in_features;
        return nullptr;
      });
    }
    float* to = bias;
    for (int64_t i = 0; i < weights.count; to += weights.parts[i++].rows)
      for (int64_t row = 0; row < weights.parts[i].rows; ++row)
        to[row] = weights.parts[i].bias == nullptr ? 0.0f : weights.parts[i].bias[row];
    while (to < bias + padded(weights.out_features)) *to++ = 0.0f;
  }
};

// Rows of x as left operands, `stride` lanes apart, and what 1 stands for in each of them, if quantised.
template <class T, class R>
void take_rows(const T* x, int64_t rows, int64_t size, typename Operand<R>::Lane* to, int64_t stride, float* units) {
  for (int64_t row = 0; row < rows; ++row, x += size, to += stride) {
    if constexpr (Operand<R>::kQuantised) {
      // the last lane and, on the matrix unit, the last register are filled up
      std::memset(to, 0, size_t(Operand<R>::lanes(size)) * sizeof *to);
      units[row] = quantise_input(x, size, reinterpret_cast<QuantisedState*>(to));
    } else {
      for (int64_t k = 0; k < Operand<R>::lanes(size); k += kLanes) store_as(to + k, lanes_along<R>(x, k, size));
    }
  }
}

template <class T>
void finish(const PackedCall& p, const float* sums, int64_t first, int64_t rows, Scratch& scratch) {
  const rowwise::Item all{0, 0, rows};
  const int64_t width = p.then == Then::geglu ? p.out_features / 2 : p.out_features;
  T* out = static_cast<T*>(p.out) + first * width;
  if (p.then == Then::gelu) {
    rowwise::GeluProblem gelu{};
    gelu.width = width, gelu.x = sums, gelu.out = out;
    gelu_forward_rows<T, float>(gelu, all);
  } else if (p.then == Then::geglu) {
    rowwise::GegluProblem geglu{};
    geglu.width = width, geglu.x = sums, geglu.out = out;
    geglu_forward_rows<T, float>(geglu, all);
  } else {
    const auto norm_of = [&]<class Residual>(const Residual* residual, Residual* z) {
      rowwise::NormProblem norm{};
      norm.width = width, norm.eps = p.eps, norm.x = sums, norm.out = out;
      norm.weight = p.norm_weight, norm.bias = p.norm_bias;
      norm.residual = residual + first * width, norm.z = z == nullptr ? nullptr : z + first * width;
      norm_forward_rows<T, Residual, float>(norm, all, scratch);
    };
    if (p.residual_dtype == DType::float32)
      norm_of(static_cast<const float*>(p.residual), static_cast<float*>(p.z));
    else
      norm_of(static_cast<const bf16*>(p.residual), static_cast<bf16*>(p.z));
  }
}

template <class T, class R>
void run_block(const PackedCall& p, Range block, Scratch& scratch) {
  using Lane = typename Operand<R>::Lane;
  const PackedLinear<R> packed(p.in_features, p.out_features, const_cast<void*>(p.packed));
  const int64_t rows = block.size(), lanes = Operand<R>::lanes(p.in_features);
  const int64_t stride = (lanes + kLinePad) / kLinePad * kLinePad + kLinePad;
  Lane* const a = scratch.take<Lane>((rows + Operand<R>::kRowStep - 1) * stride);
  float* const units = scratch.take<float>(rows);
  float* const partial = scratch.take<float>(RowProduct<T, R>::partial_floats(lanes, p.out_features));
  take_rows<T, R>(static_cast<const T*>(p.x) + block.begin * p.in_features, rows, p.in_features, a, stride, units);
  const auto multiply_into = [&]<class C>(C* c) {
    const RowProduct<C, R> product{lanes, p.out_features, a, stride, units, packed.w, packed.bias, c};
    product.run({0, rows}, partial);
  };
  if (p.then == Then::nothing) return multiply_into(static_cast<T*>(p.out) + block.begin * p.out_features);
  float* const sums = scratch.take<float>(rows * p.out_features);
  multiply_into(sums);
  finish<T>(p, sums, block.begin, rows, scratch);
}

// Calls work<T, R>(), T being what tensors are of.
template <class Work>
auto by_kind(Kind kind, DType dtype, const Work& work) {
  if (kind == Kind::float32) return work.template operator()<float, float>();
  if (kind == Kind::bfloat16) return work.template operator()<bf16, bf16>();
  if (dtype == DType::float32) return work.template operator()<float, int8_t>();
  return work.template operator()<bf16, int8_t>();
}

static size_t packed_bytes(const Weights& w) {
  return by_kind(w.kind, w.dtype,
                 [&]<class T, class R>() { return PackedLinear<R>::bytes(w.in_features, w.out_features); });
}
static void pack(const Weights& w, void* memory) {
  by_kind(w.kind, w.dtype,
          [&]<class T, class R>() { PackedLinear<R>(w.in_features, w.out_features, memory).template pack<T>(w); });
}
static void run(const PackedCall& p, Range block, Scratch& scratch) {
  by_kind(p.kind, p.dtype, [&]<class T, class R>() { run_block<T, R>(p, block, scratch); });
}

}  // namespace penstock::linear::PENSTOCK_ISA

#define PENSTOCK_JOIN_PACKED(a, b) a##b
#define PENSTOCK_PACKED(isa) PENSTOCK_JOIN_PACKED(isa, _packed)
const penstock::linear::PackedKernels penstock::linear::PENSTOCK_PACKED(PENSTOCK_ISA){
    penstock::linear::PENSTOCK_ISA::packed_bytes, penstock::linear::PENSTOCK_ISA::pack,
    penstock::linear::PENSTOCK_ISA::run};
