// The calls from Python: raw addresses in, work divided among threads by sequence and head.
#include <algorithm>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "attention/cpu/problem.h"
#include "bindings.h"
#include "isa.h"
#include "threads.h"

namespace py = pybind11;

namespace penstock {
namespace attention {
namespace {

const Kernels& kernels_for(Isa isa) {
  return PENSTOCK_TABLE_FOR(isa, portable_kernels, avx2_kernels, avx512_kernels, avx512_bf16_kernels, amx_bf16_kernels);
}

template <Name name>
Tensor tensor(Arguments& a) {
  const auto [address, token_stride, head_stride] = a.get<name, std::tuple<uintptr_t, int64_t, int64_t>>();
  return {reinterpret_cast<void*>(address), token_stride, head_stride};
}

Problem problem(Arguments& a) {
  Problem p{};
  p.dtype = dtype(a);
  a.get<"batch">(p.batch), a.get<"heads">(p.heads), a.get<"kv_heads">(p.kv_heads), a.get<"head_dim">(p.head_dim);
  a.get<"total_q">(p.total_q), a.get<"total_k">(p.total_k);
  a.get<"cu_seqlens_q">(p.cu_seqlens_q), a.get<"cu_seqlens_k">(p.cu_seqlens_k);
  a.get<"scale">(p.scale), a.get<"window_left">(p.window_left), a.get<"window_right">(p.window_right);
  a.get<"dropout_threshold">(p.dropout_threshold), a.get<"dropout_scale">(p.dropout_scale);
  a.get<"seed">(p.seed), a.get_or_none<"ids">(p.ids);
  p.q = tensor<"q">(a), p.k = tensor<"k">(a), p.v = tensor<"v">(a), p.out = tensor<"out">(a);
  a.get<"lse">(p.lse);
  return p;
}

// Neighbouring heads of a sequence, which share its pages.
struct Work {
  double cost;
  Item item;
  int64_t heads;
};

// Items are pieces of sequences, each with all its heads, which are divided further until there is enough for all
// threads. The longest come first, so that no thread is left with a long one when the others are done. Each head of an
// item writes what no other does, so the results depend neither on this division nor on the number of threads.
void run(const Problem& p, const std::vector<Item>& items, int64_t heads, int threads,
         void (*kernel)(const Problem&, const Item&, Scratch&)) {
  const auto cost_of = [&p](const Item& item) {
    return double(item.last - item.first) * double(64 + Spans(p, item.sequence).length_k);
  };
  double total = 0;
  for (const Item& item : items) total += cost_of(item) * double(heads);
  const double limit = total / (16.0 * threads);
  std::vector<Work> queue;
  for (const Item& item : items) {
    const double cost = cost_of(item);
    const int64_t together = std::clamp(int64_t(limit / std::max(cost, 1.0)), int64_t{1}, heads);
    for (int64_t head = 0; head < heads; head += together) {
      const int64_t count = std::min(together, heads - head);
      queue.push_back({cost * double(count), {item.sequence, head, item.first, item.last}, count});
    }
  }
  std::stable_sort(queue.begin(), queue.end(), [](const Work& a, const Work& b) { return a.cost > b.cost; });
  parallel_for(int64_t(queue.size()), threads, [&](int64_t i, int) {
    Item item = queue[size_t(i)].item;
    for (const int64_t end = item.head + queue[size_t(i)].heads; item.head < end; ++item.head)
      kernel(p, item, Scratch::of_this_thread());
  });
}

void forward(const py::kwargs& given) {
  constexpr int64_t kQueriesPerItem = 512;
  Arguments arguments("attention_forward", given);
  const Where where(arguments);
  const Problem p = problem(arguments);
  arguments.finish();
  const Kernels& kernels = kernels_for(isa_named(where.isa));
  const py::gil_scoped_release release;
  std::vector<Item> items;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t length = Spans(p, b).length_q;
    for (int64_t first = 0; first < length; first += kQueriesPerItem)
      items.push_back({b, 0, first, std::min(first + kQueriesPerItem, length)});
  }
  run(p, items, p.heads, where.threads, kernels.forward);
}

void backward(const py::kwargs& given) {
  Arguments arguments("attention_backward", given);
  const Where where(arguments);
  Problem p = problem(arguments);
  p.grad_out = tensor<"grad_out">(arguments), p.grad_q = tensor<"grad_q">(arguments);
  p.grad_k = tensor<"grad_k">(arguments), p.grad_v = tensor<"grad_v">(arguments);
  arguments.finish();
  const Kernels& kernels = kernels_for(isa_named(where.isa));
  const py::gil_scoped_release release;
  std::vector<Item> items;
  for (int64_t b = 0; b < p.batch; ++b) items.push_back({b, 0, 0, Spans(p, b).length_q});
  run(p, items, p.kv_heads, where.threads, kernels.backward);
}

}  // namespace
}  // namespace attention

void bind_attention(py::module_& module) {
  module.def("attention_forward", &attention::forward,
             "Fills out and lse; kernels/attention/cpu.py makes the arguments.");
  module.def("attention_backward", &attention::backward,
             "Fills grad_q, grad_k and grad_v from what forward filled and grad_out.");
}

}  // namespace penstock
