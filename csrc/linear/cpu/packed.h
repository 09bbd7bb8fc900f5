// Linear layers for inference, on weights that stay packed between calls, as they are or in whole numbers of 8 bits
// (quantised.h): one instruction set's kernels, included once by each of portable.cpp, avx2.cpp and so on.
//
// Rows go through in blocks, whose sums stay in the second-level cache until they are what is asked for: the product is
// never rounded or written before its bias, activation or norm.
#pragma once

#include <algorithm>

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

// Whether what follows a layer's product needs whole rows of it. Else it is done tile by tile.
PENSTOCK_INLINE bool needs_rows(const PackedLayer& p) { return p.then == Then::geglu || p.then == Then::norm; }

// Floats from row to row of a layer's sums, which are there for whole rows or, in the first-level cache, for one tile.
PENSTOCK_INLINE int64_t sums_stride(const PackedLayer& p, int64_t lanes) {
  const bool whole = needs_rows(p) || lanes > kPanelDepth;
  return whole ? panels_of(p.out_features) * kPanel + kLinePad : kPanel;
}

// Lanes from row to row of an operand: an odd number of lines spreads the rows over the cache's sets.
PENSTOCK_INLINE int64_t operand_stride(int64_t lanes) {
  return (lanes + kLinePad - 1) / kLinePad * kLinePad | kLinePad;
}

// sums (rows, stride) = a b, as products leave them: whole numbers if quantised. Rows are there up to a multiple of
// kRowStep. Calls done(rows, first column, vectors, sums) for each tile that is finished; with a stride of kPanel the
// next one takes its place.
template <class R, class Done>
void multiply_panels(Rows<typename Operand<R>::Lane> a, int64_t rows, const PackedColumns<R>& b, int64_t lanes,
                     int64_t columns, float* sums, int64_t stride, const Done& done) {
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
        float* const to = stride == kPanel ? sums : sums + tile.begin * stride + panel * kPanel;
        multiply_rows<R>(tile.size(), vecs, {a.data + tile.begin * a.stride + k, a.stride}, part, depth, to, stride,
                         k > 0, prefetches);
        if (k + depth == lanes) done(tile, panel * kPanel, vecs, to);
      }
    }
  }
}

template <class T>
PENSTOCK_INLINE Floats gelu_as(Floats x) {
  if constexpr (std::is_same_v<T, bf16>) return gelu_coarse(x);
  return gelu(x).value;
}

// A block of rows on its way through the layers of a call.
template <class T>
struct RowBlock {
  Range rows;
  uint32_t* operand;  // x as products want it
  float *units, *sums;
  T** given;  // what each layer gave, of all pieces
  Scratch& scratch;
  int64_t offset = 0;  // rows of pieces before this one
};

// What becomes of whole rows of a layer's product, read(row, column) being a vector of it with its bias.
template <class T, class Read>
void finish(const PackedLayer& p, const RowBlock<T>& block, T* out, const Read& read) {
  const int64_t width = p.width(), first = block.rows.begin * width;
  const auto norm = [&]<class Residual>(const Residual* residual) {
    rowwise::NormProblem n{};
    n.width = width, n.eps = p.eps, n.weight = p.norm_weight, n.bias = p.norm_bias, n.out = out;
    n.residual = residual, n.z = p.z == nullptr ? nullptr : static_cast<Residual*>(p.z) + first;
    norm_rows<T, Residual>(n, {0, 0, block.rows.size()}, block.scratch,
                           [&](int64_t row, auto c) __attribute__((always_inline)) { return read(row, c.begin); });
  };
  if (p.then == Then::geglu)
    for (int64_t row = 0; row < block.rows.size(); ++row)
      for_columns(width, [&](auto c) __attribute__((always_inline)) {
        c.store(out + row * width, gelu_as<T>(read(row, c.begin)) * read(row, width + c.begin));
      });
  else if (p.residual == nullptr)
    norm(static_cast<const T*>(block.given[p.residual_of]) + block.offset * width);
  else if (p.residual_dtype == DType::float32)
    norm(static_cast<const float*>(p.residual) + first);
  else
    norm(static_cast<const bf16*>(p.residual) + first);
}

