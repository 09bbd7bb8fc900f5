// Between the tokens of a layer that reads embeddings and the distinct ids among them.
#pragma once

#include "inputs.h"
#include "panels.h"
#include "team.h"

namespace penstock::lstm::PENSTOCK_ISA {

using namespace penstock::PENSTOCK_ISA;

template <class From, class To>
PENSTOCK_INLINE void convert_row(const From* from, int64_t n, To* to) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(to, from, n * sizeof(To));
  } else {
    for (int64_t i = 0; i < n; i += kLanes) {
      const int64_t width = n - i < kLanes ? n - i : kLanes;
      store(to + i, load(from + i, width), width);
    }
  }
}

// The embeddings of the distinct ids: out is (rows, I).
template <class T>
void look_up(const Layer& layer, const Inputs& inputs, T* out) {
  const int64_t I = layer.input_size;
  auto copy = [&](int member, int members) {
    const Range rows = share(inputs.rows, members, member);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t from = inputs.ids[row] * I;
      if (layer.table_dtype == layer.dtype) {
        convert_row(static_cast<const T*>(layer.table) + from, I, out + row * I);
      } else {
        convert_row(static_cast<const float*>(layer.table) + from, I, out + row * I);
      }
    }
  };
  parallel(layer.threads, copy);
}

// The table's gradient, (vocabulary, I), from that of the distinct ids, (rows, I): zero for every other id.
template <class T, class Table>
void spread_gradient(const Layer& layer, const Inputs& inputs, const T* gradient, Table* out) {
  const int64_t I = layer.input_size;
  auto write = [&](int member, int members) {
    const Range ids = share(layer.vocabulary, members, member);
    for (int64_t id = ids.begin; id < ids.end; ++id) {
      const int64_t row = inputs.row_of_id[id];
      if (row < 0) {
        std::memset(out + id * I, 0, I * sizeof(Table));
      } else {
        convert_row(gradient + row * I, I, out + id * I);
      }
    }
  };
  parallel(layer.threads, write);
}

// The gate gradients of each distinct id, summed over its tokens in their order: both are `stride` elements wide, of
// which the first `columns` are used. Threads share out the columns, so that a frequent word holds up none of them.
template <class Element>
void sum_by_row(const TokensOfRows& tokens, int threads, int64_t columns, const Element* dgates, int64_t stride,
                Element* out) {
  constexpr int64_t kWide = 8 * kLanes;
  auto add_up = [&](int member, int members) {
    const Range blocks = share((columns + kLanes - 1) / kLanes, members, member);
    const int64_t begin = blocks.begin * kLanes, end = blocks.end * kLanes < columns ? blocks.end * kLanes : columns;
    for (size_t row = 0; row + 1 < tokens.start.size(); ++row) {
      const int32_t* first = tokens.tokens.data() + tokens.start[row];
      const int32_t* last = tokens.tokens.data() + tokens.start[row + 1];
      int64_t column = begin;
      for (; column + kWide <= end; column += kWide) {
        Floats sum[8] = {};
        for (const int32_t* token = first; token < last; ++token) {
          for (int v = 0; v < 8; ++v) sum[v] += load(dgates + *token * stride + column + v * kLanes);
        }
        for (int v = 0; v < 8; ++v) store(out + row * stride + column + v * kLanes, sum[v]);
      }
      for (; column < end; column += kLanes) {
        const int64_t n = end - column < kLanes ? end - column : kLanes;
        Floats sum = {};
        for (const int32_t* token = first; token < last; ++token) sum += load(dgates + *token * stride + column, n);
        store(out + row * stride + column, sum, n);
      }
    }
  };
  parallel(threads, add_up);
}

}  // namespace penstock::lstm::PENSTOCK_ISA
