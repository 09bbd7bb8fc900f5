// Intel's matrix unit (AMX) for bfloat16: eight registers of 16 rows of 64 bytes, and C += A B for a C of 16 x 16
// floats, an A of 16 rows of 16 pairs of bfloat16, and a B of 16 pairs of rows of 16 columns, the pairs along the
// summed dimension in both. One instruction does 16 x 16 x 32 multiplications and additions, 16 times as many as
// AVX-512's. Bytes come in fours in the place of the pairs, twice as many at a time; C is then of integers.
#pragma once

namespace penstock {

// Whether there is a matrix unit for bfloat16 and Linux lets this process use it: its registers are eight kilobytes
// that every switch of threads would save, so a process has to ask for them, once for all its threads.
bool may_use_amx();

}  // namespace penstock

#if defined(__AMX_BF16__)

#include <immintrin.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "types.h"

namespace penstock {

constexpr int kAmxRows = 16;   // of a register, and the columns of C
constexpr int kAmxPairs = 16;  // along the summed dimension

struct alignas(64) AmxConfiguration {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
// A constant in memory: the compiler does not know that all of it is read.
static constexpr AmxConfiguration kAmxFullSize{
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// While it lives, the calling thread's registers have their full size.
class MatrixUnit {
 public:
  PENSTOCK_INLINE MatrixUnit() { _tile_loadconfig(&kAmxFullSize); }
  PENSTOCK_INLINE ~MatrixUnit() { _tile_release(); }
  MatrixUnit(const MatrixUnit&) = delete;
  MatrixUnit& operator=(const MatrixUnit&) = delete;
};

// A register's number is part of its instructions. Rows in memory are `units` of 32 bits apart.
template <int kRegister>
PENSTOCK_INLINE void load_register(const void* from, int64_t units) {
  asm volatile("tileloadd (%0,%1,4), %%tmm%c2" ::"r"(from), "r"(units), "i"(kRegister) : "memory");
}
template <int kRegister>
PENSTOCK_INLINE void store_register(void* to, int64_t units) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,4)" ::"r"(to), "r"(units), "i"(kRegister) : "memory");
}
template <int kRegister>
PENSTOCK_INLINE void clear_register() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kRegister));
}
template <int kC, int kA, int kB, bool kBytes = false>
PENSTOCK_INLINE void add_product() {
  if constexpr (kBytes) {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  } else {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
}

// Calls body(std::integral_constant<int, i>) for every i in [0, kCount).
template <int kCount, class Body>
PENSTOCK_INLINE void unroll(Body body) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, kIndex>{}), ...);
  }(std::make_integer_sequence<int, kCount>{});
}

// Where a B of several registers lies, in units of 32 bits: from a row to the next, from a register to that of the next
// columns, and to the next along the summed dimension.
struct AmxSteps {
  int64_t row, columns, depth;
};

// c (+)= a b on kRows x kColumns registers of c, at most four. Those of a follow them, and those of b take turns in
// what is left. `depth` is in pairs, a multiple of kAmxPairs; each_step() runs once for as many of them. With kBytes
// units are four bytes, unsigned in a and signed in b, and c holds integers.
template <int kRows, int kColumns, bool kBytes = false, class Unit, class EachStep>
PENSTOCK_INLINE void multiply_registers(const Unit* a, int64_t a_row, const Unit* b, AmxSteps b_steps, float* c,
                                        int64_t c_row, bool accumulate, int64_t depth, EachStep each_step) {
  static_assert(sizeof(Unit) == 4 && kRows * kColumns <= 4);
  constexpr int kA = 4, kB = kA + kRows, kBs = 8 - kB;
  const auto for_c = [&](auto body) __attribute__((always_inline)) {
    unroll<kRows * kColumns>([&](auto n) __attribute__((always_inline)) {
      body(n, c + n / kColumns * kAmxRows * c_row + n % kColumns * kAmxRows);
    });
  };
  for_c([&](auto n, float* at)
            __attribute__((always_inline)) { accumulate ? load_register<n>(at, c_row) : clear_register<n>(); });
  for (int64_t k = 0; k < depth; k += kAmxPairs, b += b_steps.depth) {
    each_step();
    unroll<kRows>([&](auto i)
                      __attribute__((always_inline)) { load_register<kA + i>(a + i * kAmxRows * a_row + k, a_row); });
    unroll<kColumns>([&](auto j) __attribute__((always_inline)) {
      load_register<kB + j % kBs>(b + j * b_steps.columns, b_steps.row);
      unroll<kRows>([&](auto i) __attribute__((always_inline)) {
        add_product<i * kColumns + j, kA + i, kB + j % kBs, kBytes>();
      });
    });
  }
  for_c([&](auto n, float* at) __attribute__((always_inline)) { store_register<n>(at, c_row); });
}

}  // namespace penstock

#endif
