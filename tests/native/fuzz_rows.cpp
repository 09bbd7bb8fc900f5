// The kernels that go along rows (norm, GELU, GEGLU, rotary, dropout), the linear layer's weight gradient and that
// layer on packed weights, on random sizes and options, on every instruction set of this machine. What comes back must
// be written in full, and finite.
#include <algorithm>
#include <utility>
#include <vector>

#include "fuzzing.h"
#include "isa.h"
#include "linear/cpu/packed_problem.h"
#include "linear/cpu/problem.h"
#include "rowwise/cpu/problem.h"

namespace {

using namespace penstock;
using namespace penstock::rowwise;

const Kernels& kernels_of(int64_t isas) {
#ifdef __x86_64__
  return table_for(Isa(pick(0, isas - 1)), portable_kernels, avx2_kernels, avx512_kernels, avx512_bf16_kernels);
#else
  (void)isas;
  return portable_kernels;
#endif
}

// Calls work(item, scratch) on pieces that cover the rows; returns their number.
template <class Work>
void for_pieces(int64_t rows, int64_t size, Work work) {
  Scratch scratch;
  for (int64_t piece = 0; piece * size < rows; ++piece) {
    scratch.reset();
    work(Item{piece, piece * size, std::min((piece + 1) * size, rows)}, scratch);
  }
}

struct Mask {
  Dropout rule{};
  std::unique_ptr<int32_t[]> bounds;
  std::unique_ptr<int64_t[]> ids;

