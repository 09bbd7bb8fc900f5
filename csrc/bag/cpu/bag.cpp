// The calls from Python: raw addresses in, texts and rows shared out among threads. What a thread computes does not
// depend on which others there are, so that results do not depend on their number.
#include <algorithm>
#include <atomic>
#include <bit>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "arguments.h"
#include "bag/cpu/problem.h"
#include "bindings.h"
#include "isa.h"
#include "scratch.h"
#include "threads.h"

namespace py = pybind11;

namespace penstock {
namespace bag {
namespace {

constexpr int64_t kRowsAtOnce = 1024, kTokensAtOnce = 2048;
constexpr int kDigit = 11;  // bits that one pass sorts by

const Kernels& kernels_for(Isa isa) { return PENSTOCK_TABLE_FOR(isa, portable_kernels, avx2_kernels, avx512_kernels); }

Texts read_texts(Arguments& a) {
  Texts t{};
  a.get<"tokens">(t.tokens), a.get<"total">(t.total), a.get<"cu_seqlens">(t.cu_seqlens), a.get<"batch">(t.batch);
  a.get<"vocabulary">(t.vocabulary), a.get<"buckets">(t.buckets), a.get<"ngrams">(t.ngrams);
  return t;
}

[[noreturn]] void refuse_token(const Texts& texts) {
  int64_t i = 0;
  while (uint64_t(int64_t{texts.tokens[i]}) < uint64_t(texts.vocabulary)) ++i;
  throw py::index_error("token " + std::to_string(texts.tokens[i]) + " is not in the vocabulary of " +
                        std::to_string(texts.vocabulary));
}

// Calls work(texts) for runs of texts of some kTokensAtOnce tokens.
template <class Work>
void for_texts(const Texts& texts, int threads, Work work) {
  const int64_t parts = std::clamp<int64_t>(texts.total / kTokensAtOnce, 1, std::max<int64_t>(texts.batch, 1));
  parallel_for(parts, threads, [&](int64_t part, int) { work(share(texts.batch, parts, part)); });
}

template <class Work>
void for_rows(int64_t rows, int threads, Work work) {
  const int64_t parts = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
  parallel_for(parts, threads,
               [&](int64_t part, int) { work(Range{part * kRowsAtOnce, std::min(rows, (part + 1) * kRowsAtOnce)}); });
}

void mean(const py::kwargs& given) {
  Arguments a("bag_mean", given);
  const Where where(a);
  MeanProblem p{};
  p.texts = read_texts(a);
  a.get<"width">(p.width), a.get<"table">(p.table), a.get<"out">(p.out);
  a.finish();
  const Kernels& kernels = kernels_for(isa_named(where.isa));
  std::atomic<bool> known = true;
  {
    const py::gil_scoped_release release;
    for_texts(p.texts, where.threads, [&](Range texts) {
      int64_t most = 0;
      for (int64_t text = texts.begin; text < texts.end; ++text)
        most = std::max(most, features_of(p.texts.of(text).size(), p.texts.ngrams));
      int32_t* features = Scratch::of_this_thread().take<int32_t>(most);
      if (!kernels.mean(p, texts, features)) known = false;
    });
  }
  if (!known) refuse_token(p.texts);
}

// A feature of a text.
struct Place {
  uint32_t row, text;
};

// Sorts by row and keeps the order of places of one row. The result lies in either of the two arrays.
Place* sort_by_row(Place* places, Place* other, int64_t count, int64_t rows, int threads) {
  const int64_t parts = std::clamp<int64_t>(count / 65536, 1, threads);
  std::vector<int64_t> starts(size_t(parts) << kDigit);
  const int bits = std::bit_width(uint64_t(std::max<int64_t>(rows - 1, 1)));
  for (int shift = 0; shift < bits; shift += kDigit) {
    const auto digit = [shift](Place place) { return place.row >> shift & ((1u << kDigit) - 1); };
    std::fill(starts.begin(), starts.end(), 0);
    parallel_for(parts, threads, [&](int64_t part, int) {
      const Range range = share(count, parts, part);
      int64_t* counts = starts.data() + (part << kDigit);
      for (int64_t i = range.begin; i < range.end; ++i) ++counts[digit(places[i])];
    });
    int64_t sum = 0;
    for (int64_t value = 0; value < 1 << kDigit; ++value)
      for (int64_t part = 0; part < parts; ++part) sum += std::exchange(starts[(part << kDigit) + value], sum);
    parallel_for(parts, threads, [&](int64_t part, int) {
      const Range range = share(count, parts, part);
      int64_t* next = starts.data() + (part << kDigit);
      for (int64_t i = range.begin; i < range.end; ++i) other[next[digit(places[i])]++] = places[i];
    });
    std::swap(places, other);
  }
  return places;
}

// Fills rows and values, which have room for every feature; how many distinct rows there are.
int64_t gradient(const py::kwargs& given) {
  Arguments a("bag_gradient", given);
  const Where where(a);
  const Texts texts = read_texts(a);
  SumProblem p{};
  const auto grad_out = a.get<"grad_out", const float*>();
  const auto rows = a.get<"rows", int64_t*>();
  a.get<"width">(p.width), a.get<"values">(p.values);
  a.finish();
  const Kernels& kernels = kernels_for(isa_named(where.isa));
  std::atomic<bool> known = true;
  int64_t distinct = 0;
  {
    const py::gil_scoped_release release;
    std::vector<int64_t> begins(size_t(texts.batch) + 1);
    for (int64_t text = 0; text < texts.batch; ++text)
      begins[text + 1] = begins[text] + features_of(texts.of(text).size(), texts.ngrams);
    const int64_t count = begins.back();
    const auto memory = std::make_unique_for_overwrite<Place[]>(2 * size_t(count));
    const auto scaled = std::make_unique_for_overwrite<float[]>(size_t(texts.batch * p.width));
    for_texts(texts, where.threads, [&](Range part) {
      for (int64_t text = part.begin; text < part.end; ++text) {
        Place* place = memory.get() + begins[text];
        if (!for_features(texts, texts.of(text), [&](int64_t row) { *place++ = {uint32_t(row), uint32_t(text)}; })) {
          known = false;
          return;
        }
        const float over = 1.0f / float(std::max<int64_t>(begins[text + 1] - begins[text], 1));
        for (int64_t d = text * p.width; d < (text + 1) * p.width; ++d) scaled[d] = grad_out[d] * over;
      }
    });
    if (known) {
      const Place* places =
          sort_by_row(memory.get(), memory.get() + count, count, texts.vocabulary + texts.buckets, where.threads);
      std::vector<int64_t> first;
      first.reserve(size_t(count) + 1);
      const auto of_places = std::make_unique_for_overwrite<uint32_t[]>(size_t(count));
      for (int64_t i = 0; i < count; ++i) {
        of_places[i] = places[i].text;
        if (i > 0 && places[i].row == places[i - 1].row) continue;
        rows[first.size()] = places[i].row;
        first.push_back(i);
      }
      distinct = int64_t(first.size());
      first.push_back(count);
      p.grad = scaled.get(), p.texts = of_places.get(), p.first = first.data();
      for_rows(distinct, where.threads, [&](Range part) { kernels.sum(p, part); });
    }
  }
  if (!known) refuse_token(texts);
  return distinct;
}

void update(const py::kwargs& given) {
  Arguments a("bag_update", given);
  const Where where(a);
  UpdateProblem p{};
  const auto count = a.get<"count", int64_t>();
  p.rate = float(a.get<"rate", double>()), p.eps = float(a.get<"eps", double>());
  a.get<"width">(p.width), a.get<"rows">(p.rows), a.get<"values">(p.values), a.get<"table">(p.table);
  a.get<"sums">(p.sums);
  a.finish();
  const Kernels& kernels = kernels_for(isa_named(where.isa));
  const py::gil_scoped_release release;
  for_rows(count, where.threads, [&](Range part) { kernels.update(p, part); });
}

}  // namespace
}  // namespace bag

void bind_bag(py::module_& module) {
  module.def("bag_mean", &bag::mean, "Fills out; kernels/bag/cpu.py makes the arguments.");
  module.def("bag_gradient", &bag::gradient,
             "Fills rows and values, which have room for every feature; how many distinct rows there are.");
  module.def("bag_update", &bag::update,
             "Adagrad of the rows named, in place; kernels/bag/cpu.py makes the arguments.");
}

}  // namespace penstock
