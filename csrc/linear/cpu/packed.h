// Linear layers for inference, on weights that stay packed between calls, as they are or in whole numbers of 8 bits
// (quantised.h): one instruction set's kernels, included once by each of portable.cpp, avx2.cpp and so on.
//
// Rows go through in blocks, whose sums stay in the second-level cache until they are what is asked for: the product is
// never rounded or written before its bias, activation or norm.
#pragma once

#include "linear/cpu/packed_problem.h"
#include "row_product.h"
#include "rowwise/cpu/gelu.h"
#include "rowwise/cpu/norm.h"

namespace penstock::linear::PENSTOCK_ISA {

using namespace penstock::PENSTOCK_ISA;

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

// sums (rows, `row` apart) = a b, as products leave them: whole numbers if quantised. Rows are there up to a multiple
// of kRowStep.
template <class R>
void multiply_panels(Rows<typename Operand<R>::Lane> a, int64_t rows, const PackedColumns<R>& b, int64_t lanes,
                     int64_t columns, float* sums, int64_t row) {
  [[maybe_unused]] const typename Operand<R>::Unit unit{};
  const Tiling<R> tiles(rows);
  for (int64_t k = 0; k < lanes; k += kPanelDepth) {
    const int64_t depth = lanes - k < kPanelDepth ? lanes - k : kPanelDepth, panels = panels_of(columns);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t vecs = vecs_of_panel(columns, panel), width = vecs * kLanes;
      const auto* part = b.w + panel * kPanel * lanes + k * width;
      for (int64_t i = 0; i < tiles.count; ++i) {
        const Range tile = tiles[i];
        Prefetches prefetches;  // the next panel, which comes from beyond the second-level cache
        if (panel + 1 < panels)
          prefetches.add_panel(part + (lanes - k) * width + k * kPanel, depth * width, tiles.count, i);
        multiply_rows<R>(tile.size(), vecs, {a.data + tile.begin * a.stride + k, a.stride}, part, depth,
                         sums + tile.begin * row + panel * kPanel, row, k > 0, prefetches);
      }
    }
  }
}

// What becomes of rows of a product, read(row, column) being a vector of one with its bias.
template <class T, class Read>
void finish(const PackedCall& p, Range block, Scratch& scratch, const Read& read) {
  const rowwise::Item all{0, 0, block.size()};
  const int64_t width = p.then == Then::geglu ? p.out_features / 2 : p.out_features;
  T* const out = static_cast<T*>(p.out) + block.begin * width;
  const auto map = [&](auto value) __attribute__((always_inline)) {
    for (int64_t row = 0; row < block.size(); ++row)
      for_columns(width,
                  [&](auto c) __attribute__((always_inline)) { c.store(out + row * width, value(row, c.begin)); });
  };
  const auto norm = [&]<class Residual>(const Residual* residual, Residual* z) {
    rowwise::NormProblem n{};
    n.width = width, n.eps = p.eps, n.weight = p.norm_weight, n.bias = p.norm_bias, n.out = out;
    n.residual = residual + block.begin * width, n.z = z == nullptr ? nullptr : z + block.begin * width;
    norm_rows<T, Residual>(n, all, scratch,
                           [&](int64_t row, auto c) __attribute__((always_inline)) { return read(row, c.begin); });
  };
  if (p.then == Then::nothing)
    map(read);
  else if (p.then == Then::gelu)
    map([&](int64_t row, int64_t column) __attribute__((always_inline)) { return gelu(read(row, column)).value; });
  else if (p.then == Then::geglu)
    map([&](int64_t row, int64_t column)
            __attribute__((always_inline)) { return gelu(read(row, column)).value * read(row, width + column); });
  else if (p.residual_dtype == DType::float32)
    norm(static_cast<const float*>(p.residual), static_cast<float*>(p.z));
  else
    norm(static_cast<const bf16*>(p.residual), static_cast<bf16*>(p.z));
}

template <class T, class R>
void run_block(const PackedCall& p, Range block, Scratch& scratch) {
  using Lane = typename Operand<R>::Lane;
  const PackedLinear<R> packed(p.in_features, p.out_features, const_cast<void*>(p.packed));
  const int64_t rows = block.size(), lanes = Operand<R>::lanes(p.in_features);
  const int64_t there = rows + Operand<R>::kRowStep - 1;  // of which the matrix unit may read and write
  // an odd number of lines from row to row spreads the rows over the cache's sets
  const int64_t stride = (lanes + kLinePad) / kLinePad * kLinePad | kLinePad;
  const int64_t sums_row = packed.padded(p.out_features) + kLinePad;
  Lane* const a = scratch.take<Lane>(there * stride);
  float *const units = scratch.take<float>(rows), *const sums = scratch.take<float>(there * sums_row);
  take_rows<T, R>(static_cast<const T*>(p.x) + block.begin * p.in_features, rows, p.in_features, a, stride, units);
  multiply_panels<R>({a, stride}, rows, packed.w, lanes, p.out_features, sums, sums_row);
  finish<T>(p, block, scratch, [&](int64_t row, int64_t column) __attribute__((always_inline)) {
    const float unit = Operand<R>::kQuantised ? units[row] : 1.0f;
    return packed.w.result(column, load(sums + row * sums_row + column), unit, load(packed.bias + column));
  });
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