  explicit Mask(int64_t rows, bool sequences) {
    if (chance(0.4)) return;
    rule.threshold = uint32_t(chance(0.1) ? 65536 : pick(1, 65535));
    rule.scale = rule.threshold == 65536 ? 0.0f : 65536.0f / float(65536 - rule.threshold);
    rule.seed = generator(), rule.batch = pick(1, 7), rule.stream = uint32_t(generator());
    bounds = offsets(rule.batch, rows, chance(0.6));
    rule.cu_seqlens = bounds.get();
    rule.per_sequence = sequences && chance(0.5);
    if (chance(0.3)) return;
    ids = std::make_unique<int64_t[]>(rule.batch);
    for (int64_t b = 0; b < rule.batch; ++b) ids[b] = int64_t(generator());
    rule.ids = ids.get();
  }
};

DType any_dtype() { return chance(0.5) ? DType::float32 : DType::bfloat16; }

void norm(const Kernels& kernels, int64_t rows, int64_t width, int64_t size, int64_t round) {
  const int64_t n = rows * width, pieces = (rows + size - 1) / size;
  const Mask mask(rows, false);
  NormProblem p{};
  p.dtype = any_dtype();
  p.residual_dtype = p.dtype == DType::bfloat16 && chance(0.5) ? DType::bfloat16 : DType::float32;
  p.rows = rows, p.width = width, p.eps = 1e-5f, p.dropout = mask.rule;
  Tensor x(p.dtype, n), residual(p.residual_dtype, n), x_bias(DType::float32, width), weight(DType::float32, width);
  Tensor bias(DType::float32, width), out(p.dtype, n), z(p.residual_dtype, n), normal(p.dtype, n);
  Tensor rstd(DType::float32, rows), grad_out(p.dtype, n), grad_z(p.residual_dtype, n), grad_x(p.dtype, n);
  Tensor grad_residual(p.residual_dtype, n), sums(DType::float32, pieces * 3 * width);
  for (Tensor* input : {&x, &residual, &x_bias, &weight, &bias, &grad_out, &grad_z}) input->random(1.0f);
  p.x = x.pointer(), p.residual = residual.pointer(), p.weight = weight.as<float>(), p.out = out.pointer();
  if (chance(0.5)) p.x_bias = x_bias.as<float>();
  if (chance(0.5)) p.bias = bias.as<float>();
  if (chance(0.5)) p.z = z.pointer();
  const bool save = chance(0.7);
  if (save) p.normal = normal.pointer(), p.rstd = rstd.as<float>();
  for_pieces(rows, size, [&](const Item& item, Scratch& scratch) { kernels.norm_forward(p, item, scratch); });
  check("norm's out", out, round);
  if (p.z != nullptr) check("z", z, round);
  if (!save) return;
  p.grad_out = grad_out.pointer(), p.grad_residual = grad_residual.pointer(), p.sums = sums.as<float>();
  if (chance(0.5)) p.grad_z = grad_z.pointer();
  if (chance(0.5)) p.grad_x = grad_x.pointer();
  for_pieces(rows, size, [&](const Item& item, Scratch& scratch) { kernels.norm_backward(p, item, scratch); });
  check("grad_residual", grad_residual, round);
  check("norm's sums", sums, round);
  if (p.grad_x != nullptr) check("norm's grad_x", grad_x, round);
}

void gelu(const Kernels& kernels, int64_t rows, int64_t width, int64_t size, int64_t round) {
  const int64_t n = rows * width, pieces = (rows + size - 1) / size;
  GeluProblem p{};
  p.dtype = any_dtype(), p.rows = rows, p.width = width;
  Tensor x(p.dtype, n), bias(DType::float32, width), out(p.dtype, n), derivative(p.dtype, n), grad_out(p.dtype, n);
  Tensor grad_x(p.dtype, n), sums(DType::float32, pieces * width);
  for (Tensor* input : {&x, &bias, &grad_out}) input->random(3.0f);
  p.x = x.pointer(), p.out = out.pointer();
  if (chance(0.5)) p.bias = bias.as<float>();
  if (chance(0.7)) p.derivative = derivative.pointer();
  for_pieces(rows, size, [&](const Item& item, Scratch&) { kernels.gelu_forward(p, item); });
  check("gelu's out", out, round);
  if (p.derivative == nullptr) return;
  p.saved_derivative = p.derivative, p.grad_out = grad_out.pointer(), p.grad_x = grad_x.pointer();
  if (chance(0.5)) p.sums = sums.as<float>();
  for_pieces(rows, size, [&](const Item& item, Scratch&) { kernels.gelu_backward(p, item); });
  check("gelu's grad_x", grad_x, round);
  if (p.sums != nullptr) check("gelu's sums", sums, round);
}

void geglu(const Kernels& kernels, int64_t rows, int64_t width, int64_t size, int64_t round) {
  const int64_t n = rows * width, pieces = (rows + size - 1) / size;
  GegluProblem p{};
  p.dtype = any_dtype(), p.rows = rows, p.width = width;
  Tensor x(p.dtype, 2 * n), bias(DType::float32, 2 * width), out(p.dtype, n), grad_out(p.dtype, n);
  Tensor grad_x(p.dtype, 2 * n), sums(DType::float32, pieces * 2 * width);
  for (Tensor* input : {&x, &bias, &grad_out}) input->random(3.0f);
  p.x = x.pointer(), p.out = out.pointer(), p.grad_out = grad_out.pointer(), p.grad_x = grad_x.pointer();
  if (chance(0.5)) p.bias = bias.as<float>(), p.sums = sums.as<float>();
  for_pieces(rows, size, [&](const Item& item, Scratch&) { kernels.geglu_forward(p, item); });
  for_pieces(rows, size, [&](const Item& item, Scratch&) { kernels.geglu_backward(p, item); });
  check("geglu's out", out, round);
  check("geglu's grad_x", grad_x, round);
  if (p.sums != nullptr) check("geglu's sums", sums, round);
}

void rotary(const Kernels& kernels, int64_t rows, int64_t size, int64_t round) {
  RotaryProblem p{};
  const int64_t D = p.head_dim = 2 * pick(1, 70);
  p.dtype = any_dtype(), p.rows = rows, p.transposed = chance(0.5);
  const int64_t heads = pick(1, 4), kv_heads = pick(1, 4), gap = chance(0.5) ? 0 : pick(1, 30);
  const auto elements = [&](int64_t count) { return rows == 0 ? 0 : rows * (count * D + gap) - gap; };
  Tensor cos(DType::float32, rows * D), sin(DType::float32, rows * D), q(p.dtype, elements(heads));
  Tensor k(p.dtype, elements(kv_heads)), q_out(p.dtype, rows * heads * D), k_out(p.dtype, rows * kv_heads * D);
  for (Tensor* input : {&cos, &sin, &q, &k}) input->random(1.0f);
  p.cos = cos.as<float>(), p.sin = sin.as<float>();
  p.q = {q.pointer(), q_out.pointer(), heads, heads * D + gap, D};
  p.k = {k.pointer(), k_out.pointer(), kv_heads, kv_heads * D + gap, D};
  for_pieces(rows, size, [&](const Item& item, Scratch&) { kernels.rotary(p, item); });
  check("q", q_out, round);
  check("k", k_out, round);
}

void dropout(const Kernels& kernels, int64_t rows, int64_t width, int64_t size, int64_t round) {
  const Mask mask(rows, true);
  DropoutProblem p{any_dtype(), rows, width, mask.rule, nullptr, nullptr};
  Tensor x(p.dtype, rows * width), out(p.dtype, rows * width);
  p.x = x.random(1.0f).pointer(), p.out = out.pointer();
  for_pieces(rows, size, [&](const Item& item, Scratch& scratch) { kernels.dropout(p, item, scratch); });
  check("dropout's out", out, round);
}

void weight_gradient(int64_t isas, int64_t round) {
#ifdef __x86_64__
  if (Isa(isas - 1) != Isa::amx_bf16) return;
  linear::WeightGradient p{};
  p.tokens = pick(1, chance(0.2) ? 700 : 90), p.rows = pick(1, 120), p.columns = pick(1, chance(0.2) ? 600 : 90);
  Tensor grad_out(DType::bfloat16, p.tokens * p.rows), x(DType::bfloat16, p.tokens * p.columns);
  Tensor result(DType::float32, p.rows * p.columns), bias(DType::float32, p.rows);
  if (chance(0.5)) p.grad_bias = bias.as<float>();
  p.grad_out = grad_out.random(1.0f).as<bf16>(), p.x = x.random(1.0f).as<bf16>(), p.grad_weight = result.as<float>();
  const int64_t rows = 32 * pick(1, 4), columns = 32 * pick(1, 16);
  Scratch scratch;
  for (int64_t row = 0; row < p.rows; row += rows)
    for (int64_t column = 0; column < p.columns; column += columns) {
      scratch.reset();
      linear::compute_on_amx(p, {row, std::min(rows, p.rows - row), column, std::min(columns, p.columns - column)},
                             scratch);
    }
  check("a weight's gradient", result, round);
  if (p.grad_bias != nullptr) check("a bias's gradient", bias, round);
#else
  (void)isas, (void)round;
#endif
}

const linear::PackedKernels& packed_kernels_of(int64_t isas) {
#ifdef __x86_64__
  return table_for(Isa(pick(0, isas - 1)), linear::portable_packed, linear::avx2_packed, linear::avx512_packed,
                   linear::avx512_bf16_packed, linear::amx_bf16_packed);
#else
  (void)isas;
  return linear::portable_packed;
#endif
}

// Layers that rows go through, each as wide as the next one reads, and the memory that they name.
struct Layers {
  std::vector<linear::PackedLayer> all;
  std::vector<std::pair<Tensor, const char*>> written;
  std::vector<Tensor> read;
  std::vector<penstock::Block> packed;

