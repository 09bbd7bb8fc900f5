// Exponentials, in the namespace PENSTOCK_ISA (see simd.h): an argument is cut into a whole number of powers of two and
// a rest, whose exponential is a polynomial.
#pragma once

#include "simd.h"

namespace penstock::PENSTOCK_ISA {

constexpr float kLog2E = 1.442695041f, kLn2 = 0.6931471806f;

// A whole number in each lane, from -127 (AVX-512: -inf) to 127.
struct Whole {
  Floats value;
#if !defined(__AVX512BW__)
  Floats shifted;                               // value + kShift: the low bits are the number
  static constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
#endif
};

PENSTOCK_INLINE Whole nearest_whole(Floats x) {
#if defined(__AVX512BW__)
  return {(Floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
#else
  const Floats shifted = x + Whole::kShift;
  return {shifted - Whole::kShift, shifted};
#endif
}

// x * 2^n
PENSTOCK_INLINE Floats times_power(Floats x, Whole n) {
#if defined(__AVX512BW__)
  return (Floats)_mm512_scalef_ps((__m512)x, (__m512)n.value);
#else
  return x * (Floats)(((Ints)n.shifted << 23) + 0x3F800000);
#endif
}

// e^(unit x) - 1 for |unit x| <= ln 2 / 2: minimax, error below 3e-9 of e^(unit x) before rounding, and relative to the
// result near 0.
PENSTOCK_INLINE Floats expm1_near_zero(Floats x, float unit = 1.0f) {
  const float u2 = unit * unit, u3 = u2 * unit;
  Floats p = 0.0013814598f * u3 * u3 * x + 0.0083687169f * u3 * u2;
  p = p * x + 0.0416683881f * u2 * u2;
  p = p * x + 0.1666652063f * u3;
  p = p * x + 0.4999999344f * u2;
  p = p * x + unit;
  return p * x;
}

// 2^x for x <= 127, relative error below 2e-7; 0 below -127 and for -inf, NaN for NaN.
PENSTOCK_INLINE Floats exp2(Floats x) {
#if !defined(__AVX512BW__)
  x = max(splat(-127.0f), x);  // in this order NaN passes
#endif
  const Whole n = nearest_whole(x);
  return times_power(expm1_near_zero(x - n.value, kLn2) + 1.0f, n);
}

#if defined(__AVX512DQ__)
// 2^x, relative error below 8e-5, for any x: the rest of an infinite one is 0.
PENSTOCK_INLINE Floats exp2_roughly(Floats x) {
  const Floats rest = (Floats)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  Floats p = 0.07802452f * rest + 0.22606716f;
  p = p * rest + 0.69583356f;
  p = p * rest + 0.99992520f;
  return (Floats)_mm512_scalef_ps((__m512)p, (__m512)x);  // which rounds x down
}

// 2^x - 1, relative error below 2.2e-5 also near 0.
PENSTOCK_INLINE Floats exp2m1_roughly(Floats x) {
  const Floats rest = (Floats)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Floats power = (Floats)_mm512_scalef_ps((__m512)splat(1.0f), (__m512)(x - rest));
  Floats p = 0.009618111f * rest + 0.055837288f;
  p = p * rest + 0.24023253f;
  p = p * rest + 0.69313687f;
  return power * (p * rest) + (power - 1.0f);
}
#endif

}  // namespace penstock::PENSTOCK_ISA
