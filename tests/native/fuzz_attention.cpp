// Attention on random sizes, windows and dropout, forward and backward, item by item as
// csrc/attention/cpu/attention.cpp does, on every instruction set of this machine. cu_seqlens is often malformed, the
// input sometimes holds NaN or infinity. What comes back must be written in full, and finite where nothing but finite
// numbers went in.
#include <algorithm>

#include "attention/cpu/problem.h"
#include "fuzzing.h"
#include "isa.h"

namespace {

using namespace penstock;
using namespace penstock::attention;
using Elements = penstock::Tensor;

// A tensor of (tokens, heads, head_dim) with gaps between its tokens.
struct Strided {
  int64_t stride;
  Elements elements;

  Strided(DType dtype, int64_t tokens, int64_t heads, int64_t head_dim, int64_t gap)
      : stride(heads * head_dim + gap), elements(dtype, tokens == 0 ? 0 : tokens * stride - gap) {}

  attention::Tensor view(int64_t head_dim) { return {elements.pointer(), stride, head_dim}; }

  void check_rows(const char* name, int64_t tokens, int64_t width, int64_t round) const {
    for (int64_t i = 0; i < tokens * stride; ++i)
      if (i % stride < width && !std::isfinite(elements.get(i))) {
        std::fprintf(stderr, "round %lld: %s[%lld] is %g\n", static_cast<long long>(round), name,
                     static_cast<long long>(i), double(elements.get(i)));
        std::abort();
      }
  }
};

void run(int64_t round, int64_t isas) {
#ifdef __x86_64__
  const Kernels& kernels = table_for(Isa(pick(0, isas - 1)), portable_kernels, avx2_kernels, avx512_kernels,
                                     avx512_bf16_kernels, amx_bf16_kernels);
#else
  const Kernels& kernels = portable_kernels;
  (void)isas;
#endif
  const bool wild = chance(0.1), sound = chance(0.6);
  Problem p{};
  p.dtype = chance(0.5) ? DType::float32 : DType::bfloat16;
  p.batch = chance(0.1) ? 0 : pick(1, 5);
  p.kv_heads = pick(1, 3), p.heads = p.kv_heads * pick(1, 3), p.head_dim = chance(0.1) ? pick(120, 260) : pick(1, 70);
  const auto tokens = [&] {
    return p.batch == 0 && sound ? 0 : chance(0.15) ? 0 : chance(0.1) ? pick(500, 700) : pick(1, 90);
  };
  p.total_q = tokens(), p.total_k = tokens();
  const auto bounds_q = offsets(p.batch, p.total_q, sound), bounds_k = offsets(p.batch, p.total_k, sound);
  p.cu_seqlens_q = bounds_q.get(), p.cu_seqlens_k = bounds_k.get();
  p.scale = 0.3f;
  p.window_left = chance(0.5) ? -1 : pick(0, 70), p.window_right = chance(0.5) ? -1 : pick(0, 70);
  if (chance(0.5)) p.dropout_threshold = uint32_t(chance(0.1) ? 65536 : pick(1, 65535));
  p.dropout_scale = p.dropout_threshold == 65536 ? 0.0f : 65536.0f / float(65536 - p.dropout_threshold);
  p.seed = generator();
  Elements ids(DType::float32, 2 * p.batch);  // int64
  for (int64_t b = 0; b < p.batch; ++b) ids.as<int64_t>()[b] = int64_t(generator());
  p.ids = ids.as<int64_t>();

  const int64_t gap = chance(0.5) ? 0 : pick(1, 40), D = p.head_dim, Q = p.total_q, K = p.total_k;
  Strided q(p.dtype, Q, p.heads, D, gap), k(p.dtype, K, p.kv_heads, D, gap), v(p.dtype, K, p.kv_heads, D, gap);
  Strided out(p.dtype, Q, p.heads, D, 0), grad_out(p.dtype, Q, p.heads, D, gap);
  Strided grad_q(p.dtype, Q, p.heads, D, 0), grad_k(p.dtype, K, p.kv_heads, D, 0), grad_v(p.dtype, K, p.kv_heads, D, 0);
  Elements lse(DType::float32, p.heads * Q);
  for (Strided* input : {&q, &k, &v}) input->elements.random(1.0f, wild);
  grad_out.elements.random(1.0f);
  p.q = q.view(D), p.k = k.view(D), p.v = v.view(D), p.out = out.view(D), p.lse = lse.as<float>();
  p.grad_out = grad_out.view(D), p.grad_q = grad_q.view(D), p.grad_k = grad_k.view(D), p.grad_v = grad_v.view(D);

  Scratch scratch;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t length = Spans(p, b).length_q, size = pick(1, 512);
    for (int64_t first = 0; first < length; first += size)
      for (int64_t head = 0; head < p.heads; ++head) {
        scratch.reset();
        kernels.forward(p, {b, head, first, std::min(first + size, length)}, scratch);
      }
  }
  if (sound && !wild) out.check_rows("out", Q, p.heads * D, round);
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t head = 0; head < p.kv_heads; ++head) {
      scratch.reset();
      kernels.backward(p, {b, head, 0, Spans(p, b).length_q}, scratch);
    }
  if (!sound || wild) return;
  grad_q.check_rows("grad_q", Q, p.heads * D, round);
  grad_k.check_rows("grad_k", K, p.kv_heads * D, round);
  grad_v.check_rows("grad_v", K, p.kv_heads * D, round);
}

}  // namespace

int main(int count, char** arguments) { return fuzz(count, arguments, run); }
