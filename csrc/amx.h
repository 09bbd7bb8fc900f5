// Intel's matrix unit (AMX) for bfloat16: eight registers of 16 rows of 64 bytes, and C += A B for a C of 16 x 16
// floats, an A of 16 rows of 16 pairs of bfloat16, and a B of 16 pairs of rows of 16 columns, the pairs along the
// summed dimension in both. One instruction does 16 x 16 x 32 multiplications and additions, 16 times as many as
// AVX-512's.
//
// The registers are named by literals, as the instructions are: 0 to 3 hold C, 4 and 5 A, 6 and 7 B.
#pragma once

#if defined(__AMX_BF16__)

#include <immintrin.h>

#include <cstdint>

namespace penstock {

constexpr int kAmxRows = 16;   // of a register, and the columns of C
constexpr int kAmxPairs = 16;  // along the summed dimension

// While it lives, the calling thread's registers have their full size.
class MatrixUnit {
 public:
  MatrixUnit() { _tile_loadconfig(&kFullSize); }
  ~MatrixUnit() { _tile_release(); }
  MatrixUnit(const MatrixUnit&) = delete;
  MatrixUnit& operator=(const MatrixUnit&) = delete;

 private:
  struct alignas(64) Configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  // A constant in memory: the compiler does not know that all of it is read.
  static constexpr Configuration kFullSize{
      1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
};

// The compiler does not know that the unit reads memory: what was stored before must be there.
inline __attribute__((always_inline)) void memory_for_amx() { asm volatile("" ::: "memory"); }

}  // namespace penstock

#endif
