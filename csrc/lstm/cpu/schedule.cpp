#include "schedule.h"

#include <algorithm>

namespace penstock::lstm {
namespace {

// Below this many sequences to a thread the rows of a tile run short, and sharing units with a barrier is cheaper.
constexpr int64_t kRowsPerPart = 12;
constexpr int64_t kUnitsPerMember = 64;

}  // namespace

Schedule::Schedule(const Layer& layer) {
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

  const int per_direction = std::max(1, layer.threads / layer.directions);
  parts = int(std::clamp<int64_t>(layer.batch / kRowsPerPart, 1, per_direction));
  members = int(std::clamp<int64_t>(layer.hidden_size / kUnitsPerMember, 1, per_direction / parts));
}

}  // namespace penstock::lstm
