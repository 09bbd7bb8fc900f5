// The call from Python: raw addresses in, blocks of the result shared out among threads.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "arguments.h"
#include "bindings.h"
#include "isa.h"
#include "linear/cpu/problem.h"
#include "threads.h"

namespace py = pybind11;

namespace penstock {
namespace linear {

namespace {

#ifdef __x86_64__
constexpr auto compute = compute_on_amx;
#else
constexpr decltype(&compute_on_amx) compute = nullptr;
#endif

// How a result is divided into blocks: `rows` and `columns` of each but the last ones, and how many lie side by side.
struct Division {
  int64_t rows, columns, across, count;
};

// The fastest on this many threads. What a block sums does not depend on it.
Division divide(const WeightGradient& p, int threads) {
  // A block's operands and sums stay in the second-level cache; preparing x costs as much as kPreparation more rows.
  constexpr int64_t kMostRows = 384, kMostColumns = 512, kTile = 32, kPreparation = 32;
  const auto piece = [](int64_t size, int64_t parts) {
    return ((size + parts - 1) / parts + kTile - 1) / kTile * kTile;
  };
  const auto parts = [](int64_t size, int64_t each) { return (size + each - 1) / each; };
  const int64_t all = std::max<int64_t>(p.columns, 1);  // a bias has a gradient where there is no input
  const int64_t columns = piece(all, parts(all, kMostColumns)), across = parts(all, columns);
  Division best{};
  int64_t least = INT64_MAX;
  for (int64_t n = parts(p.rows, kMostRows); n <= parts(p.rows, kTile); ++n) {
    const int64_t rows = piece(p.rows, n), count = parts(p.rows, rows) * across;
    const int64_t time = parts(count, threads) * (rows + kPreparation);
    if (time < least) least = time, best = {rows, columns, across, count};
  }
  return best;
}

void weight_gradient(const py::kwargs& given) {
  Arguments a("weight_gradient", given);
  const Where where(a);
  WeightGradient p{};
  a.get<"tokens">(p.tokens), a.get<"rows">(p.rows), a.get<"columns">(p.columns);
  a.get<"grad_out">(p.grad_out), a.get<"x">(p.x), a.get<"grad_weight">(p.grad_weight);
  a.get_or_none<"grad_bias">(p.grad_bias);
  a.finish();
  if (isa_named(where.isa) != Isa::amx_bf16) throw std::invalid_argument("weight_gradient needs amx_bf16");
  const py::gil_scoped_release release;
  if (p.rows == 0) return;
  if (p.tokens == 0) {
    std::memset(p.grad_weight, 0, size_t(p.rows * p.columns) * sizeof(float));
    if (p.grad_bias != nullptr) std::memset(p.grad_bias, 0, size_t(p.rows) * sizeof(float));
    return;
  }
  const Division division = divide(p, where.threads);
  const int64_t across = division.across;
  parallel_for(division.count, where.threads, [&](int64_t i, int) {
    const int64_t row = i / across * division.rows, column = i % across * division.columns;
    const Block block{row, std::min(division.rows, p.rows - row), column,
                      std::min(division.columns, p.columns - column)};
    compute(p, block, Scratch::of_this_thread());
  });
}

}  // namespace
}  // namespace linear

void bind_linear(py::module_& module) {
  module.def("weight_gradient", &linear::weight_gradient,
             "Fills grad_weight and, if given, grad_bias; kernels/cpu.py makes the arguments.");
}

}  // namespace penstock
