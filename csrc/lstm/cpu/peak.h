// The rate of multiplication that a tile could reach if it never waited for memory: what benchmarks compare with.
#pragma once

#include "tile.h"

namespace penstock::lstm::PENSTOCK_ISA {

// Multiplies a full tile in registers `rounds` times; returns the number of floating-point operations.
template <class T>
double multiply_in_registers(int64_t rounds, float* sink) {
#if defined(__AMX_BF16__)
  if constexpr (Operand<T>::kMatrixUnit) {
    const MatrixUnit unit;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
    for (int64_t round = 0; round < rounds; ++round) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    return 2.0 * double(rounds) * 4 * kAmxRows * kLanes * 2 * kAmxPairs;
  }
#endif
  Vec sum[kRegisterRows][kTileVecs] = {};
  Vec b[kTileVecs];
  for (int v = 0; v < kTileVecs; ++v) b[v] = broadcast(1e-3f * float(v));
  Vec a = broadcast(*sink);
  for (int64_t round = 0; round < rounds; ++round) {
    for (int r = 0; r < kRegisterRows; ++r) {
#if defined(__x86_64__)
      asm volatile("" : "+v"(a));  // else one row's products would serve all
#endif
      for (int v = 0; v < kTileVecs; ++v) multiply_add(sum[r][v], a, b[v], std::bool_constant<Operand<T>::kPairs>{});
    }
  }
  for (int r = 0; r < kRegisterRows; ++r) {
    for (int v = 0; v < kTileVecs; ++v) store(sink, load(sink) + sum[r][v]);
  }
  return 2.0 * double(rounds) * kRegisterRows * kTileVecs * kLanes * Operand<T>::kPerLane;
}

}  // namespace penstock::lstm::PENSTOCK_ISA
