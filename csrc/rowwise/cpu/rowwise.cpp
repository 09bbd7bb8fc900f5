// The calls from Python: raw addresses in, rows shared out among threads.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <type_traits>

#include "bindings.h"
#include "isa.h"
#include "rowwise/cpu/problem.h"
#include "threads.h"

namespace py = pybind11;

namespace penstock {
namespace rowwise {
namespace {

const Kernels& kernels_for(Isa isa) {
#ifdef __x86_64__
  return table_for(isa, portable_kernels, avx2_kernels, avx512_kernels, avx512_bf16_kernels);
#else
  return table_for(isa, portable_kernels);
#endif
}

template <class T>
void get(const py::dict& arguments, const char* name, T& value) {
  if (!arguments.contains(name)) return;
  if constexpr (std::is_pointer_v<T>)
    value = reinterpret_cast<T>(arguments[name].cast<uintptr_t>());
  else
    value = arguments[name].cast<T>();
}

Storage storage(const py::dict& arguments, const char* bfloat16 = "bfloat16") {
  return arguments[bfloat16].cast<bool>() ? Storage::bfloat16 : Storage::float32;
}

Dropout dropout_rule(const py::dict& a) {
  Dropout d{};
  get(a, "dropout_threshold", d.threshold), get(a, "dropout_scale", d.scale), get(a, "stream", d.stream);
  get(a, "seed", d.seed), get(a, "batch", d.batch), get(a, "cu_seqlens", d.cu_seqlens), get(a, "ids", d.ids);
  get(a, "per_sequence", d.per_sequence);
  return d;
}

NormProblem norm_problem(const py::dict& a) {
  NormProblem p{};
  p.storage = storage(a), p.residual_storage = storage(a, "bfloat16_residual");
  p.dropout = dropout_rule(a);
  get(a, "rows", p.rows), get(a, "width", p.width), get(a, "eps", p.eps);
  get(a, "x", p.x), get(a, "residual", p.residual), get(a, "x_bias", p.x_bias);
  get(a, "weight", p.weight), get(a, "bias", p.bias), get(a, "out", p.out);
  get(a, "z", p.z), get(a, "normal", p.normal), get(a, "rstd", p.rstd);
  get(a, "grad_out", p.grad_out), get(a, "grad_z", p.grad_z);
  get(a, "grad_x", p.grad_x), get(a, "grad_residual", p.grad_residual), get(a, "sums", p.sums);
  return p;
}

GeluProblem gelu_problem(const py::dict& a) {
  GeluProblem p{};
  p.storage = storage(a);
  get(a, "rows", p.rows), get(a, "width", p.width), get(a, "x", p.x), get(a, "bias", p.bias), get(a, "out", p.out);
  get(a, "derivative", p.derivative), get(a, "grad_out", p.grad_out);
  get(a, "saved_derivative", p.saved_derivative), get(a, "grad_x", p.grad_x), get(a, "sums", p.sums);
  return p;
}

GegluProblem geglu_problem(const py::dict& a) {
  GegluProblem p{};
  p.storage = storage(a);
  get(a, "rows", p.rows), get(a, "width", p.width), get(a, "x", p.x), get(a, "bias", p.bias), get(a, "out", p.out);
  get(a, "grad_out", p.grad_out), get(a, "grad_x", p.grad_x), get(a, "sums", p.sums);
  return p;
}

Heads heads(const py::handle& description) {
  const auto parts = description.cast<py::tuple>();
  return {reinterpret_cast<const void*>(parts[0].cast<uintptr_t>()),
          reinterpret_cast<void*>(parts[1].cast<uintptr_t>()), parts[2].cast<int64_t>(), parts[3].cast<int64_t>(),
          parts[4].cast<int64_t>()};
}

RotaryProblem rotary_problem(const py::dict& a) {
  RotaryProblem p{};
  p.storage = storage(a), p.q = heads(a["q"]), p.k = heads(a["k"]);
  get(a, "rows", p.rows), get(a, "head_dim", p.head_dim), get(a, "transposed", p.transposed);
  get(a, "cos", p.cos), get(a, "sin", p.sin);
  return p;
}

DropoutProblem dropout_problem(const py::dict& a) {
  DropoutProblem p{};
  p.storage = storage(a), p.dropout = dropout_rule(a);
  get(a, "rows", p.rows), get(a, "width", p.width), get(a, "x", p.x), get(a, "out", p.out);
  return p;
}

int64_t rows_per_piece(int64_t rows) { return std::max(kLeastRows, (rows + kMostPieces - 1) / kMostPieces); }

int64_t pieces(int64_t rows) { return (rows + rows_per_piece(rows) - 1) / rows_per_piece(rows); }

template <class Work>
void for_pieces(int64_t rows, int threads, Work work) {
  const int64_t size = rows_per_piece(rows);
  parallel_for(pieces(rows), threads,
               [&](int64_t piece, int) { work(Item{piece, piece * size, std::min((piece + 1) * size, rows)}); });
}

// The function for Python that reads a problem with `read` and runs a kernel on its pieces.
template <auto read, auto kernel>
void run(const py::dict& arguments, const std::string& isa, int threads) {
  const auto p = read(arguments);
  const auto compute = kernels_for(isa_named(isa)).*kernel;
  const py::gil_scoped_release release;
  for_pieces(p.rows, threads, [&](const Item& item) {
    if constexpr (std::is_invocable_v<decltype(compute), decltype(p), Item>)
      compute(p, item);
    else
      compute(p, item, Scratch::of_this_thread());
  });
}

}  // namespace
}  // namespace rowwise

void bind_rowwise(py::module_& module) {
  using namespace rowwise;
  const auto define = [&module](const char* name, auto function, const char* text) {
    module.def(name, function, py::arg("arguments"), py::arg("isa"), py::arg("threads"), text);
  };
  define("norm_forward", run<norm_problem, &Kernels::norm_forward>,
         "Fills out and, if given, z, normal and rstd; kernels/norm/cpu.py makes the arguments.");
  define("norm_backward", run<norm_problem, &Kernels::norm_backward>,
         "Fills grad_residual, grad_x and each piece's sums for the parameters.");
  define("gelu_forward", run<gelu_problem, &Kernels::gelu_forward>,
         "Fills out and, if given, derivative; kernels/gelu/cpu.py makes the arguments.");
  define("gelu_backward", run<gelu_problem, &Kernels::gelu_backward>,
         "Fills grad_x and each piece's sums for the bias.");
  define("geglu_forward", run<geglu_problem, &Kernels::geglu_forward>,
         "Fills out; kernels/gelu/cpu.py makes the arguments.");
  define("geglu_backward", run<geglu_problem, &Kernels::geglu_backward>,
         "Fills grad_x and each piece's sums for the bias.");
  define("rotary", run<rotary_problem, &Kernels::rotary>,
         "Fills the outputs of q and k; kernels/rotary/cpu.py makes the arguments.");
  define("dropout", run<dropout_problem, &Kernels::dropout>, "Fills out; kernels/dropout.py makes the arguments.");
  module.def("row_pieces", &pieces, py::arg("rows"), "How many pieces so many rows are shared out in.");
}

}  // namespace penstock
