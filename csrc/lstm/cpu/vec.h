// The vector type of the instruction set that this file is compiled for, in the vector extensions of GCC and Clang;
// intrinsics only where those have no word for it. Included once per instruction set, in its own namespace: the file
// that includes this defines PENSTOCK_ISA and gets the compiler's flags for it from isa.cmake.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // gcc 12 warns of its own header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#define PENSTOCK_INLINE inline __attribute__((always_inline))

namespace penstock::lstm::PENSTOCK_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRegisterRows = 6;  // 24 accumulators, 4 vectors of B and a broadcast fill 32 registers
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRegisterRows = 3;  // 12 accumulators and a broadcast, B from memory: 16 registers
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kRegisterRows = 6;
#else
constexpr int kLanes = 4;
constexpr int kRegisterRows = 3;
#endif
constexpr int kTileVecs = 4;

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t BitVec __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * kLanes)));

struct bfloat16 {
  uint16_t bits;
};

PENSTOCK_INLINE Vec broadcast(float value) { return value - Vec{}; }

PENSTOCK_INLINE float to_float(float value) { return value; }
PENSTOCK_INLINE float to_float(bfloat16 value) {
  const uint32_t bits = uint32_t{value.bits} << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

PENSTOCK_INLINE Vec load(const float* from) {
  Vec value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

PENSTOCK_INLINE Vec load(const bfloat16* from) {
  HalfVec half;
  std::memcpy(&half, from, sizeof half);
  return Vec(__builtin_convertvector(half, BitVec) << 16);
}

PENSTOCK_INLINE void store(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }

PENSTOCK_INLINE void store(bfloat16* to, Vec value) {
#if defined(__AVX512BF16__)
  const __m256bh half = _mm512_cvtneps_pbh(value);
  std::memcpy(to, &half, sizeof half);
#else
  const BitVec bits = BitVec(value);
  const BitVec rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const BitVec quiet_nan = bits | 0x00400000u;
  const BitVec chosen = value == value ? rounded : quiet_nan;
  const HalfVec half = __builtin_convertvector(chosen >> 16, HalfVec);
  std::memcpy(to, &half, sizeof half);
#endif
}

template <class T>
__attribute__((noinline, cold)) Vec load_part(const T* from, int64_t n) {
  T lanes[kLanes] = {};
  std::memcpy(lanes, from, n * sizeof(T));
  return load(lanes);
}

template <class T>
__attribute__((noinline, cold)) void store_part(T* to, Vec value, int64_t n) {
  T lanes[kLanes];
  store(lanes, value);
  std::memcpy(to, lanes, n * sizeof(T));
}

// The first n lanes only, 0 < n <= kLanes; the others read as zero.
template <class T>
PENSTOCK_INLINE Vec load(const T* from, int64_t n) {
  return __builtin_expect(n == kLanes, 1) ? load(from) : load_part(from, n);
}

template <class T>
PENSTOCK_INLINE void store(T* to, Vec value, int64_t n) {
  __builtin_expect(n == kLanes, 1) ? store(to, value) : store_part(to, value, n);
}

// Both keep a NaN in `value`.
PENSTOCK_INLINE Vec clamp(Vec value, float bound) {
#if defined(__AVX512F__)
  return _mm512_max_ps(_mm512_set1_ps(-bound), _mm512_min_ps(_mm512_set1_ps(bound), value));
#elif defined(__AVX2__)
  return _mm256_max_ps(_mm256_set1_ps(-bound), _mm256_min_ps(_mm256_set1_ps(bound), value));
#else
  const Vec high = broadcast(bound), low = broadcast(-bound);
  value = value > high ? high : value;
  return value < low ? low : value;
#endif
}

PENSTOCK_INLINE Vec reciprocal(Vec value) {
#if defined(__AVX512F__)
  const Vec guess = _mm512_rcp14_ps(value);
  return guess * (1.0f - value * guess) + guess;  // in this order rounded once
#else
  return 1.0f / value;
#endif
}

// x = n ln 2 + r with |r| <= ln 2 / 2, and 2^n.
struct Reduced {
  Vec r, power;
};

PENSTOCK_INLINE Reduced reduce(Vec x) {
  constexpr float kLog2E = 1.442695041f, kLn2 = 0.6931471806f;
#if defined(__AVX512F__)
  const Vec n = _mm512_roundscale_ps(x * kLog2E, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return {x - n * kLn2, _mm512_scalef_ps(_mm512_set1_ps(1.0f), n)};
#else
  // Added to 1.5 * 2^23, n stands in the low bits of the sum.
  constexpr float kShift = 12582912.0f;
  const Vec shifted = x * kLog2E + kShift;
  return {x - (shifted - kShift) * kLn2, Vec((IntVec(shifted) << 23) + 0x3f800000)};
#endif
}

}  // namespace penstock::lstm::PENSTOCK_ISA
