// The LSTM cell on vectors of units, forward and backward.
//
// Everything is written in e^-x and e^2x - 1, from which both a function and its derivative come without cancellation:
//   sigmoid(x) = 1 / (1 + e^-x),        sigmoid'(x) = sigmoid(x)^2 e^-x
//   tanh(x) = m / (m + 2),              tanh'(x) = 4 (m + 1) / (m + 2)^2,        m = e^2x - 1
#pragma once

#include "vec.h"

namespace penstock::lstm::PENSTOCK_ISA {

// Beyond these the functions are constant in float32, and products of the exponentials stay finite.
constexpr float kSigmoidBound = 40.0f;
constexpr float kTanhBound = 20.0f;  // of 2x

// e^r - 1 for |r| <= ln 2 / 2: minimax, error 3e-9 of e^r.
PENSTOCK_INLINE Vec expm1_near_zero(Vec r) {
  const Vec p = (((0.0013814598f * r + 0.0083687169f) * r + 0.0416683881f) * r + 0.1666652063f) * r + 0.4999999344f;
  return p * (r * r) + r;
}

PENSTOCK_INLINE Vec exp_minus(Vec x) {
  const Reduced y = reduce(-clamp(x, kSigmoidBound));
  return y.power * expm1_near_zero(y.r) + y.power;
}

PENSTOCK_INLINE Vec expm1_twice(Vec x) {
  const Reduced y = reduce(clamp(x + x, kTanhBound));
  return y.power * expm1_near_zero(y.r) + (y.power - 1.0f);
}

struct Cell {
  Vec h, c;
};

PENSTOCK_INLINE Cell cell_forward(Vec i, Vec f, Vec g, Vec o, Vec c_before) {
  const Vec mg = expm1_twice(g);
  const Vec c = c_before * reciprocal(1.0f + exp_minus(f)) + mg * reciprocal((1.0f + exp_minus(i)) * (mg + 2.0f));
  const Vec mc = expm1_twice(c);
  const Vec h = mc * reciprocal((1.0f + exp_minus(o)) * (mc + 2.0f));
  return {h, c};
}

struct CellGradient {
  Vec i, f, g, o;  // of the pre-activations
  Vec c_before;
};

PENSTOCK_INLINE CellGradient cell_backward(Vec i, Vec f, Vec g, Vec o, Vec c_before, Vec c, Vec dh, Vec dc) {
  const Vec ei = exp_minus(i), ef = exp_minus(f), eo = exp_minus(o), mg = expm1_twice(g), mc = expm1_twice(c);
  const Vec si = reciprocal(1.0f + ei), sf = reciprocal(1.0f + ef), so = reciprocal(1.0f + eo);
  const Vec rg = reciprocal(mg + 2.0f), rc = reciprocal(mc + 2.0f);
  const Vec dh_o = dh * so;
  const Vec d_o = dh_o * (mc * rc) * (so * eo);
  dc += dh_o * (4.0f * (mc + 1.0f) * (rc * rc));
  const Vec dc_i = dc * si, dc_f = dc * sf;
  return {dc_i * (mg * rg) * (si * ei), dc_f * c_before * (sf * ef), dc_i * (4.0f * (mg + 1.0f) * (rg * rg)), d_o,
          dc_f};
}

}  // namespace penstock::lstm::PENSTOCK_ISA
