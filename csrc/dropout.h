// The dropout rule of philox.h for many units at once, in the namespace PENSTOCK_ISA (see simd.h).
#pragma once

#include "philox.h"
#include "simd.h"

namespace penstock::PENSTOCK_ISA {

// One vector of 64-bit elements per word of the counter: the word is the low half, whatever the high half holds, since
// that is what the widening multiplication reads.
#if defined(__AVX512BW__)
constexpr int kCalls = 8;
typedef uint64_t Words __attribute__((vector_size(64)));
PENSTOCK_INLINE Words multiply_low_halves(Words a, Words b) { return (Words)_mm512_mul_epu32((__m512i)a, (__m512i)b); }
PENSTOCK_INLINE Words exclusive_or(Words a, Words b, Words c) {
  return (Words)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
}
#elif defined(__AVX2__)
constexpr int kCalls = 4;
typedef uint64_t Words __attribute__((vector_size(32)));
PENSTOCK_INLINE Words multiply_low_halves(Words a, Words b) { return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
PENSTOCK_INLINE Words exclusive_or(Words a, Words b, Words c) { return a ^ b ^ c; }
#endif

// Which units are kept at each position of one (example, stream).
class KeepRule {
 public:
  // threshold: at most 65536
  KeepRule(const DropoutKey& key, uint32_t threshold) : key_(key), threshold_(threshold) {
    for (uint32_t round = 0; round < 10; ++round) {
      keys_[2 * round] = uint32_t(key.key0 + round * kPhiloxW0);
      keys_[2 * round + 1] = uint32_t(key.key1 + round * kPhiloxW1);
    }
  }

  // Bit u % 64 of words[u / 64] says whether unit first + u is kept, for u < count; bits beyond mean nothing, but words
  // must have room for every started group of 64. `first` is a multiple of 64.
  void fill(uint32_t position, uint32_t first, int64_t count, uint64_t* words) const {
    for (int64_t group = 0; group < (count + 63) / 64; ++group)
      words[group] = threshold_ > 65535 ? 0 : group_of_64(position, first / 8 + uint32_t(group) * 8);
  }

 private:
  uint64_t group_of_64(uint32_t position, uint32_t block) const {
    uint64_t kept = 0;
#if defined(__AVX2__)
    for (int call = 0; call < 8; call += kCalls) {
      // in this order of blocks two interleavings below lay the half-words out in the order of the units
      Words c0, c1 = Words{} + position, c2 = Words{} + key_.stream, c3 = Words{} + key_.id_low;
      for (int i = 0; i < kCalls; ++i) c0[i] = uint32_t(i / 2 + i % 2 * (kCalls / 2));
      c0 += uint64_t{block + uint32_t(call)};
      for (int round = 0; round < 10; ++round) {
        const Words p0 = multiply_low_halves(c0, Words{} + kPhiloxM0),
                    p1 = multiply_low_halves(c2, Words{} + kPhiloxM1);
        c0 = exclusive_or(p1 >> 32, c1, Words{} + keys_[2 * round]);
        c2 = exclusive_or(p0 >> 32, c3, Words{} + keys_[2 * round + 1]);
        c1 = p1;
        c3 = p0;
      }
#if defined(__AVX512BW__)
      const __m512i low = _mm512_mask_blend_epi32(0xAAAA, (__m512i)c0, (__m512i)(c1 << 32));
      const __m512i high = _mm512_mask_blend_epi32(0xAAAA, (__m512i)c2, (__m512i)(c3 << 32));
      const __m512i bound = _mm512_set1_epi16(int16_t(threshold_));
      kept = _mm512_cmpge_epu16_mask(_mm512_unpacklo_epi64(low, high), bound) |
             uint64_t{_mm512_cmpge_epu16_mask(_mm512_unpackhi_epi64(low, high), bound)} << 32;
#else
      const __m256i low = _mm256_blend_epi32((__m256i)c0, (__m256i)(c1 << 32), 0xAA);
      const __m256i high = _mm256_blend_epi32((__m256i)c2, (__m256i)(c3 << 32), 0xAA);
      const __m256i bound = _mm256_set1_epi16(int16_t(threshold_));
      const __m256i first_half = _mm256_unpacklo_epi64(low, high), second_half = _mm256_unpackhi_epi64(low, high);
      const __m256i kept0 = _mm256_cmpeq_epi16(_mm256_max_epu16(first_half, bound), first_half);
      const __m256i kept1 = _mm256_cmpeq_epi16(_mm256_max_epu16(second_half, bound), second_half);
      const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(kept0, kept1), 0xD8);
      kept |= uint64_t{uint32_t(_mm256_movemask_epi8(bytes))} << (8 * call);
#endif
    }
#else
    for (uint32_t call = 0; call < 8; ++call) {
      const auto bits = dropout_bits(key_, position, block + call);
      for (uint32_t i = 0; i < 8; ++i) kept |= uint64_t{bits[i] >= threshold_} << (8 * call + i);
    }
#endif
    return kept;
  }

  DropoutKey key_;
  uint32_t threshold_;
  uint64_t keys_[20];  // each round's two
};

// The bits of the vector of units that starts at `unit`, a multiple of kLanes.
PENSTOCK_INLINE uint32_t keep_lanes(const uint64_t* words, int64_t unit) {
  return uint32_t(words[unit / 64] >> (unit % 64)) & kAllLanes;
}

}  // namespace penstock::PENSTOCK_ISA
