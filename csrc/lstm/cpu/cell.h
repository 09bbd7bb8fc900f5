// The LSTM cell on vectors of units, forward and backward.
//
// Everything is written in e^-x and e^2x - 1, from which both a function and its derivative come without cancellation:
//   sigmoid(x) = 1 / (1 + e^-x),        sigmoid'(x) = sigmoid(x)^2 e^-x
//   tanh(x) = m / (m + 2),              tanh'(x) = 4 (m + 1) / (m + 2)^2,        m = e^2x - 1
#pragma once

#include "exp.h"
#include "tile.h"

namespace penstock::lstm::PENSTOCK_ISA {

using namespace penstock::PENSTOCK_ISA;

// A NaN in `value` stays.
PENSTOCK_INLINE Floats clamp(Floats value, float bound) {
#if defined(__AVX512F__)
  return (Floats)_mm512_max_ps(_mm512_set1_ps(-bound), _mm512_min_ps(_mm512_set1_ps(bound), (__m512)value));
#elif defined(__AVX2__)
  return (Floats)_mm256_max_ps(_mm256_set1_ps(-bound), _mm256_min_ps(_mm256_set1_ps(bound), (__m256)value));
#else
  const Floats high = splat(bound), low = splat(-bound);
  value = value > high ? high : value;
  return value < low ? low : value;
#endif
}

PENSTOCK_INLINE Floats reciprocal(Floats value) {
#if defined(__AVX512F__)
  const Floats guess = (Floats)_mm512_rcp14_ps((__m512)value);
  return guess * (1.0f - value * guess) + guess;  // in this order rounded once
#else
  return 1.0f / value;
#endif
}

// Beyond these the functions are constant in float32, and products of the exponentials stay finite.
constexpr float kSigmoidBound = 40.0f;
constexpr float kTanhBound = 20.0f;  // of 2x

// x = n ln 2 + rest
PENSTOCK_INLINE Floats rest(Floats x, Whole n) { return x - n.value * kLn2; }

PENSTOCK_INLINE Floats exp_minus(Floats x) {
  const Floats y = -clamp(x, kSigmoidBound);
  const Whole n = nearest_whole(y * kLog2E);
  return times_power(expm1_near_zero(rest(y, n)) + 1.0f, n);
}

PENSTOCK_INLINE Floats expm1_twice(Floats x) {
  const Floats y = clamp(x + x, kTanhBound);
  const Whole n = nearest_whole(y * kLog2E);
  const Floats power = times_power(splat(1.0f), n);
  return power * expm1_near_zero(rest(y, n)) + (power - 1.0f);
}

// How a cell whose values are stored as T computes.
template <class T>
struct Functions {
  static PENSTOCK_INLINE Floats exp_minus(Floats x) { return PENSTOCK_ISA::exp_minus(x); }
  static PENSTOCK_INLINE Floats expm1_twice(Floats x) { return PENSTOCK_ISA::expm1_twice(x); }
  static PENSTOCK_INLINE Floats reciprocal(Floats x) { return PENSTOCK_ISA::reciprocal(x); }
};

#if defined(__AVX512DQ__)
// bfloat16 has 8 bits: 13 of the functions are as good, for two thirds of the instructions. But the forget gate's
// reciprocal is whole: a memory of a thousand steps has its error a thousand times.
template <>
struct Functions<bf16> {
  static PENSTOCK_INLINE Floats exp_minus(Floats x) {
    return exp2_roughly(min(splat(kSigmoidBound * kLog2E), x * -kLog2E));
  }
  static PENSTOCK_INLINE Floats expm1_twice(Floats x) {
    return exp2m1_roughly(min(splat(kTanhBound * kLog2E), x * (2 * kLog2E)));
  }
  static PENSTOCK_INLINE Floats reciprocal(Floats x) { return (Floats)_mm512_rcp14_ps((__m512)x); }
};
#endif

struct Cell {
  Floats h, c;
};

template <class T>
PENSTOCK_INLINE Cell cell_forward(Floats i, Floats f, Floats g, Floats o, Floats c_before) {
  using F = Functions<T>;
  const Floats mg = F::expm1_twice(g);
  const Floats c =
      c_before * reciprocal(1.0f + F::exp_minus(f)) + mg * F::reciprocal((1.0f + F::exp_minus(i)) * (mg + 2.0f));
  const Floats mc = F::expm1_twice(c);
  const Floats h = mc * F::reciprocal((1.0f + F::exp_minus(o)) * (mc + 2.0f));
  return {h, c};
}

struct CellGradient {
  Floats i, f, g, o;  // of the pre-activations
  Floats c_before;
};

template <class T>
PENSTOCK_INLINE CellGradient cell_backward(Floats i, Floats f, Floats g, Floats o, Floats c_before, Floats c, Floats dh,
                                           Floats dc) {
  using F = Functions<T>;
  const Floats ei = F::exp_minus(i), ef = F::exp_minus(f), eo = F::exp_minus(o), mg = F::expm1_twice(g),
               mc = F::expm1_twice(c);
  const Floats si = F::reciprocal(1.0f + ei), sf = reciprocal(1.0f + ef), so = F::reciprocal(1.0f + eo);
  const Floats rg = F::reciprocal(mg + 2.0f), rc = F::reciprocal(mc + 2.0f);
  const Floats dh_o = dh * so;
  const Floats d_o = dh_o * (mc * rc) * (so * eo);
  dc += dh_o * (4.0f * (mc + 1.0f) * (rc * rc));
  const Floats dc_i = dc * si, dc_f = dc * sf;
  return {dc_i * (mg * rg) * (si * ei), dc_f * c_before * (sf * ef), dc_i * (4.0f * (mg + 1.0f) * (rg * rg)), d_o,
          dc_f};
}

}  // namespace penstock::lstm::PENSTOCK_ISA
