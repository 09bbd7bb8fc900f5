// Runs layers of random sizes, options and contents forward and backward, on every instruction set of this machine,
// with every tensor a piece of the heap of its exact size: for the address and undefined-behaviour sanitizers.
//
//     fuzz_layer SEED ROUNDS INSTRUCTION_SETS
//
// cu_seqlens is often malformed, ids are sometimes beyond the table, x sometimes holds NaN or infinity. What comes back
// must be written in full, and finite where nothing but finite numbers went in.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "amx.h"
#include "lstm/cpu/kernels.h"

namespace {

using namespace penstock;
using namespace penstock::lstm;

std::mt19937_64 generator;

int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
bool chance(double p) { return std::bernoulli_distribution(p)(generator); }

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

  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data.get());
  }
};

// Offsets from 0 to `tokens`, or what no caller should pass.
std::unique_ptr<int32_t[]> offsets(int64_t batch, int64_t tokens, bool sound) {
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

void check(const char* name, const Tensor& tensor, int64_t round) {
  for (int64_t i = 0; i < tensor.count; ++i) {
    if (std::isfinite(tensor.get(i))) continue;
    std::fprintf(stderr, "round %lld: %s[%lld] is %g\n", static_cast<long long>(round), name, static_cast<long long>(i),
                 double(tensor.get(i)));
    std::abort();
  }
}

void run(int64_t round, int64_t isas) {
  const Kernels& kernels = kernels_for(Isa(pick(0, isas - 1)));
  const bool wild = chance(0.1), sound = chance(0.6), embedded = chance(0.5);
  Layer layer{};
  const DType T = layer.dtype = chance(0.5) ? DType::float32 : DType::bfloat16;
  const int64_t B = layer.batch = chance(0.1) ? 0 : pick(1, chance(0.2) ? 60 : 9);
  layer.tokens = chance(0.1) || (sound && B == 0) ? 0 : pick(1, 90);
  const int64_t I = layer.input_size = chance(0.1) ? pick(500, 1100) : pick(1, 70);
  const int64_t H = layer.hidden_size = chance(0.1) ? pick(120, 200) : pick(1, 70);
  const int64_t D = layer.directions = int(pick(1, 2)), N = layer.tokens;
  layer.threads = int(pick(1, 5));
  layer.pool = Pool(pick(0, 2));
  const auto bounds = offsets(B, N, sound);
  layer.cu_seqlens = bounds.get();

  layer.vocabulary = pick(1, 40);
  layer.table_dtype = chance(0.5) ? T : DType::float32;
  Tensor x(embedded ? layer.table_dtype : T, (embedded ? layer.vocabulary : N) * I);
  x.random(1.0f, wild);
  auto ids = std::make_unique<int32_t[]>(N);
  bool beyond = false;
  for (int64_t t = 0; embedded && t < N; ++t) {
    ids[t] = int32_t(chance(0.001) ? pick(INT32_MIN, INT32_MAX) : pick(0, layer.vocabulary - 1));
    beyond |= ids[t] < 0 || ids[t] >= layer.vocabulary;
  }
  (embedded ? layer.table : layer.x) = x.pointer();
  if (embedded) layer.ids = ids.get();

  std::vector<Tensor> weights;
  const bool biased = chance(0.7);
  for (int64_t d = 0; d < D; ++d) {
    for (const int64_t size : {4 * H * I, 4 * H * H, 4 * H, 4 * H}) weights.emplace_back(T, size).random(0.2f);
    Tensor* own = &weights[weights.size() - 4];
    layer.weights[d] = {own[0].pointer(), own[1].pointer(), biased ? own[2].pointer() : nullptr,
                        biased ? own[3].pointer() : nullptr};
  }
  Tensor h0(T, D * B * H), c0(DType::float32, D * B * H);
  if (chance(0.5)) layer.h0 = h0.random(1.0f).pointer();
  if (chance(0.5)) layer.c0 = c0.random(1.0f).as<float>();

  Tensor y(T, N * D * H), h_n(T, D * B * H), c_n(DType::float32, D * B * H), gates(T, N * D * 4 * H),
      c(DType::float32, N * D * H), pooled(T, B * D * H);
  auto maximum = std::make_unique<int32_t[]>(B * D * H);
  const bool inference = chance(0.2), pools = layer.pool != Pool::none;
  Forward out{};
  if (!inference || !pools || chance(0.5)) out.y = y.pointer();
  out.h_n = h_n.pointer();
  out.c_n = c_n.as<float>();
  if (!inference) out.gates = gates.pointer(), out.c = c.as<float>();
  if (pools) out.pooled = pooled.pointer();
  if (layer.pool == Pool::max && !inference) out.maximum = maximum.get();

  bool refused = false;
  try {
    kernels.forward(layer, out);
  } catch (const std::out_of_range&) {
    refused = true;
  }
  if (refused != beyond) {
    std::fprintf(stderr, "round %lld: ids beyond the table: %d, refused: %d\n", static_cast<long long>(round), beyond,
                 refused);
    std::abort();
  }
  if (refused) return;
  if (!wild) {
    if (out.y) check("y", y, round);
    check("h_n", h_n, round);
    check("c_n", c_n, round);
    if (pools) check("pooled", pooled, round);
  }
  if (inference) return;

  Tensor dy(T, N * D * H), dh_n(T, D * B * H), dc_n(DType::float32, D * B * H), dc(DType::float32, N * D * H),
      dpooled(T, B * D * H), dx(x.dtype, x.count), dh0(T, h0.count), dc0(DType::float32, c0.count);
  Backward io{};
  io.y = out.y, io.gates = out.gates, io.c = out.c, io.maximum = out.maximum;
  if (chance(0.7)) io.dy = dy.random(1.0f).pointer();
  if (chance(0.5)) io.dh_n = dh_n.random(1.0f).pointer();
  if (chance(0.5)) io.dc_n = dc_n.random(1.0f).as<float>();
  if (chance(0.3)) io.dc = dc.random(1.0f).as<float>();
  if (pools && chance(0.8)) io.dpooled = dpooled.random(1.0f).pointer();
  if (chance(0.8)) io.dx = dx.pointer();
  if (chance(0.7)) io.dh0 = dh0.pointer();
  if (chance(0.7)) io.dc0 = dc0.as<float>();
  std::vector<Tensor> gradients;
  const bool wanted = chance(0.8);
  for (int64_t d = 0; wanted && d < D; ++d) {
    for (const int64_t size : {4 * H * I, 4 * H * H, 4 * H}) gradients.emplace_back(T, size);
    Tensor* own = &gradients[gradients.size() - 3];
    io.weights[d] = {own[0].pointer(), own[1].pointer(), own[2].pointer()};
  }
  kernels.backward(layer, io);
  if (wild) return;
  if (io.dx) check("dx", dx, round);
  if (io.dh0) check("dh0", dh0, round);
  if (io.dc0) check("dc0", dc0, round);
  for (const Tensor& gradient : gradients) check("a weight's gradient", gradient, round);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) return std::fprintf(stderr, "usage: fuzz_layer SEED ROUNDS INSTRUCTION_SETS\n"), 2;
  const uint64_t seed = std::strtoull(arguments[1], nullptr, 10);
  const int64_t rounds = std::strtoll(arguments[2], nullptr, 10);
  may_use_amx();  // asks for it
  for (int64_t round = 0; round < rounds; ++round) {
    generator.seed(seed + uint64_t(round));  // so that one round can be repeated alone
    run(round, std::strtoll(arguments[3], nullptr, 10));
  }
  std::printf("%lld layers\n", static_cast<long long>(rounds));
}
