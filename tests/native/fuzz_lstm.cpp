// Runs layers of random sizes, options and contents forward and backward, on every instruction set of this machine,
// with every tensor a piece of the heap of its exact size: for the address and undefined-behaviour sanitizers.
//
// cu_seqlens is often malformed, ids are sometimes beyond the table, x sometimes holds NaN or infinity. What comes back
// must be written in full, and finite where nothing but finite numbers went in.
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <vector>

#include "fuzzing.h"
#include "lstm/cpu/kernels.h"

namespace {

using namespace penstock;
using namespace penstock::lstm;

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
  const bool inference = chance(0.3), pools = layer.pool != Pool::none;
  Forward out{};
  if (!inference || !pools || chance(0.5)) out.y = y.pointer();
  out.h_n = h_n.pointer();
  out.c_n = c_n.as<float>();
  if (!inference) out.gates = gates.pointer(), out.c = c.as<float>();
  if (pools) out.pooled = pooled.pointer();
  if (layer.pool == Pool::max && !inference) out.maximum = maximum.get();

  layer.quantised = inference && chance(0.5);
  std::unique_ptr<void, decltype(&std::free)> packed(nullptr, &std::free);
  if (inference && chance(0.5)) {
    packed.reset(std::aligned_alloc(64, kernels.packed_bytes(layer)));
    kernels.pack(layer, packed.get());
    layer.packed = packed.get();
    for (Weights& each : layer.weights) each = {};
  }

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

int main(int count, char** arguments) { return fuzz(count, arguments, run); }
