// Philox with seven rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and the two rules by
// which penstock drops units and attention weights. kernels/philox.py states them too, with the reasons; the tests
// compare the two.
#pragma once

#include <array>
#include <cstdint>

#include "types.h"

namespace penstock {

constexpr int kPhiloxRounds = 7;
constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u, kPhiloxM2 = 0xD256D193u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;

PENSTOCK_INLINE std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = uint64_t{kPhiloxM0} * counter[0];
    const uint64_t p1 = uint64_t{kPhiloxM1} * counter[2];
    counter = {uint32_t(p1 >> 32) ^ counter[1] ^ key0, uint32_t(p1), uint32_t(p0 >> 32) ^ counter[3] ^ key1,
               uint32_t(p0)};
    key0 += kPhiloxW0;
    key1 += kPhiloxW1;
  }
  return counter;
}

// Dropout compares 16 random bits with a threshold: eight units share one Philox call.
//   counter = (unit / 8, position, stream, low half of the example id), key = seed with the id's high half folded in
//   the bits of unit u: half-word u % 8 of the four words, low half first; the unit is dropped if bits < threshold
struct DropoutKey {
  uint32_t key0, key1, stream, id_low;
  PENSTOCK_INLINE DropoutKey(uint64_t seed, int64_t example_id, uint32_t stream_)
      : key0(uint32_t(seed)),
        key1(uint32_t(seed >> 32) ^ uint32_t(uint64_t(example_id) >> 32)),
        stream(stream_),
        id_low(uint32_t(example_id)) {}
};

PENSTOCK_INLINE std::array<uint16_t, 8> dropout_bits(const DropoutKey& key, uint32_t position, uint32_t unit_block) {
  const auto words = philox4x32({unit_block, position, key.stream, key.id_low}, key.key0, key.key1);
  std::array<uint16_t, 8> bits;
  for (int i = 0; i < 4; ++i) {
    bits[2 * i] = uint16_t(words[i]);
    bits[2 * i + 1] = uint16_t(words[i] >> 16);
  }
  return bits;
}

// Attention weights share a call by fours: queries i and i + 8, keys j and j + 8 of a block of 16 x 16.
//   counter = (of_query ^ pair(query), of_key ^ pair(key)) of Philox2x32, pair(i) = i / 16 * 8 + i % 8
//   the bits: half-word key / 8 % 2, low half first, of word query / 8 % 2; the weight is dropped if bits < threshold
struct HeadKey {
  uint32_t of_query, of_key, key;
  PENSTOCK_INLINE HeadKey(uint64_t seed, int64_t example_id, uint32_t head) {
    const DropoutKey example(seed, example_id, head);
    const auto words = philox4x32({0xFFFFFFFFu, 0xFFFFFFFFu, head, example.id_low}, example.key0, example.key1);
    of_query = words[0], of_key = words[1], key = words[2];
  }
};

PENSTOCK_INLINE std::array<uint32_t, 2> philox2x32(std::array<uint32_t, 2> counter, uint32_t key) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product = uint64_t{kPhiloxM2} * counter[0];
    counter = {uint32_t(product >> 32) ^ counter[1] ^ key, uint32_t(product)};
    key += kPhiloxW0;
  }
  return counter;
}

}  // namespace penstock