template <class T, class R>
void run_layer(const PackedLayer& p, const RowBlock<T>& block, const T* x, T* out) {
  const PackedLinear<R> packed(p.in_features, p.out_features, const_cast<void*>(p.packed));
  const int64_t rows = block.rows.size(), lanes = Operand<R>::lanes(p.in_features), stride = operand_stride(lanes);
  auto* const a = reinterpret_cast<typename Operand<R>::Lane*>(block.operand);
  take_rows<T, R>(x, rows, p.in_features, a, stride, block.units);
  const auto unit_of = [&](int64_t row) { return Operand<R>::kQuantised ? block.units[row] : 1.0f; };
  const int64_t sums_row = sums_stride(p, lanes);
  const auto multiply = [&](const auto& done) __attribute__((always_inline)) {
    multiply_panels<R>({a, stride}, rows, packed.w, lanes, p.out_features, block.sums, sums_row, done);
  };
  if (needs_rows(p)) {
    multiply([](Range, int64_t, int64_t, const float*) {});
    return finish<T>(p, block, out, [&](int64_t i, int64_t column) __attribute__((always_inline)) {
      const Floats product = load(block.sums + i * sums_row + column);
      return packed.w.result(column, product, unit_of(i), load(packed.bias + column));
    });
  }
  const auto each = [&](const auto& then) __attribute__((always_inline)) {
    multiply([&](Range tile, int64_t first, int64_t vecs, const float* sums) __attribute__((always_inline)) {
      for (int64_t v = 0; v < vecs; ++v) {
        const int64_t column = first + v * kLanes, left = p.out_features - column;
        const auto columns = packed.w.at(column);
        const Floats bias = load(packed.bias + column);
        T* to = out + tile.begin * p.out_features + column;
        for (int64_t i = 0; i < tile.size(); ++i, to += p.out_features) {
          const Floats product = load(sums + i * sums_row + v * kLanes);
          store(to, then(columns.result(product, unit_of(tile.begin + i), bias)), left < kLanes ? left : kLanes);
        }
      }
    });
  };
  if (p.then == Then::gelu)
    each([](Floats x) __attribute__((always_inline)) { return gelu_as<T>(x); });
  else
    each([](Floats x) __attribute__((always_inline)) { return x; });
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

// All layers, one after the other, on a block of rows. Each layer takes `p.block` of them at a time.
template <class T>
void run_block(const PackedCall& p, Range rows, Scratch& scratch) {
  constexpr int64_t kThere = kHasMatrixUnit ? kAmxRows - 1 : 0;  // more rows, which the unit may read and write
  int64_t operands = 0, sums = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    const PackedLayer& layer = p.layers[i];
    const int64_t lanes =
        by_kind(layer.kind, p.dtype, [&]<class, class R>() { return Operand<R>::lanes(layer.in_features); });
    operands = std::max(operands, operand_stride(lanes)), sums = std::max(sums, sums_stride(layer, lanes));
  }
  const int64_t pieces = (rows.size() + p.block - 1) / p.block;
  const int64_t most = (rows.size() + pieces - 1) / pieces;
  RowBlock<T> block{rows,
                    scratch.take<uint32_t>((most + kThere) * operands),
                    scratch.take<float>(most),
                    scratch.take<float>((most + kThere) * sums),
                    scratch.take<T*>(p.count),
                    scratch};
  const T* x = static_cast<const T*>(p.x) + rows.begin * p.layers[0].in_features;
  for (int64_t i = 0; i < p.count; ++i) {
    const PackedLayer& layer = p.layers[i];
    T* const out = layer.out == nullptr ? scratch.take<T>(rows.size() * layer.width())
                                        : static_cast<T*>(layer.out) + rows.begin * layer.width();
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const Range part = share(rows.size(), pieces, piece);
      block.rows = {rows.begin + part.begin, rows.begin + part.end}, block.offset = part.begin;
      by_kind(layer.kind, p.dtype, [&]<class Of, class R>() {
        if constexpr (std::is_same_v<Of, T>)
          run_layer<T, R>(layer, block, x + part.begin * layer.in_features, out + part.begin * layer.width());
      });
    }
    block.given[i] = out, x = out;
  }
}
static void run(const PackedCall& p, Range rows, Scratch& scratch) {
  p.dtype == DType::bfloat16 ? run_block<bf16>(p, rows, scratch) : run_block<float>(p, rows, scratch);
}

}  // namespace penstock::linear::PENSTOCK_ISA

#define PENSTOCK_JOIN_PACKED(a, b) a##b
#define PENSTOCK_PACKED(isa) PENSTOCK_JOIN_PACKED(isa, _packed)
const penstock::linear::PackedKernels penstock::linear::PENSTOCK_PACKED(PENSTOCK_ISA){
    penstock::linear::PENSTOCK_ISA::packed_bytes, penstock::linear::PENSTOCK_ISA::pack,
    penstock::linear::PENSTOCK_ISA::run};
