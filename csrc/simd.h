// Vectors of float32 as wide as the instruction set that the including file is compiled for (see isa.h), in the
// namespace PENSTOCK_ISA, which that file defines. GCC's vector extensions do the arithmetic; intrinsics only what
// these cannot say.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512BW__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include "types.h"

namespace penstock::PENSTOCK_ISA {

#if defined(__AVX512BW__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Uints __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

PENSTOCK_INLINE Floats splat(float x) { return x - Floats{}; }
PENSTOCK_INLINE Uints splat(uint32_t x) { return x - Uints{}; }

template <class Vector, class T>
PENSTOCK_INLINE Vector load_as(const T* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class Vector, class T>
PENSTOCK_INLINE void store_as(T* p, Vector v) {
  std::memcpy(p, &v, sizeof v);
}

PENSTOCK_INLINE Floats load(const float* p) { return load_as<Floats>(p); }
// gcc 12 converts half a vector at a time where it is left to.
PENSTOCK_INLINE Uints widen(Halves x) {
#if defined(__AVX512BW__)
  return (Uints)_mm512_cvtepu16_epi32((__m256i)x);
#elif defined(__AVX2__)
  return (Uints)_mm256_cvtepu16_epi32((__m128i)x);
#else
  return __builtin_convertvector(x, Uints);
#endif
}
// The low bits of each lane; gcc 12 takes them one lane at a time.
PENSTOCK_INLINE Halves low_halves(Uints x) {
#if defined(__AVX512BW__)
  return (Halves)_mm512_cvtepi32_epi16((__m512i)x);
#elif defined(__AVX2__)
  const __m256i pairs = (__m256i)(x & 0xFFFFu);
  return (Halves)_mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(pairs, pairs), 0x08));
#else
  return __builtin_convertvector(x, Halves);
#endif
}
PENSTOCK_INLINE Bytes low_bytes(Uints x) {
#if defined(__AVX512BW__)
  return (Bytes)_mm512_cvtepi32_epi8((__m512i)x);
#else
  return __builtin_convertvector(x, Bytes);
#endif
}
PENSTOCK_INLINE Floats load(const bf16* p) { return (Floats)(widen(load_as<Halves>(p)) << 16); }

// Round to nearest even; NaN stays NaN.
PENSTOCK_INLINE Halves to_halves(Floats x) {
#if defined(__AVX512BF16__)
  return (Halves)_mm512_cvtneps_pbh((__m512)x);
#else
  const Uints bits = (Uints)x;
  const Uints rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  const Uints nan = bits >> 16 | 64u;
  return low_halves(x != x ? nan : rounded);
#endif
}
PENSTOCK_INLINE void store(float* p, Floats v) { store_as(p, v); }
PENSTOCK_INLINE void store(bf16* p, Floats v) { store_as(p, to_halves(v)); }

template <class Element>
static __attribute__((noinline, cold)) Floats load_part(const Element* p, int64_t n) {
  Element lanes[kLanes] = {};
  std::memcpy(lanes, p, size_t(n) * sizeof(Element));
  return load(lanes);
}
template <class Element>
static __attribute__((noinline, cold)) void store_part(Element* p, Floats v, int64_t n) {
  Element lanes[kLanes];
  store(lanes, v);
  std::memcpy(p, lanes, size_t(n) * sizeof(Element));
}

// The first n lanes only, 0 < n <= kLanes; the others read as zero.
template <class Element>
PENSTOCK_INLINE Floats load(const Element* p, int64_t n) {
  return __builtin_expect(n == kLanes, 1) ? load(p) : load_part(p, n);
}
template <class Element>
PENSTOCK_INLINE void store(Element* p, Floats v, int64_t n) {
  __builtin_expect(n == kLanes, 1) ? store(p, v) : store_part(p, v, n);
}

PENSTOCK_INLINE float to_float(float x) { return x; }
PENSTOCK_INLINE float to_float(bf16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

PENSTOCK_INLINE Floats max(Floats a, Floats b) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

PENSTOCK_INLINE Floats min(Floats a, Floats b) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

PENSTOCK_INLINE Floats square_root(Floats x) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (Floats)_mm256_sqrt_ps((__m256)x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// x as a number of its own: the compiler does not join the product that it is with a sum to one instruction.
PENSTOCK_INLINE Floats rounded(Floats x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#elif defined(__SSE__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
}

// Halves the vector until one lane is left, so that the order of the operations is the same everywhere.
template <class Operation>
PENSTOCK_INLINE float reduce(Floats v, Operation operation) {
#if defined(__AVX512BW__)
  v = operation(v, (Floats)_mm512_shuffle_f32x4((__m512)v, (__m512)v, 0x4E));
  v = operation(v, (Floats)_mm512_shuffle_f32x4((__m512)v, (__m512)v, 0xB1));
  v = operation(v, (Floats)_mm512_permute_ps((__m512)v, 0x4E));
  v = operation(v, (Floats)_mm512_permute_ps((__m512)v, 0xB1));
  return v[0];
#else
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = operation(splat(lanes[i]), splat(lanes[i + width]))[0];
  return lanes[0];
#endif
}
PENSTOCK_INLINE float horizontal_sum(Floats v) {
  return reduce(v, [](Floats a, Floats b) __attribute__((always_inline)) { return a + b; });
}
PENSTOCK_INLINE float horizontal_max(Floats v) {
  return reduce(v, [](Floats a, Floats b) __attribute__((always_inline)) { return max(a, b); });
}

// Bit i of a mask speaks for lane i.
constexpr uint32_t kAllLanes = (1u << kLanes) - 1;

// The lanes whose index, counted from `first`, lies in [low, high).
PENSTOCK_INLINE uint32_t lanes_between(int64_t first, int64_t low, int64_t high) {
  const int64_t from = low <= first ? 0 : low - first, to = high - first;
  if (from >= kLanes || to <= from) return 0;
  const uint32_t below = to >= kLanes ? kAllLanes : (1u << to) - 1;
  return below & ~((1u << from) - 1);
}

PENSTOCK_INLINE Ints lane_mask(uint32_t bits) {
  Uints bit_of_lane;
  for (int i = 0; i < kLanes; ++i) bit_of_lane[i] = 1u << i;
  return (splat(bits) & bit_of_lane) != 0u;
}

// x in the lanes of the mask, 0 elsewhere.
PENSTOCK_INLINE Floats keep(uint32_t bits, Floats x) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_maskz_mov_ps(__mmask16(bits), (__m512)x);
#else
  return (Floats)((Ints)x & lane_mask(bits));
#endif
}
// x in the lanes of the mask, y elsewhere.
PENSTOCK_INLINE Floats choose(uint32_t bits, Floats x, Floats y) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_mask_mov_ps((__m512)y, __mmask16(bits), (__m512)x);
#else
  return lane_mask(bits) ? x : y;
#endif
}

}  // namespace penstock::PENSTOCK_ISA
