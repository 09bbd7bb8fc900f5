// The tokens of a store's shards, read row by row: from a memory map, or by pread where a map is unwelcome.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace penstock {

struct Shard {
  std::string name;
  int64_t rows = 0, tokens = 0;
  // mapped
  const void* values = nullptr;
  const int64_t* offsets = nullptr;  // rows + 1
  // by pread: where the two buffers begin in the file
  int file = -1;
  int64_t values_at = 0, offsets_at = 0;
};

// What is read of a row with more than head + tail tokens: its first `head` and its last `tail`.
struct Cut {
  int64_t head = std::numeric_limits<int64_t>::max(), tail = 0;

  bool cuts(int64_t length) const { return length - tail > head; }  // the sum would overflow where nothing is cut
};

class Shards {
 public:
  // `width`: bytes of a token id, 2 or 4. Ids at or above `vocab_size` are refused as damage.
  Shards(int width, int64_t vocab_size);
  ~Shards();
  Shards(const Shards&) = delete;
  Shards& operator=(const Shards&) = delete;

  void add(Shard shard);  // takes over shard.file
  int64_t rows() const { return row_starts_.back(); }

  // Writes the tokens of `rows`, cut, end to end to `values` and their bounds to `cu_seqlens` (count + 1).
  // `capacity` is what the index says they then add up to. Throws std::runtime_error when the shards do not agree;
  // nothing outside their buffers, or past `capacity`, is touched whatever the files contain.
  void gather(const int64_t* rows, int64_t count, const Cut& cut, int32_t* values, int64_t capacity,
              int32_t* cu_seqlens) const;

 private:
  struct Place {
    const Shard* shard;
    int64_t begin, length;
  };
  Place locate(int64_t row) const;
  void copy(const Place& place, const Cut& cut, int32_t* out) const;
  void prefetch_bounds(int64_t row) const;
  void prefetch_tokens(const Place& place) const;

  int width_;
  int64_t vocab_size_;
  std::vector<Shard> shards_;
  std::vector<int64_t> row_starts_{0};
};

}  // namespace penstock
