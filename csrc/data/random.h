// The generator behind every shuffle of the plan: xoshiro256** (Blackman & Vigna, 2018) seeded by SplitMix64. It is
// here and not numpy's because a plan must be the same in every version of every library.
#pragma once

#include <cstdint>
#include <utility>

namespace penstock {

class Random {
 public:
  Random(uint64_t seed, uint64_t stream) {
    uint64_t x = split_mix(seed) ^ (stream * 0x9E3779B97F4A7C15u);
    for (auto& word : state_) word = split_mix(x += 0x9E3779B97F4A7C15u);
  }

  uint64_t next() {
    const uint64_t result = rotate(state_[1] * 5, 7) * 9;
    const uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = rotate(state_[3], 45);
    return result;
  }

  // Uniform in [0, bound), without bias (Lemire, "Fast random integer generation in an interval", 2019).
  uint64_t below(uint64_t bound) {
    unsigned __int128 product = static_cast<unsigned __int128>(next()) * bound;
    if (static_cast<uint64_t>(product) < bound) {
      const uint64_t threshold = -bound % bound;
      while (static_cast<uint64_t>(product) < threshold) product = static_cast<unsigned __int128>(next()) * bound;
    }
    return static_cast<uint64_t>(product >> 64);
  }

  // Fisher-Yates.
  template <typename T>
  void shuffle(T* items, int64_t count) {
    for (int64_t i = count - 1; i > 0; --i) std::swap(items[i], items[below(static_cast<uint64_t>(i) + 1)]);
  }

 private:
  static uint64_t rotate(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }

  static uint64_t split_mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

  uint64_t state_[4];
};

}  // namespace penstock
