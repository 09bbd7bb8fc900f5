#include "schedule.h"

#include <unistd.h>

#include <algorithm>

namespace penstock::lstm {
namespace {

constexpr int64_t kRowsPerPart = 12;
constexpr int64_t kUnitsPerMember = 64;
// With more sequences a step computes for so long that reading W_hh again does not matter.
constexpr int64_t kFewSequences = 8;

// Bytes of a core's own cache that W_hh may take: the rest is for what the steps read and write.
int64_t cache_for_weights() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (size > 0) return size / 4 * 3;
#endif
  return 768 << 10;
}

}  // namespace

Schedule::Schedule(const Layer& layer, int tile_rows, int64_t weight_bytes) {
  sequences.reserve(layer.batch);
  int64_t end = 0;
  for (int64_t b = 0; b < layer.batch; ++b) {
    const int64_t start = std::clamp<int64_t>(layer.cu_seqlens[b], end, layer.tokens);
    end = std::clamp<int64_t>(layer.cu_seqlens[b + 1], start, layer.tokens);
    sequences.push_back({start, end - start, b});
    covered += end - start;
  }
  std::stable_sort(sequences.begin(), sequences.end(),
                   [](const Sequence& a, const Sequence& b) { return a.length > b.length; });

  // With fewer sequences to a thread the rows of a tile run short, and sharing units with a barrier is cheaper.
  const int64_t rows_per_part = std::max<int64_t>(kRowsPerPart, 2 * tile_rows);
  const auto share_out = [&](int threads) {
    parts = int(std::clamp<int64_t>(layer.batch / rows_per_part, 1, threads));
    members = int(std::clamp<int64_t>(layer.hidden_size / kUnitsPerMember, 1, threads / parts));
  };
  const int64_t weights = 4 * layer.hidden_size * layer.hidden_size * weight_bytes;
  share_out(std::max(1, layer.threads / layer.directions));
  if (layer.directions == 1 || layer.batch > kFewSequences || weights / members <= cache_for_weights()) return;
  const int members_of_one = members;
  share_out(layer.threads);
  in_turn = weights / members <= cache_for_weights();
  if (!in_turn) members = members_of_one;
}

Schedule::~Schedule() = default;

}  // namespace penstock::lstm
