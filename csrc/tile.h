// The product that everything else is made of: a tile of up to kTileRows rows by kTileVecs vectors, kept in registers.
//
// The steps are those of matmul.h, whose units of 32 bits are called lanes here, where units are a hidden layer's: one
// float, or, where the machine multiplies bfloat16 (AVX-512 BF16), a pair of bfloat16 adjacent in k. Elsewhere bfloat16
// operands are widened to float when they are packed. Whole numbers of 8 bits are four bytes a lane where the machine
// multiplies these (VNNI), two of 16 bits elsewhere: the sums are the same integers. What differs from matmul.h lies
// around the steps: B comes packed in panels, so that it streams (panels.h), and lines that follow a product are
// fetched while it runs. Where there is a matrix unit (amx.h), a tile of bfloat16 is up to 32 rows in its registers
// instead.
#pragma once

#include <type_traits>
#include <utility>

#include "amx.h"
#include "matmul.h"

namespace penstock::PENSTOCK_ISA {

// With 32 registers 24 accumulators, 4 vectors of B and a broadcast; with 16, 12 accumulators and a broadcast, B from
// memory.
constexpr int kTileVecs = 4, kRegisterRows = kRegisters == 32 ? 6 : 3;

#if defined(__AVX512BF16__)
constexpr bool kHasBfloat16 = true;
#else
constexpr bool kHasBfloat16 = false;
#endif

#if defined(__AMX_BF16__)
constexpr bool kHasMatrixUnit = true;
#else
constexpr bool kHasMatrixUnit = false;
constexpr int kAmxRows = 1, kAmxPairs = 1;
struct MatrixUnit {};
#endif
struct NoMatrixUnit {};

#if defined(__AVX512VNNI__)
constexpr bool kHasByteProducts = true;
#else
constexpr bool kHasByteProducts = false;
#endif

// How tensors of storage type T enter a product. int8_t stands for what quantised.h makes of floats.
template <class T>
struct Operand {
  static constexpr bool kPairs = kHasBfloat16 && std::is_same_v<T, bf16>;
  static constexpr bool kQuantised = std::is_same_v<T, int8_t>, kBytes = kQuantised && kHasByteProducts;
  static constexpr bool kMatrixUnit = kHasMatrixUnit && (kPairs || kBytes);
  static constexpr int kPerLane = kBytes ? 4 : kPairs || kQuantised ? 2 : 1;
  // A tile has at most kTileRows rows. The matrix unit computes kRowStep at a time: it reads as many of A and writes as
  // many of the result, whether wanted or not, and takes k in steps of kLaneStep lanes, up to which A and B are padded
  // with zeros.
  static constexpr int kTileRows = kMatrixUnit ? 2 * kAmxRows : kRegisterRows;
  static constexpr int kRowStep = kMatrixUnit ? kAmxRows : 1;
  static constexpr int kLaneStep = kMatrixUnit ? kAmxPairs : 1;
  // What a lane is made of; bytes are unsigned in the left operand and signed, int8_t, in the right.
  using Element = std::conditional_t<kQuantised, std::conditional_t<kBytes, uint8_t, int16_t>,
                                     std::conditional_t<kPairs, bf16, float>>;
  using Lane = std::conditional_t<kQuantised, std::conditional_t<kBytes, BytesUnit, ShortsUnit>,
                                  std::conditional_t<kPairs, Pair, float>>;

  // A thread holds one of these while it multiplies.
  using Unit = std::conditional_t<kMatrixUnit, MatrixUnit, NoMatrixUnit>;

  static constexpr int64_t lanes(int64_t elements) {
    constexpr int64_t step = kPerLane * kLaneStep;
    return (elements + step - 1) / step * kLaneStep;
  }
};

// Item i + 1 of a range, or its first again.
inline int64_t next_around(Range range, int64_t i) { return i + 1 < range.end ? i + 1 : range.begin; }

// From a panel of `width` units to those that the same rows come to next: the next panel's, or the first panel's of the
// next step, whose token is `step` units on.
inline int64_t units_ahead(Range panels, int64_t panel, int64_t width, int64_t step) {
  return panel + 1 < panels.end ? width : step - (panel - panels.begin) * width;
}

// Rows `stride` lanes apart.
template <class Lane>
struct Rows {
  const Lane* data;
  int64_t stride;
};

// Where row r of A has its lane k: in rows, or packed as [k][row].
template <class Lane, int rows>
struct RowsOfA {
  const Lane* row[rows];
  explicit RowsOfA(Rows<Lane> a) {
    for (int r = 0; r < rows; ++r) row[r] = a.data + r * a.stride;
  }
  PENSTOCK_INLINE const Lane* at(int r, int64_t k) const { return row[r] + k; }
};

template <class Lane, int rows>
struct PackedA {
  const Lane* tile;
  PENSTOCK_INLINE const Lane* at(int r, int64_t k) const { return tile + k * rows + r; }
};

// Asks for the lines of n elements from `from` on, which may lie anywhere.
template <class T>
PENSTOCK_INLINE void prefetch(const T* from, int64_t n) {
  for (int64_t i = 0; i < n * int64_t{sizeof(T)}; i += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(from) + i, 1);
}

// Cache lines that whatever follows a product will read or write. They are fetched shortly before its end: earlier, and
// B streaming through the first-level cache would push them out again before they are needed.
struct Prefetches {
  static constexpr int64_t kMost = 512;
  static constexpr int64_t kLead = 64;  // rounds between the last fetch and the end
  const void* line[kMost];
  int64_t count = 0;
  const char* stream = nullptr;  // one of its lines a round, for the second-level cache
  int64_t stream_lines = 0;

