// What the fuzzers of the kernels share: random sizes, tensors that are pieces of the heap of their exact size, for the
// address and undefined-behaviour sanitizers, and the loop over rounds.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>

#include "amx.h"
#include "types.h"

namespace penstock {

inline std::mt19937_64 generator;

inline int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
inline bool chance(double p) { return std::bernoulli_distribution(p)(generator); }

// A tensor of `count` elements of a dtype, filled with NaN to begin with.
struct Tensor {
  DType dtype;
  int64_t count;
  std::unique_ptr<char, void (*)(void*)> data;

  Tensor(DType type, int64_t n)
      : dtype(type), count(n), data(static_cast<char*>(std::malloc(size_t(n) * width(type))), std::free) {
    if (n > 0) std::memset(data.get(), 0xff, size_t(n) * width(type));
  }

  static size_t width(DType type) { return type == DType::float32 ? 4 : 2; }

  Tensor& random(float scale, bool wild = false) {
    std::normal_distribution<float> normal(0.0f, scale);
    for (int64_t i = 0; i < count; ++i) {
      float value = normal(generator);
      if (wild && chance(0.05)) value = chance(0.5) ? NAN : INFINITY;
      set(i, value);
    }
    return *this;
  }

  void set(int64_t i, float value) {
    if (dtype == DType::float32) {
      std::memcpy(data.get() + 4 * i, &value, 4);
    } else {
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      const uint16_t high = uint16_t(bits >> 16);
      std::memcpy(data.get() + 2 * i, &high, 2);
    }
  }

  float get(int64_t i) const {
    uint32_t bits = 0;
    if (dtype == DType::float32) {
      std::memcpy(&bits, data.get() + 4 * i, 4);
    } else {
      uint16_t high;
      std::memcpy(&high, data.get() + 2 * i, 2);
      bits = uint32_t{high} << 16;
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }

  void* pointer() { return data.get(); }

  template <class T = void>
  T* as() {
    return reinterpret_cast<T*>(data.get());
  }
};

// Offsets from 0 to `tokens`, or what no caller should pass.
inline std::unique_ptr<int32_t[]> offsets(int64_t batch, int64_t tokens, bool sound) {
  auto bounds = std::make_unique<int32_t[]>(batch + 1);
  for (int64_t b = 0; b <= batch; ++b) {
    if (sound) {
      const int64_t left = tokens - (b == 0 ? 0 : bounds[b - 1]);
      bounds[b] = int32_t(b == 0 ? 0 : b == batch ? tokens : bounds[b - 1] + pick(0, left));
    } else {
      bounds[b] = int32_t(chance(0.7) ? pick(-2, tokens + 3) : pick(INT32_MIN, INT32_MAX));
    }
  }
  return bounds;
}

inline void check(const char* name, const Tensor& tensor, int64_t round) {
  for (int64_t i = 0; i < tensor.count; ++i) {
    if (std::isfinite(tensor.get(i))) continue;
    std::fprintf(stderr, "round %lld: %s[%lld] is %g\n", static_cast<long long>(round), name, static_cast<long long>(i),
                 double(tensor.get(i)));
    std::abort();
  }
}

// PROGRAM SEED ROUNDS INSTRUCTION_SETS
inline int fuzz(int count, char** arguments, void (*run)(int64_t round, int64_t isas)) {
  if (count != 4) return std::fprintf(stderr, "usage: %s SEED ROUNDS INSTRUCTION_SETS\n", arguments[0]), 2;
  const uint64_t seed = std::strtoull(arguments[1], nullptr, 10);
  const int64_t rounds = std::strtoll(arguments[2], nullptr, 10);
  may_use_amx();  // asks for it
  for (int64_t round = 0; round < rounds; ++round) {
    generator.seed(seed + uint64_t(round));  // so that one round can be repeated alone
    run(round, std::strtoll(arguments[3], nullptr, 10));
  }
  std::printf("%lld rounds\n", static_cast<long long>(rounds));
  return 0;
}

}  // namespace penstock
