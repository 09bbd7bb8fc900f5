#include "data/shards.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace penstock {
namespace {

void read_at(const Shard& shard, void* out, int64_t size, int64_t at) {
  auto* bytes = static_cast<char*>(out);
  while (size > 0) {
    const ssize_t got = pread(shard.file, bytes, static_cast<size_t>(size), at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw std::runtime_error(shard.name + ": cannot be read: " + std::strerror(errno));
    if (got == 0) throw std::runtime_error(shard.name + ": is shorter than it was when the store was opened");
    bytes += got;
    at += got;
    size -= got;
  }
}

// Widens ids to int32 and returns the greatest.
template <typename Id>
uint32_t widen(const Id* from, int64_t count, int32_t* to) {
  Id greatest = 0;
  for (int64_t i = 0; i < count; ++i) {
    to[i] = static_cast<int32_t>(from[i]);
    greatest = std::max(greatest, from[i]);
  }
  return greatest;
}

constexpr int64_t kChunk = 4096;  // tokens a pread fetches at a time

}  // namespace

Shards::Shards(int width, int64_t vocab_size) : width_(width), vocab_size_(vocab_size) {
  if (width != 2 && width != 4) throw std::invalid_argument("width must be 2 or 4 bytes");
}

Shards::~Shards() {
  for (const Shard& shard : shards_)
    if (shard.file >= 0) close(shard.file);
}

void Shards::add(Shard shard) {
  row_starts_.push_back(row_starts_.back() + shard.rows);
  shards_.push_back(std::move(shard));
}

Shards::Place Shards::locate(int64_t row) const {
  if (row < 0 || row >= rows())
    throw std::runtime_error("row " + std::to_string(row) + " of a store of " + std::to_string(rows()) + " rows");
  const auto after = std::upper_bound(row_starts_.begin(), row_starts_.end(), row);
  const Shard& shard = shards_[after - row_starts_.begin() - 1];
  const int64_t local = row - *(after - 1);
  int64_t bounds[2];
  if (shard.file >= 0) {
    read_at(shard, bounds, sizeof bounds, shard.offsets_at + local * int64_t{sizeof(int64_t)});
  } else {
    bounds[0] = shard.offsets[local];
    bounds[1] = shard.offsets[local + 1];
  }
  if (bounds[0] < 0 || bounds[1] < bounds[0] || bounds[1] > shard.tokens)
    throw std::runtime_error(shard.name + ": is damaged: the bounds of its row " + std::to_string(local) +
                             " are out of range");
  return {&shard, bounds[0], bounds[1] - bounds[0]};
}

void Shards::copy(const Place& place, const Cut& cut, int32_t* out) const {
  const Shard& shard = *place.shard;
  uint32_t greatest = 0;
  const auto widen_some = [&](const void* from, int64_t count, int32_t* to) {
    greatest = std::max(greatest, width_ == 2 ? widen(static_cast<const uint16_t*>(from), count, to)
                                              : widen(static_cast<const uint32_t*>(from), count, to));
  };
  const auto take = [&](int64_t begin, int64_t length, int32_t* to) {
    if (shard.file < 0) {
      widen_some(static_cast<const char*>(shard.values) + begin * width_, length, to);
      return;
    }
    alignas(8) char chunk[kChunk * 4];
    for (int64_t done = 0; done < length; done += kChunk) {
      const int64_t count = std::min(kChunk, length - done);
      read_at(shard, chunk, count * width_, shard.values_at + (begin + done) * width_);
      widen_some(chunk, count, to + done);
    }
  };
  if (cut.cuts(place.length)) {
    take(place.begin, cut.head, out);
    take(place.begin + place.length - cut.tail, cut.tail, out + cut.head);
  } else {
    take(place.begin, place.length, out);
  }
  if (place.length > 0 && greatest >= static_cast<uint64_t>(vocab_size_))
    throw std::runtime_error(shard.name + ": is damaged: token " + std::to_string(greatest) + " in a vocabulary of " +
                             std::to_string(vocab_size_));
}

void Shards::prefetch_bounds(int64_t row) const {
  if (row < 0 || row >= rows()) return;
  const auto after = std::upper_bound(row_starts_.begin(), row_starts_.end(), row);
  const Shard& shard = shards_[after - row_starts_.begin() - 1];
  if (shard.file < 0) __builtin_prefetch(shard.offsets + (row - *(after - 1)));
}

void Shards::prefetch_tokens(const Place& place) const {
  if (place.shard->file >= 0) return;
  const char* begin = static_cast<const char*>(place.shard->values) + place.begin * width_;
  for (int64_t at = 0; at < std::min<int64_t>(place.length * width_, 256); at += 64) __builtin_prefetch(begin + at);
}

void Shards::gather(const int64_t* rows, int64_t count, const Cut& cut, int32_t* values, int64_t capacity,
                    int32_t* cu_seqlens) const {
  // The rows are scattered over the store: fetching the next ones' bounds and tokens ahead hides most of the misses.
  constexpr int64_t kAhead = 16;
  capacity = std::min<int64_t>(capacity, std::numeric_limits<int32_t>::max());
  std::vector<Place> places;
  places.reserve(count);
  int64_t total = 0;
  cu_seqlens[0] = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) prefetch_bounds(rows[i + kAhead]);
    const Place place = locate(rows[i]);
    total += cut.cuts(place.length) ? cut.head + cut.tail : place.length;
    if (total > capacity)
      throw std::runtime_error(place.shard->name + ": is damaged: its rows are longer than the index says");
    cu_seqlens[i + 1] = static_cast<int32_t>(total);
    places.push_back(place);
  }
  if (total != capacity) throw std::runtime_error("the shards are damaged: rows are shorter than the index says");
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) prefetch_tokens(places[i + kAhead]);
    copy(places[i], cut, values + cu_seqlens[i]);
  }
}

}  // namespace penstock
