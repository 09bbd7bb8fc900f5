// The dropout rules of philox.h for many units or attention weights at once, in the namespace PENSTOCK_ISA (see
// simd.h).
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
    for (uint32_t round = 0; round < kPhiloxRounds; ++round) {
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
      for (int round = 0; round < kPhiloxRounds; ++round) {
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
  uint64_t keys_[2 * kPhiloxRounds];  // each round's two
};

// Which weights of one (example, head) are kept, for sixteen queries at a time.
class KeepWeights {
 public:
  static constexpr int64_t kQueries = 16;

  // threshold: at most 65536
  KeepWeights(const HeadKey& key, uint32_t threshold) : key_(key), threshold_(threshold) {
    for (uint32_t round = 0; round < kPhiloxRounds; ++round) keys_[round] = uint32_t(key.key + round * kPhiloxW0);
  }

  // Bit k % 64 of words[i * row + k / 64] says whether query first_query + i keeps key first_key + k, for k < count;
  // bits beyond mean nothing, but rows must have room for every started group of 64. first_query is a multiple of 16,
  // first_key of 64.
  void fill(int64_t first_query, int64_t first_key, int64_t count, uint64_t* words, int64_t row) const {
    for (int64_t group = 0; group < (count + 63) / 64; ++group) {
      if (threshold_ > 65535) {
        for (int i = 0; i < kQueries; ++i) words[i * row + group] = 0;
        continue;
      }
      const uint32_t pair_q = uint32_t(first_query / 2), pair_k = uint32_t(first_key / 2 + group * 32);
      for (uint32_t i = 0; i < kQueries / 2; ++i)
        two_queries(key_.of_query ^ (pair_q + i), pair_k, words[i * row + group], words[(i + 8) * row + group]);
    }
  }

 private:
  // 64 keys of the two queries of a call.
  void two_queries(uint32_t query, uint32_t first_pair, uint64_t& low, uint64_t& high) const {
#if defined(__AVX2__)
    const uint64_t first = uint64_t{kPhiloxM2} * query;  // the first round's product is that of the queries alone
    const auto calls = [&](Words pairs, Words(&out)[2]) __attribute__((always_inline)) {
      Words c0 = Words{} + ((first >> 32) ^ keys_[0]), c1 = Words{} + first;
      c0 ^= (pairs + uint64_t{first_pair}) ^ uint64_t { key_.of_key };
      for (int round = 1; round < kPhiloxRounds; ++round) {
        const Words product = multiply_low_halves(c0, Words{} + kPhiloxM2);
        c0 = exclusive_or(product >> 32, c1, Words{} + keys_[round]);
        c1 = product;
      }
      out[0] = c0, out[1] = c1;
    };
    uint64_t kept[2]{};
#if defined(__AVX512BW__)
    // the half-words of two vectors, of key y + 8 t at 4 y + t, in the order of the keys
    const __m512i order = _mm512_set_epi16(31, 27, 23, 19, 15, 11, 7, 3, 30, 26, 22, 18, 14, 10, 6, 2, 29, 25, 21, 17,
                                           13, 9, 5, 1, 28, 24, 20, 16, 12, 8, 4, 0);
    const __m512i bound = _mm512_set1_epi16(int16_t(threshold_));
    for (uint64_t pair = 0; pair < 32; pair += 16) {
      Words a[2], b[2];
      calls(Words{0, 1, 2, 3, 4, 5, 6, 7} + pair, a);
      calls(Words{8, 9, 10, 11, 12, 13, 14, 15} + pair, b);
      for (int word = 0; word < 2; ++word) {
        const __m512i bits = _mm512_mask_blend_epi32(0xAAAA, (__m512i)a[word], (__m512i)(b[word] << 32));
        kept[word] |= uint64_t{_mm512_cmpge_epu16_mask(_mm512_permutexvar_epi16(order, bits), bound)} << (2 * pair);
      }
    }
#else
    const __m256i bound = _mm256_set1_epi16(int16_t(threshold_));
    // in each half of 16 bytes: keys 0, 8, 2, 10, 1, 9, 3, 11 of two blocks of 16, four more in the upper half
    const __m256i order =
        _mm256_broadcastsi128_si256(_mm_set_epi8(15, 11, 13, 9, 14, 10, 12, 8, 7, 3, 5, 1, 6, 2, 4, 0));
    for (uint64_t pair = 0; pair < 32; pair += 16) {
      __m256i kept16[2][2];
      for (uint64_t block = 0; block < 2; ++block) {
        Words a[2], b[2];
        calls(Words{0, 1, 4, 5} + (pair + 8 * block), a);
        calls(Words{2, 3, 6, 7} + (pair + 8 * block), b);
        for (int word = 0; word < 2; ++word) {
          const __m256i bits = _mm256_blend_epi32((__m256i)a[word], (__m256i)(b[word] << 32), 0xAA);
          kept16[word][block] = _mm256_cmpeq_epi16(_mm256_max_epu16(bits, bound), bits);
        }
      }
      for (int word = 0; word < 2; ++word) {
        const __m256i bytes = _mm256_shuffle_epi8(_mm256_packs_epi16(kept16[word][0], kept16[word][1]), order);
        const __m256i in_order = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        kept[word] |= uint64_t{uint32_t(_mm256_movemask_epi8(in_order))} << (2 * pair);
      }
    }
#endif
    low = kept[0], high = kept[1];
#else
    low = high = 0;
    for (uint32_t pair = 0; pair < 32; ++pair) {
      const auto words = philox2x32({query, key_.of_key ^ (first_pair + pair)}, key_.key);
      const uint32_t key = pair / 8 * 16 + pair % 8;
      for (uint32_t half = 0; half < 2; ++half) {
        low |= uint64_t{(words[0] >> (16 * half) & 0xFFFFu) >= threshold_} << (key + 8 * half);
        high |= uint64_t{(words[1] >> (16 * half) & 0xFFFFu) >= threshold_} << (key + 8 * half);
      }
    }
#endif
  }

  HeadKey key_;
  uint32_t threshold_;
  uint64_t keys_[kPhiloxRounds];
};

// The bits of the vector of units that starts at `unit`, a multiple of kLanes.
PENSTOCK_INLINE uint32_t keep_lanes(const uint64_t* words, int64_t unit) {
  return uint32_t(words[unit / 64] >> (unit % 64)) & kAllLanes;
}

}  // namespace penstock::PENSTOCK_ISA