  const void* random(DType dtype, int64_t count, float scale) {
    read.emplace_back(dtype, count).random(scale);
    return read.back().pointer();
  }
  void* poisoned(DType dtype, int64_t count, const char* name) {
    written.emplace_back(Tensor(dtype, count), name);
    return written.back().first.pointer();
  }

  void add(const linear::PackedKernels& kernels, DType dtype, int64_t rows, int64_t in_features, bool last) {
    using namespace linear;
    PackedLayer p{};
    p.kind = chance(0.4) ? Kind::int8 : dtype == DType::bfloat16 ? Kind::bfloat16 : Kind::float32;
    p.then = Then(pick(0, 3)), p.in_features = in_features, p.eps = 1e-5f;
    // often as wide as an earlier one, which a norm can then add
    const int64_t like = chance(0.5) && !all.empty() ? all[pick(0, int64_t(all.size()) - 1)].width() : 0;
    Weights weights{p.kind, p.kind == Kind::int8 ? any_dtype() : dtype, in_features, 0, nullptr, like ? 1 : pick(1, 3)};
    std::vector<Part> parts;
    for (int64_t i = 0; i < weights.count; ++i) {
      const int64_t size = like ? like * (p.then == Then::geglu ? 2 : 1) : 2 * pick(1, chance(0.2) ? 90 : 20);
      const void* weight = random(weights.dtype, size * in_features, 0.1f);
      const void* bias = chance(0.7) ? random(DType::float32, size, 1.0f) : nullptr;
      parts.push_back({weight, static_cast<const float*>(bias), size});
      weights.out_features += size;
    }
    weights.parts = parts.data(), p.out_features = weights.out_features;
    p.packed = packed.emplace_back(kernels.bytes(weights)).as<void>();
    kernels.pack(weights, packed.back().as<void>());
    const int64_t width = p.width();
    if (last || chance(0.5)) p.out = poisoned(dtype, rows * width, "a packed layer's out");
    if (p.then == Then::norm) {
      p.norm_weight = static_cast<const float*>(random(DType::float32, width, 1.0f));
      if (chance(0.5)) p.norm_bias = static_cast<const float*>(random(DType::float32, width, 1.0f));
      p.residual_dtype = dtype == DType::bfloat16 && chance(0.5) ? DType::bfloat16 : DType::float32;
      p.residual = random(p.residual_dtype, rows * width, 1.0f);
      for (size_t i = 0; i < all.size(); ++i)
        if (all[i].width() == width && chance(0.5))
          p.residual = nullptr, p.residual_of = int64_t(i), p.residual_dtype = dtype;
      if (chance(0.5)) p.z = poisoned(p.residual_dtype, rows * width, "a packed layer's z");
    }
    all.push_back(p);
  }
};

void packed(int64_t isas, int64_t round) {
  const linear::PackedKernels& kernels = packed_kernels_of(isas);
  linear::PackedCall p{};
  p.dtype = any_dtype(), p.rows = pick(1, 60), p.count = pick(1, 4), p.block = pick(1, 40);
  Layers layers;
  int64_t features = pick(1, chance(0.2) ? 1400 : 90);
  const Tensor x = std::move(Tensor(p.dtype, p.rows * features).random(1.0f));
  for (int64_t i = 0; i < p.count; ++i) {
    layers.add(kernels, p.dtype, p.rows, features, i + 1 == p.count);
    features = layers.all.back().width();
  }
  p.x = x.data.get(), p.layers = layers.all.data();
  Scratch scratch;
  const int64_t blocks = pick(1, 4);
  for (int64_t i = 0; i < blocks; ++i) {
    scratch.reset();
    const Range block = share(p.rows, blocks, i);
    if (!block.empty()) kernels.run(p, block, scratch);
  }
  for (const auto& [tensor, name] : layers.written) check(name, tensor, round);
}

void run(int64_t round, int64_t isas) {
  const Kernels& kernels = kernels_of(isas);
  const int64_t rows = chance(0.1) ? 0 : pick(1, 70), width = chance(0.2) ? pick(100, 400) : pick(1, 70);
  const int64_t size = pick(1, 40);
  switch (pick(0, 7)) {
    case 0:
      return norm(kernels, rows, width, size, round);
    case 1:
      return gelu(kernels, rows, width, size, round);
    case 2:
      return geglu(kernels, rows, width, size, round);
    case 3:
      return rotary(kernels, rows, size, round);
    case 4:
      return dropout(kernels, rows, width, size, round);
    case 5:
      return weight_gradient(isas, round);
    default:
      return packed(isas, round);
  }
}

}  // namespace

int main(int count, char** arguments) { return fuzz(count, arguments, run); }
