// Reading rows from shards whose contents are arbitrary: whatever the offsets, tokens and rows, `gather` gives what a
// plain loop gives or throws where that finds damage, mapped and by pread alike, and touches nothing else.
//
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Icsrc
//       csrc/data/shards.cpp tests/native/fuzz_shards.cpp -o fuzz_shards && ./fuzz_shards -max_total_time=60
//
// With gcc, which has no libFuzzer, -fsanitize=address,undefined and random_inputs.cpp beside the two.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

#include "data/shards.h"

namespace {

using penstock::Cut;
using penstock::Shard;
using penstock::Shards;

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  template <typename T>
  T take() {
    T value{};
    const size_t count = std::min(sizeof value, size_);
    if (count > 0) std::memcpy(&value, data_, count);
    data_ += count;
    size_ -= count;
    return value;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

// Memory of exactly this size, so that the sanitizer sees one byte past it.
template <typename T>
std::unique_ptr<T[]> exactly(const std::vector<T>& items) {
  auto memory = std::make_unique_for_overwrite<T[]>(items.size());
  std::copy(items.begin(), items.end(), memory.get());
  return memory;
}

// Which faults an input may have. Few at a time: the first one that the reader sees hides the others.
enum Fault : uint8_t { kOffsets = 1, kTokens = 2, kIds = 4, kRows = 8, kCapacity = 16 };

struct Contents {
  std::vector<int64_t> offsets;  // rows + 1
  std::vector<uint32_t> tokens;
};

Contents take_contents(Input& input, uint8_t faults, int width, int64_t vocab_size) {
  Contents contents{{0}, {}};
  const int rows = input.take<uint8_t>() % 16;
  for (int i = 0; i < rows; ++i) {
    const auto length = input.take<uint8_t>();
    const bool any = (faults & kOffsets) != 0 && length >= 0xe0;
    const auto next = static_cast<uint64_t>(contents.offsets.back()) + length % 8;  // may go round
    contents.offsets.push_back(any ? input.take<int64_t>() : static_cast<int64_t>(next));
  }
  int64_t tokens = std::clamp<int64_t>(contents.offsets.back(), 0, 200);
  if ((faults & kTokens) != 0) tokens = std::max<int64_t>(0, tokens + input.take<uint8_t>() % 5 - 2);
  const int64_t most = width == 2 ? 0xffff : 0xffffffff;
  for (int64_t i = 0; i < tokens; ++i) {
    const auto id = input.take<uint8_t>();
    const int64_t last = std::min(vocab_size - 1, most);
    const int64_t beyond = (faults & kIds) != 0 && id >= 0xf0 ? std::min(last + 1, most) : last;
    contents.tokens.push_back(static_cast<uint32_t>(id >= 0xe0 ? beyond : id % vocab_size));
  }
  return contents;
}

template <typename Id>
std::vector<char> as_bytes(const std::vector<uint32_t>& tokens) {
  std::vector<char> bytes(tokens.size() * sizeof(Id));
  for (size_t i = 0; i < tokens.size(); ++i) {
    const Id id = static_cast<Id>(tokens[i]);
    std::memcpy(bytes.data() + i * sizeof id, &id, sizeof id);
  }
  return bytes;
}

// What the rows hold, by a plain loop; nothing where there is damage.
std::optional<std::vector<int32_t>> expected(const std::vector<Contents>& shards, const std::vector<int64_t>& rows,
                                             int64_t vocab_size, const Cut& cut) {
  std::vector<int32_t> values;
  for (int64_t row : rows) {
    if (row < 0) return {};
    const Contents* shard = nullptr;
    for (const Contents& candidate : shards) {
      const auto count = static_cast<int64_t>(candidate.offsets.size()) - 1;
      if (row < count) {
        shard = &candidate;
        break;
      }
      row -= count;
    }
    if (shard == nullptr) return {};
    const int64_t begin = shard->offsets[row], end = shard->offsets[row + 1];
    if (begin < 0 || end < begin || end > static_cast<int64_t>(shard->tokens.size())) return {};
    for (int64_t i = begin; i < end; ++i) {
      if (cut.cuts(end - begin) && i >= begin + cut.head && i < end - cut.tail) continue;
      if (shard->tokens[i] >= vocab_size) return {};
      values.push_back(static_cast<int32_t>(shard->tokens[i]));
    }
  }
  return values;
}

// How many tokens the index would give for these rows.
int64_t as_the_bounds_say(const std::vector<Contents>& shards, const std::vector<int64_t>& rows, const Cut& cut) {
  std::vector<int64_t> lengths;
  for (const Contents& shard : shards)
    for (size_t i = 0; i + 1 < shard.offsets.size(); ++i)
      lengths.push_back(
          static_cast<int64_t>(static_cast<uint64_t>(shard.offsets[i + 1]) - static_cast<uint64_t>(shard.offsets[i])));
  int64_t total = 0;
  for (const int64_t row : rows)
    if (row >= 0 && row < static_cast<int64_t>(lengths.size()) && lengths[row] > -1000 && lengths[row] < 1000)
      total += cut.cuts(lengths[row]) ? cut.head + cut.tail : lengths[row];
  return std::max<int64_t>(total, 0);
}

void check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

void gather(const Shards& shards, const std::vector<int64_t>& rows, const Cut& cut, int64_t capacity,
            const std::optional<std::vector<int32_t>>& wanted) {
  const auto row_memory = exactly(rows);
  const auto values = std::make_unique<int32_t[]>(capacity);
  const auto bounds = std::make_unique<int32_t[]>(rows.size() + 1);
  try {
    shards.gather(row_memory.get(), static_cast<int64_t>(rows.size()), cut, values.get(), capacity, bounds.get());
  } catch (const std::runtime_error&) {
    check(!wanted || static_cast<int64_t>(wanted->size()) != capacity, "sound rows were refused");
    return;
  }
  check(wanted && static_cast<int64_t>(wanted->size()) == capacity, "damage was not seen");
  check(std::equal(wanted->begin(), wanted->end(), values.get()), "other tokens");
  check(bounds[0] == 0 && bounds[rows.size()] == capacity, "other bounds");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const auto faults = input.take<uint8_t>();
  const int width = input.take<uint8_t>() % 2 == 0 ? 2 : 4;
  const auto vocabulary = input.take<uint16_t>();
  const int64_t vocab_size = vocabulary >= 0xc000 ? int64_t{1} << 31 : vocabulary % 1000 + 1;

  std::vector<Contents> contents;
  int64_t num_rows = 0;
  for (int left = input.take<uint8_t>() % 4; left > 0; --left) {
    contents.push_back(take_contents(input, faults, width, vocab_size));
    num_rows += static_cast<int64_t>(contents.back().offsets.size()) - 1;
  }
  std::vector<int64_t> rows;
  for (int left = num_rows > 0 ? input.take<uint8_t>() % 48 : 0; left > 0; --left) {
    const auto row = input.take<uint8_t>();
    rows.push_back((faults & kRows) != 0 && row >= 0xf0 ? (row >= 0xf8 ? input.take<int64_t>() : num_rows)
                                                        : row % num_rows);
  }
  const auto kept = input.take<uint8_t>();
  const Cut cut = kept % 4 == 0 ? Cut{} : Cut{kept / 4 % 5, kept / 20 % 5};
  const auto wanted = expected(contents, rows, vocab_size, cut);
  int64_t capacity = as_the_bounds_say(contents, rows, cut);
  if ((faults & kCapacity) != 0) capacity = std::max<int64_t>(0, capacity + input.take<uint8_t>() % 5 - 2);

  Shards mapped(width, vocab_size), by_pread(width, vocab_size);
  std::vector<std::unique_ptr<char[]>> values;
  std::vector<std::unique_ptr<int64_t[]>> offsets;
  for (const Contents& shard : contents) {
    const auto bytes = width == 2 ? as_bytes<uint16_t>(shard.tokens) : as_bytes<uint32_t>(shard.tokens);
    const auto shard_rows = static_cast<int64_t>(shard.offsets.size()) - 1;
    const auto num_tokens = static_cast<int64_t>(shard.tokens.size());
    values.push_back(exactly(bytes));
    offsets.push_back(exactly(shard.offsets));
    mapped.add({"mapped", shard_rows, num_tokens, values.back().get(), offsets.back().get()});

    const int file = memfd_create("shard", MFD_CLOEXEC);
    const auto offset_bytes = static_cast<ssize_t>(shard.offsets.size() * sizeof(int64_t));
    check(file >= 0 && write(file, shard.offsets.data(), offset_bytes) == offset_bytes, "no file");
    check(write(file, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()), "no file");
    by_pread.add({"by pread", shard_rows, num_tokens, nullptr, nullptr, file, offset_bytes, 0});
  }
  gather(mapped, rows, cut, capacity, wanted);
  gather(by_pread, rows, cut, capacity, wanted);
  return 0;
}
