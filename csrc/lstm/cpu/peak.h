// The rate of multiplication that a tile could reach if it never waited for memory: what benchmarks compare with.
#pragma once

#include "tile.h"

namespace penstock::lstm::PENSTOCK_ISA {

using namespace penstock::PENSTOCK_ISA;

// Multiplies a full tile in registers `rounds` times; returns the number of floating-point operations.
template <class T>
double multiply_in_registers(int64_t rounds, float* sink) {
#if defined(__AMX_BF16__)
  if constexpr (Operand<T>::kMatrixUnit) {
    const MatrixUnit unit;
    unroll<8>([](auto n) { clear_register<n>(); });
    for (int64_t round = 0; round < rounds; ++round) unroll<4>([](auto n) { add_product<n, 4 + n / 2, 6 + n % 2>(); });
    return 2.0 * double(rounds) * 4 * kAmxRows * kLanes * 2 * kAmxPairs;
  }
#endif
  using Lane = typename Operand<T>::Lane;
  Floats sum[kRegisterRows][kTileVecs] = {};
  Floats b[kTileVecs];
  for (int v = 0; v < kTileVecs; ++v) b[v] = splat(1e-3f * float(v));
  Floats a = splat(*sink);
  for (int64_t round = 0; round < rounds; ++round) {
    for (int r = 0; r < kRegisterRows; ++r) {
#if defined(__x86_64__)
      asm volatile("" : "+v"(a));  // else one row's products would serve all
#endif
      for (int v = 0; v < kTileVecs; ++v) sum[r][v] = multiply_add<Lane>(sum[r][v], a, b[v]);
    }
  }
  for (int r = 0; r < kRegisterRows; ++r) {
    for (int v = 0; v < kTileVecs; ++v) store(sink, load(sink) + sum[r][v]);
  }
  return 2.0 * double(rounds) * kRegisterRows * kTileVecs * kLanes * Operand<T>::kPerLane;
}

}  // namespace penstock::lstm::PENSTOCK_ISA
