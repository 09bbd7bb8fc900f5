// In place of csrc/lstm/cuda/device.h: its machine, emulated on a processor. Thread blocks of a group run as fibers
// that change places wherever they wait, in an order drawn at random, so that the kernels' own source is tested, its
// index arithmetic, its fragments and its synchronisation alike. Asynchronous copies land as late as they may, messages
// in any order. Memory itself is sequentially consistent here: what a GPU's weaker order could break, this does not
// show.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "lstm/cuda/words.h"

#define PENSTOCK_DEVICE inline
#define PENSTOCK_UNROLL
#define PENSTOCK_ROLL

namespace penstock::device {

int thread();
int block();
char* shared();

void sync_warp();
bool any(bool value);
uint32_t shuffle(uint32_t value, int lane);
void sync_block();
void sync_threads(int barrier, int threads);

void multiply_add(float (&d)[4], const Quad& a, uint32_t b0, uint32_t b1);
void load_matrices(Quad& out, const void* row);
uint32_t transpose(uint32_t value);

inline float exponential(float x) { return std::exp(x); }
inline float reciprocal(float x) { return 1.0f / x; }
inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline uint32_t to_bfloat16(float value) {
  const uint32_t bits = float_to_bits(value);
  if (std::isnan(value)) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline uint32_t pack(float low, float high) { return to_bfloat16(high) << 16 | to_bfloat16(low); }

void copy_async(void* to, const void* from, int bytes, bool real);
template <int kBytes>
void copy_async(void* to, const void* from, bool real) {
  copy_async(to, from, kBytes, real);
}
void close_copies();
void wait_copies(int open);
template <int kOpen>
void wait_copies() {
  wait_copies(kOpen);
}

void publish(uint64_t* at, uint32_t value, uint32_t stamp);
inline void publish(uint64_t* at, Pair values, uint32_t stamp) {
  publish(at, values.word[0], stamp);
  publish(at + 1, values.word[1], stamp);
}
uint32_t await_word(const uint64_t* at, uint32_t stamp);
template <int kPairs>
void await(const uint64_t* first, int64_t stride, uint32_t stamp, Pair (&values)[kPairs]) {
  for (int i = 0; i < kPairs; ++i) {
    for (int j = 0; j < 2; ++j) values[i].word[j] = await_word(first + i * stride + j, stamp);
  }
}

void sync_cluster();
void init_barrier(uint64_t* barrier);
void expect_bytes(uint64_t* barrier, uint32_t bytes);
void wait_barrier(uint64_t* barrier, uint32_t parity);
void store_remote(void* to, uint64_t* barrier, int rank, const void* value, int bytes);
inline void store_remote(void* to, uint64_t* barrier, int rank, Quad v) { store_remote(to, barrier, rank, &v, 16); }
inline void store_remote(void* to, uint64_t* barrier, int rank, Pair v) { store_remote(to, barrier, rank, &v, 8); }

}  // namespace penstock::device
