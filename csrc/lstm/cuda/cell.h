// The LSTM cell in float, on pre-activations.
#pragma once

#include "lstm/cuda/device.h"

namespace penstock::lstm::cuda {

// Exponential and reciprocal err by a few units in the last place: far below what bfloat16 shows, but not in proportion
// near zero (tanh), where the error is absolute, about 1e-7.
PENSTOCK_DEVICE float sigmoid(float x) { return device::reciprocal(1.0f + device::exponential(-x)); }
PENSTOCK_DEVICE float hyperbolic_tangent(float x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

// Returns h; c becomes the new cell state.
PENSTOCK_DEVICE float cell_forward(const float (&pre)[4], float& c) {
  c = sigmoid(pre[1]) * c + sigmoid(pre[0]) * hyperbolic_tangent(pre[2]);
  return sigmoid(pre[3]) * hyperbolic_tangent(c);
}

// Turns the pre-activations into their gradients; dc becomes the gradient of the cell state before.
PENSTOCK_DEVICE void cell_backward(float (&gates)[4], float c, float c_before, float dh, float& dc) {
  const float i = sigmoid(gates[0]), f = sigmoid(gates[1]), g = hyperbolic_tangent(gates[2]), o = sigmoid(gates[3]);
  const float tanh_c = hyperbolic_tangent(c);
  dc += dh * o * (1.0f - tanh_c * tanh_c);
  gates[0] = dc * g * i * (1.0f - i);
  gates[1] = dc * c_before * f * (1.0f - f);
  gates[2] = dc * i * (1.0f - g * g);
  gates[3] = dh * tanh_c * o * (1.0f - o);
  dc *= f;
}

PENSTOCK_DEVICE float low_half(uint32_t pair) { return device::bits_to_float(pair << 16); }
PENSTOCK_DEVICE float high_half(uint32_t pair) { return device::bits_to_float(pair & 0xffff0000u); }
PENSTOCK_DEVICE float widen(uint16_t value) { return device::bits_to_float(uint32_t(value) << 16); }

// The four gates' biases of a unit.
PENSTOCK_DEVICE void load_biases(const float* of_unit, float (&biases)[4]) {
  PENSTOCK_UNROLL
  for (int gate = 0; gate < 4; ++gate) biases[gate] = of_unit == nullptr ? 0.0f : of_unit[gate];
}

}  // namespace penstock::lstm::cuda
