// Bias and GELU, x Phi(x) with the normal distribution Phi, alone and as a gate (GEGLU), in the namespace PENSTOCK_ISA
// (see simd.h).
#pragma once

#include "exp.h"
#include "rowwise/cpu/columns.h"

namespace penstock::PENSTOCK_ISA {

struct Gelu {
  Floats value, derivative;
};

// 1 / x for an x of 1 or more, to its last bits. AVX-512 divides in the time of ten multiplications.
PENSTOCK_INLINE Floats reciprocal(Floats x) {
#if defined(__AVX512BW__)
  x = (Floats)_mm512_min_ps((__m512)x, (__m512)splat(1e30f));  // of infinity the step below would make NaN
  const Floats near = (Floats)_mm512_rcp14_ps((__m512)x);
  return near * (2.0f - x * near);
#else
  return 1.0f / x;
#endif
}

// 1 - Phi(|x|) by Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: its error is below 8e-8.
PENSTOCK_INLINE Gelu gelu(Floats x) {
  const Floats size = max(x, -x);
  const Floats t = reciprocal(size * (0.3275911f * 0.70710678f) + 1.0f);
  const Floats bell = exp2(x * x * -0.72134752f);  // exp(-x^2 / 2)
  Floats p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Floats beyond = p * t * bell * 0.5f;
  const Floats phi = x > 0.0f ? 1.0f - beyond : beyond;
  return {x * phi, phi + x * bell * 0.39894228f};
}

// The value alone, in half the instructions, for what is rounded to bfloat16: within 6e-5. Phi(x) - 1/2 is odd, and x
// times a polynomial of x^2, minimax up to 4.4; a little further, where all is clamped, it is beyond 1/2 whatever is
// rounded, so that Phi is 0.
PENSTOCK_INLINE Floats gelu_coarse(Floats x) {
  const Floats near = max(splat(-4.405f), min(splat(4.405f), x)), u = near * near;
  Floats p = u * 3.7886725e-11f - 3.94770261e-9f;
  p = p * u + 1.81238008e-7f;
  p = p * u - 4.86803947e-6f;
  p = p * u + 8.5973581e-5f;
  p = p * u - 0.00106667518f;
  p = p * u + 0.00968910009f;
  p = p * u - 0.0661680773f;
  p = p * u + 0.398829073f;
  return x * max(Floats{}, near * p + 0.5f);
}

template <class Element>
static void gelu_forward_rows(const GeluProblem& p, const Item& item) {
  for (int64_t row = item.first; row < item.last; ++row) {
    const Element* x = static_cast<const Element*>(p.x) + row * p.width;
    Element* out = static_cast<Element*>(p.out) + row * p.width;
    Element* derivative = p.derivative == nullptr ? nullptr : static_cast<Element*>(p.derivative) + row * p.width;
    for_columns(p.width, [&](auto c) __attribute__((always_inline)) {
      Floats v = c.load(x);
      if (p.bias != nullptr) v += c.load(p.bias);
      const Gelu g = gelu(v);
      c.store(out, g.value);
      if (derivative != nullptr) c.store(derivative, g.derivative);
    });
  }
}

template <class Element>
static void gelu_backward_rows(const GeluProblem& p, const Item& item) {
  float* sums = p.sums == nullptr ? nullptr : p.sums + item.piece * p.width;
  if (sums != nullptr) std::memset(sums, 0, size_t(p.width) * sizeof(float));
  for (int64_t row = item.first; row < item.last; ++row) {
    const Element* derivative = static_cast<const Element*>(p.saved_derivative) + row * p.width;
    const Element* grad_out = static_cast<const Element*>(p.grad_out) + row * p.width;
    Element* grad_x = static_cast<Element*>(p.grad_x) + row * p.width;
    for_columns(p.width, [&](auto c) __attribute__((always_inline)) {
      const Floats dx = c.load(grad_out) * c.load(derivative);
      c.store(grad_x, dx);
      if (sums != nullptr) c.store(sums, c.load(sums) + dx);
    });
  }
}

struct Gated {
  Floats gate, value;
};

// The two halves of a row of x + bias at the same columns.
template <class Element, class Columns>
PENSTOCK_INLINE Gated gated(const GegluProblem& p, const Element* x, const Columns& c) {
  Floats gate = c.load(x), value = c.load(x + p.width);
  if (p.bias != nullptr) gate += c.load(p.bias), value += c.load(p.bias + p.width);
  return {gate, value};
}

template <class Element>
static void geglu_forward_rows(const GegluProblem& p, const Item& item) {
  for (int64_t row = item.first; row < item.last; ++row) {
    const Element* x = static_cast<const Element*>(p.x) + row * 2 * p.width;
    Element* out = static_cast<Element*>(p.out) + row * p.width;
    for_columns(p.width, [&](auto c) __attribute__((always_inline)) {
      const auto [gate, value] = gated(p, x, c);
      c.store(out, gelu(gate).value * value);
    });
  }
}

template <class Element>
static void geglu_backward_rows(const GegluProblem& p, const Item& item) {
  float* sums = p.sums == nullptr ? nullptr : p.sums + item.piece * 2 * p.width;
  if (sums != nullptr) std::memset(sums, 0, size_t(2 * p.width) * sizeof(float));
  for (int64_t row = item.first; row < item.last; ++row) {
    const Element* x = static_cast<const Element*>(p.x) + row * 2 * p.width;
    const Element* grad_out = static_cast<const Element*>(p.grad_out) + row * p.width;
    Element* grad_x = static_cast<Element*>(p.grad_x) + row * 2 * p.width;
    for_columns(p.width, [&](auto c) __attribute__((always_inline)) {
      const auto [gate, value] = gated(p, x, c);
      const Gelu g = gelu(gate);
      const Floats dy = c.load(grad_out), d_gate = dy * value * g.derivative, d_value = dy * g.value;
      c.store(grad_x, d_gate);
      c.store(grad_x + p.width, d_value);
      if (sums == nullptr) return;
      c.store(sums, c.load(sums) + d_gate);
      c.store(sums + p.width, c.load(sums + p.width) + d_value);
    });
  }
}

}  // namespace penstock::PENSTOCK_ISA
