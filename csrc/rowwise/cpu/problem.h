#pragma once

#include <cstdint>

#include "scratch.h"
#include "types.h"

namespace penstock::rowwise {

// Rows are shared out in pieces of fixed size, at most this many, whatever the number of threads: sums over rows are
// added up piece by piece, so that they do not depend on the threads.
constexpr int64_t kMostPieces = 64, kLeastRows = 16;

// Which units of each row are kept, by the rule of kernels/philox.py.
struct Dropout {
  uint32_t threshold, stream;  // threshold 0: no dropout
  float scale;
  uint64_t seed;
  int64_t batch;
  const int32_t* cu_seqlens;  // (batch + 1)
  const int64_t* ids;         // (batch), or null for 0, 1, 2 ...
  bool per_sequence;          // the units of each sequence's first row in all of its rows
};

// out = (z - mean) rstd weight + bias with z = residual + dropout(x + x_bias); kernels/norm/__init__.py says more.
// Tensors are dense, (rows, width); parameters and their gradients float32, (width).
struct NormProblem {
  DType dtype, residual_dtype;  // the latter, of residual and z, is float32 where they differ
  int64_t rows, width;
  float eps;
  Dropout dropout;
  const void *x, *residual;
  const float *x_bias, *weight, *bias;  // x_bias and bias may be null
  void *out, *z;                        // z may be null: it is not asked for
  void* normal;                         // (z - mean) rstd; may be null: nothing is kept for backward
  float* rstd;                          // (rows), null as normal
  // backward
  const void *grad_out, *grad_z;  // grad_z may be null
  void *grad_x, *grad_residual;   // grad_x is null where it would be grad_residual again
  float* sums;                    // (pieces, 3, width): of weight, bias and x_bias
};

// out = gelu(x + bias), and its derivative, which is all that backward needs.
struct GeluProblem {
  DType dtype;
  int64_t rows, width;
  const void* x;
  const float* bias;       // may be null
  void *out, *derivative;  // derivative may be null
  // backward
  const void *grad_out, *saved_derivative;
  void* grad_x;
  float* sums;  // (pieces, width), null without bias
};

// out = gelu(gate) value, of the halves (gate, value) of each row of x + bias; backward starts from x again.
struct GegluProblem {
  DType dtype;
  int64_t rows, width;  // of out; x and its gradient are (rows, 2 width)
  const void* x;
  const float* bias;  // (2 width), may be null
  void* out;
  // backward
  const void* grad_out;
  void* grad_x;
  float* sums;  // (pieces, 2 width), null without bias
};

// Heads of queries or keys: x, (tokens, count, head_dim), by its strides in elements, the last dimension dense; out is
// dense.
struct Heads {
  const void* x;
  void* out;
  int64_t count, token_stride, head_stride;
};

// out = x cos + rotate_half(x) sin of q and k, or the transposed rotation, with which their gradients go back.
struct RotaryProblem {
  DType dtype;
  int64_t rows, head_dim;  // a row is a token
  bool transposed;
  const float *cos, *sin;  // (rows, head_dim)
  Heads q, k;
};

// out = dropout(x)
struct DropoutProblem {
  DType dtype;
  int64_t rows, width;
  Dropout dropout;
  const void* x;
  void* out;
};

// AdamW (Loshchilov & Hutter, ICLR 2019) in place on the rows names[0], names[1], ..., which are distinct: with
// g = gradient / divisor, mean and square move to g and g^2 by rest = 1 - beta, and then
// parameter = decay parameter - rate mean / (correction sqrt(square) + eps).
struct AdamWProblem {
  int64_t rows, width;  // rows: how many are named
  const int64_t* names;
  float *parameter, *mean, *square;  // (table rows, width)
  const float* gradient;             // the same
  float beta1, beta2, rest1, rest2, decay, rate, correction, eps, divisor;
};

// parameter *= factors[0], then *= factors[1], ..., each rounded, on the rows that are named.
struct DecayProblem {
  int64_t rows, width, count;  // count: of factors
  const int64_t* names;
  float* parameter;
  const float* factors;
};

// Rows [first, last) that are computed at a time; `piece` is their number.
struct Item {
  int64_t piece, first, last;
};

// One instruction set's kernels.
struct Kernels {
  void (*norm_forward)(const NormProblem&, const Item&, Scratch&);
  void (*norm_backward)(const NormProblem&, const Item&, Scratch&);
  void (*gelu_forward)(const GeluProblem&, const Item&);
  void (*gelu_backward)(const GeluProblem&, const Item&);
  void (*geglu_forward)(const GegluProblem&, const Item&);
  void (*geglu_backward)(const GegluProblem&, const Item&);
  void (*rotary)(const RotaryProblem&, const Item&);
  void (*dropout)(const DropoutProblem&, const Item&, Scratch&);
  void (*adamw)(const AdamWProblem&, const Item&);
  void (*decay)(const DecayProblem&, const Item&);
};
extern const Kernels portable_kernels, avx2_kernels, avx512_kernels, avx512_bf16_kernels;

}  // namespace penstock::rowwise
