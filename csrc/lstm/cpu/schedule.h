// Who computes what, in which order: sequences sorted by length, threads shared out among directions and rows.
#pragma once

#include <cstdint>
#include <vector>

#include "layer.h"

namespace penstock::lstm {

struct Sequence {
  int64_t start, length;  // in tokens
  int64_t index;          // in the batch
};

struct Schedule {
  // Longest first, ties in batch order, so that the sequences still running at a step are a prefix. Bounds are clamped
  // to the tokens that exist and never overlap, whatever cu_seqlens holds.
  std::vector<Sequence> sequences;
  int64_t covered = 0;  // tokens that belong to a sequence

  // The recurrence runs as directions x parts teams: a team owns every parts-th sequence, and its members share out the
  // hidden units and meet at a barrier after each step. With one member to a team, threads may run several teams.
  int parts = 1;
  int members = 1;
  // Whether the directions run one after the other, each on all threads: so W_hh stays in the cores' own caches where a
  // core's share of one direction fits in its cache and of both does not.
  bool in_turn = false;

  // tile_rows: how many sequences a product takes at once; weight_bytes: of an element of W_hh, packed.
  Schedule(const Layer& layer, int tile_rows, int64_t weight_bytes);
  ~Schedule();  // not inline, see isa.h
};

}  // namespace penstock::lstm
