// The calls from Python: raw addresses in, rows shared out among threads.
#include <algorithm>
#include <tuple>
#include <type_traits>

#include "arguments.h"
#include "bindings.h"
#include "isa.h"
#include "rowwise/cpu/problem.h"
#include "threads.h"

namespace py = pybind11;

namespace penstock {
namespace rowwise {
namespace {

const Kernels& kernels_for(Isa isa) {
  return PENSTOCK_TABLE_FOR(isa, portable_kernels, avx2_kernels, avx512_kernels, avx512_bf16_kernels);
}

Dropout dropout_rule(Arguments& a) {
  Dropout d{};
  a.get<"dropout_threshold">(d.threshold), a.get<"dropout_scale">(d.scale), a.get<"seed">(d.seed);
  a.get<"batch">(d.batch), a.get_or_none<"cu_seqlens">(d.cu_seqlens), a.get_or_none<"ids">(d.ids);
  return d;
}

NormProblem norm_problem(Arguments& a) {
  NormProblem p{};
  p.dtype = dtype(a), p.residual_dtype = dtype<"bfloat16_residual">(a);
  p.dropout = dropout_rule(a);
  a.get<"rows">(p.rows), a.get<"width">(p.width), a.get<"weight">(p.weight), a.get_or_none<"x_bias">(p.x_bias);
  a.get_or_none<"normal">(p.normal), a.get_or_none<"rstd">(p.rstd);
  return p;
}

NormProblem norm_forward_problem(Arguments& a) {
  NormProblem p = norm_problem(a);
  a.get<"eps">(p.eps), a.get<"x">(p.x), a.get<"residual">(p.residual), a.get_or_none<"bias">(p.bias);
  a.get<"out">(p.out), a.get_or_none<"z">(p.z);
  return p;
}

NormProblem norm_backward_problem(Arguments& a) {
  NormProblem p = norm_problem(a);
  a.get<"grad_out">(p.grad_out), a.get_or_none<"grad_z">(p.grad_z);
  a.get_or_none<"grad_x">(p.grad_x), a.get<"grad_residual">(p.grad_residual), a.get<"sums">(p.sums);
  return p;
}

template <class Problem>
Problem sized_problem(Arguments& a) {
  Problem p{};
  p.dtype = dtype(a);
  a.get<"rows">(p.rows), a.get<"width">(p.width);
  return p;
}

GeluProblem gelu_forward_problem(Arguments& a) {
  auto p = sized_problem<GeluProblem>(a);
  a.get<"x">(p.x), a.get_or_none<"bias">(p.bias), a.get<"out">(p.out), a.get_or_none<"derivative">(p.derivative);
  return p;
}

GeluProblem gelu_backward_problem(Arguments& a) {
  auto p = sized_problem<GeluProblem>(a);
  a.get<"grad_out">(p.grad_out), a.get<"saved_derivative">(p.saved_derivative), a.get<"grad_x">(p.grad_x);
  a.get_or_none<"sums">(p.sums);
  return p;
}

GegluProblem geglu_forward_problem(Arguments& a) {
  auto p = sized_problem<GegluProblem>(a);
  a.get<"x">(p.x), a.get_or_none<"bias">(p.bias), a.get<"out">(p.out);
  return p;
}

GegluProblem geglu_backward_problem(Arguments& a) {
  auto p = sized_problem<GegluProblem>(a);
  a.get<"x">(p.x), a.get_or_none<"bias">(p.bias), a.get<"grad_out">(p.grad_out), a.get<"grad_x">(p.grad_x);
  a.get_or_none<"sums">(p.sums);
  return p;
}

template <Name name>
Heads heads(Arguments& a) {
  const auto [x, out, count, token_stride, head_stride] =
      a.get<name, std::tuple<uintptr_t, uintptr_t, int64_t, int64_t, int64_t>>();
  return {reinterpret_cast<const void*>(x), reinterpret_cast<void*>(out), count, token_stride, head_stride};
}

RotaryProblem rotary_problem(Arguments& a) {
  RotaryProblem p{};
  p.dtype = dtype(a), p.q = heads<"q">(a), p.k = heads<"k">(a);
  a.get<"rows">(p.rows), a.get<"head_dim">(p.head_dim), a.get<"transposed">(p.transposed);
  a.get<"cos">(p.cos), a.get<"sin">(p.sin);
  return p;
}

DropoutProblem dropout_problem(Arguments& a) {
  auto p = sized_problem<DropoutProblem>(a);
  p.dropout = dropout_rule(a);
  a.get<"stream">(p.dropout.stream), a.get<"per_sequence">(p.dropout.per_sequence);
  a.get<"x">(p.x), a.get<"out">(p.out);
  return p;
}

AdamWProblem adamw_problem(Arguments& a) {
  AdamWProblem p{};
  a.get<"rows">(p.rows), a.get<"width">(p.width), a.get<"names">(p.names);
  a.get<"parameter">(p.parameter), a.get<"mean">(p.mean), a.get<"square">(p.square), a.get<"gradient">(p.gradient);
  a.get<"beta1">(p.beta1), a.get<"beta2">(p.beta2), a.get<"rest1">(p.rest1), a.get<"rest2">(p.rest2);
  a.get<"decay">(p.decay), a.get<"rate">(p.rate);
  a.get<"correction">(p.correction), a.get<"eps">(p.eps), a.get<"divisor">(p.divisor);
  return p;
}

DecayProblem decay_problem(Arguments& a) {
  DecayProblem p{};
  a.get<"rows">(p.rows), a.get<"width">(p.width), a.get<"count">(p.count), a.get<"names">(p.names);
  a.get<"parameter">(p.parameter), a.get<"factors">(p.factors);
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

// Reads a problem with `read` and runs a kernel on its pieces.
template <auto read, auto kernel>
void run(const char* function, const py::kwargs& given) {
  Arguments arguments(function, given);
  const Where where(arguments);
  const auto p = read(arguments);
  arguments.finish();
  const auto compute = kernels_for(isa_named(where.isa)).*kernel;
  const py::gil_scoped_release release;
  for_pieces(p.rows, where.threads, [&](const Item& item) {
    if constexpr (std::is_invocable_v<decltype(compute), decltype(p), Item>)
      compute(p, item);
    else
      compute(p, item, Scratch::of_this_thread());
  });
}

// Adds it to the module as a function of that name.
template <auto read, auto kernel>
void define(py::module_& module, const char* name, const char* text) {
  module.def(name, [name](const py::kwargs& given) { run<read, kernel>(name, given); }, text);
}

}  // namespace
}  // namespace rowwise

void bind_rowwise(py::module_& module) {
  using namespace rowwise;
  define<norm_forward_problem, &Kernels::norm_forward>(
      module, "norm_forward", "Fills out and, if given, z, normal and rstd; kernels/cpu.py makes the arguments.");
  define<norm_backward_problem, &Kernels::norm_backward>(
      module, "norm_backward", "Fills grad_residual, grad_x and each piece's sums for the parameters.");
  define<gelu_forward_problem, &Kernels::gelu_forward>(
      module, "gelu_forward", "Fills out and, if given, derivative; kernels/cpu.py makes the arguments.");
  define<gelu_backward_problem, &Kernels::gelu_backward>(module, "gelu_backward",
                                                         "Fills grad_x and each piece's sums for the bias.");
  define<geglu_forward_problem, &Kernels::geglu_forward>(module, "geglu_forward",
                                                         "Fills out; kernels/cpu.py makes the arguments.");
  define<geglu_backward_problem, &Kernels::geglu_backward>(module, "geglu_backward",
                                                           "Fills grad_x and each piece's sums for the bias.");
  define<rotary_problem, &Kernels::rotary>(module, "rotary",
                                           "Fills the outputs of q and k; kernels/cpu.py makes the arguments.");
  define<dropout_problem, &Kernels::dropout>(module, "dropout", "Fills out; kernels/dropout.py makes the arguments.");
  define<adamw_problem, &Kernels::adamw>(module, "adamw_rows",
                                         "Changes parameter, mean and square; kernels/adamw.py makes the arguments.");
  define<decay_problem, &Kernels::decay>(module, "decay_rows",
                                         "Changes parameter; kernels/adamw.py makes the arguments.");
  module.def("row_pieces", &pieces, py::arg("rows"), "How many pieces this many rows are divided into.");
}

}  // namespace penstock