  // Part i of `parts` of a panel of `lanes` lanes.
  template <class Lane>
  PENSTOCK_INLINE void add_panel(const Lane* from, int64_t lanes, int64_t parts, int64_t i) {
    const Range part = share(lanes * int64_t{sizeof(Lane)} / 64, parts, i);
    stream = reinterpret_cast<const char*>(from) + part.begin * 64;
    stream_lines = part.size();
  }

  // The lines of n elements from `from` on.
  template <class T>
  PENSTOCK_INLINE void add(const T* from, int64_t n) {
    constexpr int64_t kPerLine = 64 / sizeof(T);
    for (int64_t i = 0; i < n && count < kMost; i += kPerLine) line[count++] = from + i;
  }
};

// out[r][v] (+)= sum over k of A[r][k] B[k][v]; b is packed as [k][vecs * kLanes], for the matrix unit in blocks, as
// [k / kAmxPairs][vecs][kAmxPairs][kLanes].
template <class T, int rows, int vecs, class A>
PENSTOCK_INLINE void multiply(const A& a, const typename Operand<T>::Lane* b, int64_t lanes, float* out, int64_t stride,
                              bool add, const Prefetches& prefetches) {
  using Vector = Sums<typename Operand<T>::Lane>;
  Vector sum[rows][vecs] = {};
  const int64_t last_fetch = lanes > Prefetches::kLead ? lanes - Prefetches::kLead : lanes;
  const int64_t first_fetch = last_fetch > prefetches.count ? last_fetch - prefetches.count : 0;
  const auto fetch = [&](int64_t k) __attribute__((always_inline)) {
    if (uint64_t(k - first_fetch) < uint64_t(prefetches.count)) __builtin_prefetch(prefetches.line[k - first_fetch], 1);
    if (k < prefetches.stream_lines) __builtin_prefetch(prefetches.stream + k * 64, 0, 2);
  };
  add_products(sum, a, Right<typename Operand<T>::Lane>{b, vecs * kLanes}, lanes, fetch);
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < vecs; ++v) {
      float* to = out + r * stride + v * kLanes;
      store_as(to, add ? load_as<Vector>(to) + sum[r][v] : sum[r][v]);
    }
  }
}

// One function per size of tile, called by number of rows and vectors.
template <class T, bool packed>
struct Tiles {
  using Lane = typename Operand<T>::Lane;
  using A = std::conditional_t<packed, const Lane*, Rows<Lane>>;
  using Function = void (*)(A a, const Lane* b, int64_t lanes, float* out, int64_t stride, bool add,
                            const Prefetches& prefetches);

  template <int rows, int vecs>
  static void call(A a, const Lane* b, int64_t lanes, float* out, int64_t stride, bool add,
                   const Prefetches& prefetches) {
    using Where = std::conditional_t<packed, PackedA<Lane, rows>, RowsOfA<Lane, rows>>;
    multiply<T, rows, vecs>(Where{a}, b, lanes, out, stride, add, prefetches);
  }

  static Function of(int64_t rows, int64_t vecs) {
    static constexpr auto table = []<int... sizes>(std::integer_sequence<int, sizes...>) {
      struct {
        Function functions[sizeof...(sizes)];
      } result{{call<sizes / kTileVecs + 1, sizes % kTileVecs + 1>...}};
      return result;
    }(std::make_integer_sequence<int, kRegisterRows * kTileVecs>{});
    return table.functions[(rows - 1) * kTileVecs + vecs - 1];
  }
};

template <class Lane>
class StepwiseProduct;

#if defined(__AMX_BF16__)
// What a register of B holds: kAmxPairs lanes of k by kLanes columns, one after the other in memory.
constexpr int64_t kAmxBlock = kAmxPairs * kLanes;

