// One LSTM layer as the recurrent kernels see it: addresses on the device, rows contiguous, bfloat16 as 16-bit words.
//
// D directions, B sequences, H units. A token's 4H gate values lie unit by unit: i, f, g, o of unit 0, of unit 1, ...
// Biases are added in float: in bfloat16 a large one, as of forget gates, would drown what it is added to.
#pragma once

#include <cstdint>

#include "schedule.h"

namespace penstock::lstm::cuda {

struct Problem {
  const Span* ranked;  // (B), longest first
  int32_t batch, directions;
  int32_t tiles;        // of one direction; L = tiles * N lanes
  int32_t groups;       // of blocks in the launch
  const float* biases;  // (D, 4H), in the order of the gates, or null for zeros
  uint64_t* exchange;   // words through which blocks of a grid meet, zero at launch; null for clusters
};

struct ForwardProblem : Problem {
  const uint16_t* projections;  // (rows, D, 4H) of the inputs, less the biases
  const int32_t* ids;           // (tokens): the row of the projections that each token reads, or null for its own
  uint16_t* gates;       // (tokens, D, 4H) pre-activations less the biases, or null; without ids maybe `projections`
  const uint16_t* w_hh;  // (D, 4H, H), gates i, f, g, o one after the other
  const uint16_t* h0;    // (D, B, H) or null for zeros
  const float* c0;       // (D, B, H) or null for zeros
  uint16_t* y;           // (tokens, D * H) or null if not wanted
  float* cells;          // (tokens, D * H) or null if not wanted
  uint16_t* h_n;         // (D, B, H); of sequences without tokens nothing is written
  float* c_n;            // (D, B, H); likewise
  uint16_t* pooled;      // (B, D * H) or null if not wanted: y pooled over each sequence; likewise
  const float* shares;   // (B): of a token in its sequence's mean; null for the maximum
  int32_t* maximum;      // (B, D * H) or null if not wanted: the rows of the maxima; likewise
};

struct BackwardProblem : Problem {
  uint16_t* dgates;            // (tokens, D, 4H) out: the gradients of the pre-activations; may be `gates`
  const uint16_t* gates;       // (tokens, D, 4H) pre-activations less the biases
  const uint16_t* transposed;  // W_hh as (D, H, 4H): row = unit it multiplies, columns in the order of `gates`
  const float* cells;          // (tokens, D * H)
  const float* c0;             // (D, B, H) or null for zeros
  const uint16_t* dy;          // (tokens, D * H) or null for zeros
  bool pooled;                 // dy is (B, D * H): a row for all tokens of a sequence, ...
  const int32_t* maximum;      // ... or, unless null, (B, D * H), for the one in this row
  const float* dh_n;           // (D, B, H) or null for zeros
  const float* dc_n;           // (D, B, H) or null for zeros
  float* dc0;                  // (D, B, H) or null if not wanted; of sequences without tokens nothing is written
};

}  // namespace penstock::lstm::cuda
