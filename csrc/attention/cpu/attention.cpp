// The calls from Python: raw addresses in, work divided among threads by sequence and head.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "attention/cpu/problem.h"
#include "bindings.h"
#include "isa.h"
#include "threads.h"

namespace py = pybind11;

namespace penstock {
namespace attention {
namespace {

const Kernels& kernels_for(Isa isa) {
#ifdef __x86_64__
  return table_for(isa, portable_kernels, avx2_kernels, avx512_kernels, avx512_bf16_kernels, amx_bf16_kernels);
#else
  return table_for(isa, portable_kernels);
#endif
}

Tensor tensor(const py::handle& description) {
  const auto parts = description.cast<py::tuple>();
  return {reinterpret_cast<void*>(parts[0].cast<uintptr_t>()), parts[1].cast<int64_t>(), parts[2].cast<int64_t>()};
}

template <class T>
T* address(const py::dict& arguments, const char* name) {
  return reinterpret_cast<T*>(arguments[name].cast<uintptr_t>());
}

Problem problem(const py::dict& a) {
  Problem p{};
  const auto integer = [&a](const char* name) { return a[name].cast<int64_t>(); };
  p.storage = a["bfloat16"].cast<bool>() ? Storage::bfloat16 : Storage::float32;
  p.batch = integer("batch"), p.heads = integer("heads"), p.kv_heads = integer("kv_heads");
  p.head_dim = integer("head_dim"), p.total_q = integer("total_q"), p.total_k = integer("total_k");
  p.cu_seqlens_q = address<const int32_t>(a, "cu_seqlens_q");
  p.cu_seqlens_k = address<const int32_t>(a, "cu_seqlens_k");
  p.scale = a["scale"].cast<float>();
  p.window_left = integer("window_left"), p.window_right = integer("window_right");
  p.dropout_threshold = a["dropout_threshold"].cast<uint32_t>();
  p.dropout_scale = a["dropout_scale"].cast<float>();
  p.seed = a["seed"].cast<uint64_t>();
  p.ids = address<const int64_t>(a, "ids");
  p.q = tensor(a["q"]), p.k = tensor(a["k"]), p.v = tensor(a["v"]), p.out = tensor(a["out"]);
  p.lse = address<float>(a, "lse");
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
    return double(item.last - item.first) * double(64 + Sequence(p, item.sequence).length_k);
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

void forward(const py::dict& arguments, const std::string& isa, int threads) {
  constexpr int64_t kQueriesPerItem = 512;
  const Problem p = problem(arguments);
  const Kernels& kernels = kernels_for(isa_named(isa));
  const py::gil_scoped_release release;
  std::vector<Item> items;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t length = Sequence(p, b).length_q;
    for (int64_t first = 0; first < length; first += kQueriesPerItem)
      items.push_back({b, 0, first, std::min(first + kQueriesPerItem, length)});
  }
  run(p, items, p.heads, threads, kernels.forward);
}

void backward(const py::dict& arguments, const std::string& isa, int threads) {
  Problem p = problem(arguments);
  p.grad_out = tensor(arguments["grad_out"]), p.grad_q = tensor(arguments["grad_q"]);
  p.grad_k = tensor(arguments["grad_k"]), p.grad_v = tensor(arguments["grad_v"]);
  const Kernels& kernels = kernels_for(isa_named(isa));
  const py::gil_scoped_release release;
  std::vector<Item> items;
  for (int64_t b = 0; b < p.batch; ++b) items.push_back({b, 0, 0, Sequence(p, b).length_q});
  run(p, items, p.kv_heads, threads, kernels.backward);
}

}  // namespace
}  // namespace attention

void bind_attention(py::module_& module) {
  module.def("attention_forward", &attention::forward, py::arg("arguments"), py::arg("isa"), py::arg("threads"),
             "Fills out and lse; kernels/attention/cpu.py makes the arguments.");
  module.def("attention_backward", &attention::backward, py::arg("arguments"), py::arg("isa"), py::arg("threads"),
             "Fills grad_q, grad_k and grad_v from what forward filled and grad_out.");
}

}  // namespace penstock