// The same in the matrix unit.
template <class Lane>
PENSTOCK_INLINE void multiply_in_matrix_unit(int64_t rows, int64_t vecs, Rows<Lane> a, const Lane* b, int64_t lanes,
                                             float* out, int64_t stride, bool add, const Prefetches& prefetches) {
  constexpr bool kBytes = std::is_same_v<Lane, BytesUnit>;
  const auto part = [&]<int kRows, int kColumns>(int64_t vec, Range lines) __attribute__((always_inline)) {
    const int64_t per_step = (lines.size() * kAmxPairs + lanes - 1) / lanes;
    const auto fetch = [&]() __attribute__((always_inline)) {
      for (int64_t i = 0; i < per_step && lines.begin < lines.end; ++i)
        __builtin_prefetch(prefetches.line[lines.begin++], 1);
    };
    multiply_registers<kRows, kColumns, kBytes>(a.data, a.stride, b + vec * kAmxBlock,
                                                {kLanes, kAmxBlock, vecs * kAmxBlock}, out + vec * kLanes, stride, add,
                                                lanes, fetch);
  };
  const Range all{0, prefetches.count}, half{0, prefetches.count / 2}, rest{prefetches.count / 2, prefetches.count};
  if (rows > kAmxRows) {
    if (vecs == 1) return part.template operator()<2, 1>(0, all);
    part.template operator()<2, 2>(0, vecs == 2 ? all : half);
    if (vecs == 3) part.template operator()<2, 1>(2, rest);
    if (vecs == 4) part.template operator()<2, 2>(2, rest);
  } else {
    if (vecs == 4) return part.template operator()<1, 4>(0, all);
    if (vecs == 1) return part.template operator()<1, 1>(0, all);
    part.template operator()<1, 2>(0, vecs == 2 ? all : half);
    if (vecs == 3) part.template operator()<1, 1>(2, rest);
  }
}

// A product of whole rows in the matrix unit that is made a step of k at a time, so that other work runs between: the
// unit multiplies, and waits for B, while the vector units compute. Its sums stay in the unit's registers meanwhile, so
// a thread has one such product at a time.
template <class Lane>
class StepwiseProduct {
 public:
  // For `rows` of at most 2 * kAmxRows; the other operands are multiply_rows's.
  void start(int64_t rows, int64_t vecs, Rows<Lane> a, const Lane* b, int64_t lanes, float* out, int64_t stride,
             bool add, const Prefetches&) {
    add_ = add;
    two_ = rows > kAmxRows;
    a_ = a, b_ = b, out_ = out, vecs_ = vecs, lanes_ = lanes, stride_ = stride;
    vec_ = k_ = 0;
    left_ = (two_ ? (vecs + 1) / 2 : 1) * (lanes / kAmxPairs);
  }

  int64_t steps_left() const { return left_; }

  PENSTOCK_INLINE void step() {
    if (left_ == 0) return;
    --left_;
    if (two_) {
      vecs_ - vec_ > 1 ? step_of<2, 2>() : step_of<2, 1>();
    } else {
      switch (vecs_) {
        case 1:
          return step_of<1, 1>();
        case 2:
          return step_of<1, 2>();
        case 3:
          return step_of<1, 3>();
        default:
          return step_of<1, 4>();
      }
    }
  }

  void finish() {
    while (left_ > 0) step();
  }

 private:
  template <int kRows, int kColumns>
  PENSTOCK_INLINE void step_of() {
    constexpr bool kBytes = std::is_same_v<Lane, BytesUnit>;
    constexpr int kA = 4, kB = kA + kRows, kBs = 8 - kB;
    const auto for_c = [&](auto body) __attribute__((always_inline)) {
      unroll<kRows * kColumns>([&](auto n) __attribute__((always_inline)) {
        body(n, out_ + (n / kColumns) * kAmxRows * stride_ + (vec_ + n % kColumns) * kLanes);
      });
    };
    if (k_ == 0) {
      for_c([&](auto n, float* at)
                __attribute__((always_inline)) { add_ ? load_register<n>(at, stride_) : clear_register<n>(); });
    }
    unroll<kRows>([&](auto i) __attribute__((always_inline)) {
      load_register<kA + i>(a_.data + i * kAmxRows * a_.stride + k_, a_.stride);
    });
    const Lane* b = b_ + (k_ / kAmxPairs * vecs_ + vec_) * kAmxBlock;
    unroll<kColumns>([&](auto j) __attribute__((always_inline)) {
      load_register<kB + j % kBs>(b + j * kAmxBlock, kLanes);
      unroll<kRows>([&](auto i) __attribute__((always_inline)) {
        add_product<i * kColumns + j, kA + i, kB + j % kBs, kBytes>();
      });
    });
    k_ += kAmxPairs;
    if (k_ < lanes_) return;
    for_c([&](auto n, float* at) __attribute__((always_inline)) { store_register<n>(at, stride_); });
    k_ = 0;
    vec_ += kColumns;
  }

