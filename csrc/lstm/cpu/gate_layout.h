// The order of a token's 4H gate values in memory: blocks of 16 units, in each block the 16 values of i, then f, g, o,
// so that a cell's four gates lie within two cache lines. The last block is narrower when 16 does not divide H.
#pragma once

#include <cstdint>

#include "types.h"

namespace penstock::lstm {

constexpr int64_t kUnitBlock = 16;

struct GateSlot {
  int64_t offset;  // of gate i of the unit
  int64_t stride;  // from one gate of the unit to its next
};

PENSTOCK_INLINE GateSlot gate_slot(int64_t unit, int64_t hidden_size) {
  const int64_t first = unit / kUnitBlock * kUnitBlock;
  const int64_t width = hidden_size - first < kUnitBlock ? hidden_size - first : kUnitBlock;
  return {4 * first + (unit - first), width};
}

// The row of W_ih, W_hh and the biases (gate * H + unit) that belongs to position `position` of a token's gates.
PENSTOCK_INLINE int64_t gate_row(int64_t position, int64_t hidden_size) {
  const int64_t first = position / (4 * kUnitBlock) * kUnitBlock;
  const int64_t width = hidden_size - first < kUnitBlock ? hidden_size - first : kUnitBlock;
  const int64_t within = position - 4 * first;
  const int64_t gate = width == kUnitBlock ? within / kUnitBlock : within / width;  // a division by 16 is a shift
  return gate * hidden_size + first + within - gate * width;
}

}  // namespace penstock::lstm
