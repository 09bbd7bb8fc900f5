// Which sequence runs where and when: plain arithmetic on the host and on the device, no CUDA types.
//
// A direction's batch runs in L lanes. A lane runs several sequences end to end, its state reset between them, so
// that lanes stay full whatever the lengths. Sequences are ranked longest first and dealt to the lanes back and forth:
// rank r goes to lane r % L in even rounds r / L, to lane L - 1 - r % L in odd ones, which evens out the lanes' totals.
// N lanes make a tile, which a group of thread blocks runs step by step until its last lane ends.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__CUDACC__)
#define PENSTOCK_BOTH __host__ __device__ __forceinline__
#else
#define PENSTOCK_BOTH inline
#endif

namespace penstock::lstm::cuda {

// A sequence, cut to the tokens that exist whatever cu_seqlens holds.
struct alignas(16) Span {
  int32_t start, length;  // in tokens
  int32_t sequence;       // in the batch; negative for none
  int32_t unused;
};

PENSTOCK_BOTH Span span_of(const int32_t* cu_seqlens, int32_t sequence, int32_t tokens) {
  int32_t start = cu_seqlens[sequence], end = cu_seqlens[sequence + 1];
  start = start < 0 ? 0 : start > tokens ? tokens : start;
  end = end < start ? start : end > tokens ? tokens : end;
  return {start, end - start, sequence, 0};
}

// Whether `other` comes before `span` when sequences are ranked: longer ones first, ties in batch order. Counting those
// that do gives a sequence's rank, a permutation whatever the lengths.
PENSTOCK_BOTH bool comes_before(const Span& other, const Span& span) {
  return other.length > span.length || (other.length == span.length && other.sequence < span.sequence);
}

PENSTOCK_BOTH int64_t rank_of_round(int64_t round, int32_t lane, int32_t lanes) {
  return round * lanes + (round % 2 ? lanes - 1 - lane : lane);
}

// What a lane does at a step: the token's row and its sequence, both negative when the lane has ended.
struct alignas(8) LaneStep {
  int32_t row, sequence;
};

// Walks one lane through its steps. Forward direction 0 and backward direction 1 read a sequence from its first row,
// the other two from its last.
class LaneCursor {
 public:
  PENSTOCK_BOTH LaneCursor(const Span* ranked, int32_t batch, int32_t lane, int32_t lanes, bool from_first_row)
      : ranked_(ranked), batch_(batch), lane_(lane), lanes_(lanes), from_first_row_(from_first_row) {
    next_ = span(0);
  }

  PENSTOCK_BOTH LaneStep advance() {
    if (remaining_ == 0) {
      while (next_.sequence >= 0 && next_.length == 0) next_ = span(++round_);
      if (next_.sequence < 0) return {-1, -1};
      sequence_ = next_.sequence;
      remaining_ = next_.length;
      row_ = from_first_row_ ? next_.start : next_.start + next_.length - 1;
      next_ = span(++round_);  // long before it is needed: the load is not waited for
    }
    const LaneStep step = {row_, sequence_};
    row_ += from_first_row_ ? 1 : -1;
    --remaining_;
    return step;
  }

 private:
  PENSTOCK_BOTH Span span(int64_t round) const {
    const int64_t rank = rank_of_round(round, lane_, lanes_);
    return rank < batch_ ? ranked_[rank] : Span{0, 0, -1, 0};
  }

  const Span* ranked_;
  int32_t batch_, lane_, lanes_;
  bool from_first_row_;
  int32_t round_ = 0, row_ = 0, remaining_ = 0, sequence_ = -1;
  Span next_;
};

// The predicted time of one forward step, in nanoseconds: what every step costs, and what each eight lanes add. The
// figures follow from instruction counts and published latencies (README.md); none was measured.
struct StepTime {
  double fixed, per_eight_lanes;
  double operator()(int lanes) const { return fixed + per_eight_lanes * (lanes / 8); }
};

constexpr int kLaneWidths[] = {8, 16, 32};  // N: the widths of a tile that kernels are compiled for

struct Lanes {
  int width;  // index into kLaneWidths
  int tiles;  // of one direction; L = N * tiles
};

// The split that is predicted to end first. At most groups[i] tiles of kLaneWidths[i] lanes run at once, 0 where that
// width cannot run; one of them can. It depends on sizes alone: no length is read from the device.
inline Lanes choose_lanes(int64_t batch, int64_t tokens, int64_t max_seqlen, int directions, const int (&groups)[3],
                          StepTime time) {
  Lanes best{};
  double best_time = 0;
  for (int i = 0; i < 3; ++i) {
    if (groups[i] == 0) continue;
    const int lanes = kLaneWidths[i];
    const int64_t wanted = std::max<int64_t>(1, (batch + lanes - 1) / lanes);
    const int64_t tiles = std::min<int64_t>(wanted, std::max(1, groups[i] / directions));
    const double turns = double((tiles * directions + groups[i] - 1) / groups[i]);
    const double steps = std::max(double(max_seqlen), double(tokens) / double(tiles * lanes));
    const double total = turns * steps * time(lanes);
    if (best.tiles == 0 || total < best_time) {
      best_time = total;
      best = {i, int(tiles)};
    }
  }
  return best;
}

}  // namespace penstock::lstm::cuda