  Rows<Lane> a_{};
  const Lane* b_ = nullptr;
  float* out_ = nullptr;
  int64_t vecs_ = 0, lanes_ = 0, stride_ = 0, vec_ = 0, k_ = 0, left_ = 0;
  bool two_ = false, add_ = false;
};
#endif

template <class T>
PENSTOCK_INLINE void multiply_rows(int64_t rows, int64_t vecs, Rows<typename Operand<T>::Lane> a,
                                   const typename Operand<T>::Lane* b, int64_t lanes, float* out, int64_t stride,
                                   bool add, const Prefetches& prefetches) {
#if defined(__AMX_BF16__)
  if constexpr (Operand<T>::kMatrixUnit)
    return multiply_in_matrix_unit(rows, vecs, a, b, lanes, out, stride, add, prefetches);
#endif
  Tiles<T, false>::of(rows, vecs)(a, b, lanes, out, stride, add, prefetches);
}

template <class T>
PENSTOCK_INLINE void multiply_packed(int64_t rows, int64_t vecs, const typename Operand<T>::Lane* a,
                                     const typename Operand<T>::Lane* b, int64_t lanes, float* out, int64_t stride,
                                     bool add, const Prefetches& prefetches) {
  Tiles<T, true>::of(rows, vecs)(a, b, lanes, out, stride, add, prefetches);
}

// The same product without a matrix unit: made at once, when it starts.
template <class T>
struct WholeProduct {
  PENSTOCK_INLINE void start(int64_t rows, int64_t vecs, Rows<typename Operand<T>::Lane> a,
                             const typename Operand<T>::Lane* b, int64_t lanes, float* out, int64_t stride, bool add,
                             const Prefetches& prefetches) {
    multiply_rows<T>(rows, vecs, a, b, lanes, out, stride, add, prefetches);
  }
  int64_t steps_left() const { return 0; }
  void step() {}
  void finish() {}
};

template <class T>
using TileProduct =
    std::conditional_t<Operand<T>::kMatrixUnit, StepwiseProduct<typename Operand<T>::Lane>, WholeProduct<T>>;

// Rows cut into tiles of near-equal height: 13 rows are 5 + 4 + 4, not 6 + 6 + 1. Heights are whole steps of rows, all
// but the last.
template <class T>
struct Tiling {
  static constexpr int64_t kStep = Operand<T>::kRowStep, kMost = Operand<T>::kTileRows / kStep;
  int64_t rows, count, height, taller;  // the first `taller` tiles have one step more

  explicit Tiling(int64_t n) : rows(n) {
    const int64_t steps = (n + kStep - 1) / kStep;
    count = (steps + kMost - 1) / kMost;
    height = count ? steps / count : 0;
    taller = steps - count * height;
  }

  Range operator[](int64_t i) const {
    const int64_t begin = i * height + (i < taller ? i : taller), end = begin + height + (i < taller);
    return {begin * kStep, end * kStep < rows ? end * kStep : rows};
  }
};

// Tile i of those that rows and panels make: a panel of B after the other, so that each is read once. The matrix unit
// takes a tile of rows after the other: what is fetched for its next panel is then still there.
template <class T>
struct PanelTile {
  int64_t panel;
  Range rows;

  PanelTile(Range panels, const Tiling<T>& tiles, int64_t i) {
    constexpr bool kRowsFirst = Operand<T>::kMatrixUnit;
    panel = panels.begin + (kRowsFirst ? i % panels.size() : i / tiles.count);
    rows = tiles[kRowsFirst ? i / panels.size() : i % tiles.count];
  }
};

// For every i in [0, count) begin(tile, i), which starts tile.product, then apply(tile, the next one's product). On the
// matrix unit the next one's has begun by then, and `apply` takes its steps between its own.
template <class T, class Tile, class Begin, class Apply>
PENSTOCK_INLINE void for_tiles(int64_t count, const Begin& begin, const Apply& apply) {
  constexpr bool kAhead = Operand<T>::kMatrixUnit;
  Tile tiles[2];
  for (int64_t i = 0; i < count; ++i) {
    Tile &here = tiles[i % 2], &next = tiles[(i + 1) % 2];
    if (!kAhead || i == 0) {
      begin(here, i);
      here.product.finish();
    }
    if (kAhead && i + 1 < count) begin(next, i + 1);
    apply(here, next.product);
    next.product.finish();
  }
}

}  // namespace penstock::PENSTOCK_ISA
