// One LSTM layer on ragged sequences, as the caller hands it over: plain pointers, sizes in elements, rows contiguous.
//
// T is the storage type (float or bf16) of x, weights, h and their gradients; c and its gradient are float.
// Direction d of y owns columns [d * H, (d + 1) * H). Gate order is i, f, g, o.
//
// A layer that reads token embeddings has `ids` and `table` instead of x: each id of the batch is then projected once,
// however many tokens have it, and x's gradient is the table's.
#pragma once

#include <cstdint>

#include "types.h"

namespace penstock::lstm {

enum class Pool { none, max, mean };  // of y over each sequence's tokens

constexpr int kMaxDirections = 2;

struct Weights {
  const void* w_ih;  // T (4H, I)
  const void* w_hh;  // T (4H, H)
  const void* b_ih;  // T (4H) or null
  const void* b_hh;  // T (4H) or null
};

struct Layer {
  DType dtype;
  int64_t tokens, batch, input_size, hidden_size;
  int directions;
  int threads;
  const void* x;       // T (tokens, I), or null
  const int32_t* ids;  // (tokens), rows of the table, or null
  const void* table;   // (vocabulary, I), of table_dtype, or null
  DType table_dtype;   // float32, or T
  int64_t vocabulary;
  const int32_t* cu_seqlens;  // (batch + 1)
  Weights weights[kMaxDirections];
  const void* packed;  // the weights as Kernels::pack left them, for forward, or null
  bool quantised;      // products in 8 bits (quantised.h), for forward without a backward; h0 lies between -1 and 1
  const void* h0;      // T (directions, batch, H) or null for zeros
  const float* c0;     // (directions, batch, H) or null for zeros
  Pool pool;
};

struct Forward {
  void* y;           // T (tokens, directions * H); null if not wanted
  void* h_n;         // T (directions, batch, H)
  float* c_n;        // (directions, batch, H)
  void* gates;       // T (tokens, directions, 4H) pre-activations, in the order of gate_layout.h; null if not wanted
  float* c;          // (tokens, directions, H); null if not wanted
  void* pooled;      // T (batch, directions * H), zero for an empty sequence; null without pooling
  int32_t* maximum;  // (batch, directions * H), the token of each maximum; null unless the pooling is `max`
};

struct WeightGradients {
  void* w_ih;  // T (4H, I)
  void* w_hh;  // T (4H, H)
  void* bias;  // T (4H), the gradient of b_ih and of b_hh alike, or null
};

struct Backward {
  const void* y;                            // what forward wrote
  const void* gates;                        // what forward wrote
  const float* c;                           // what forward wrote
  const void* dy;                           // T (tokens, directions * H) or null for zeros
  const void* dpooled;                      // T (batch, directions * H) or null for zeros
  const int32_t* maximum;                   // what forward wrote
  const void* dh_n;                         // T (directions, batch, H) or null for zeros
  const float* dc;                          // (tokens, directions * H), the gradient of every c, or null for zeros
  const float* dc_n;                        // (directions, batch, H) or null for zeros
  void* dx;                                 // T (tokens, I), or like the table; null if not wanted
  WeightGradients weights[kMaxDirections];  // all null if not wanted
  void* dh0;                                // T (directions, batch, H) or null if not wanted
  float* dc0;                               // (directions, batch, H) or null if not wanted
};

}  // namespace penstock::lstm
