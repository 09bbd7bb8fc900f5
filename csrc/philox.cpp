#include "philox.h"

#include <pybind11/numpy.h>

#include <algorithm>

#include "arguments.h"
#include "bindings.h"
#include "threads.h"

namespace py = pybind11;

namespace penstock {
namespace {

struct MaskRequest {
  const int32_t* cu_seqlens;  // (batch + 1)
  const int64_t* ids;         // (batch), or null for 0, 1, 2 ...
  int64_t batch, units;
  uint64_t seed;
  uint32_t stream, threshold;
  bool per_sequence;  // every token has position 0's mask
  uint8_t* out;       // (tokens, units)
};

void fill_row(const MaskRequest& request, const DropoutKey& key, uint32_t position, uint8_t* row) {
  for (int64_t unit = 0; unit < request.units; unit += 8) {
    const auto bits = dropout_bits(key, position, uint32_t(unit / 8));
    const int64_t count = std::min<int64_t>(8, request.units - unit);
    for (int64_t i = 0; i < count; ++i) row[unit + i] = bits[i] >= request.threshold;
  }
}

void fill_sequence(const MaskRequest& request, int64_t b) {
  const int64_t begin = request.cu_seqlens[b], end = request.cu_seqlens[b + 1];
  const DropoutKey key(request.seed, request.ids != nullptr ? request.ids[b] : b, request.stream);
  uint8_t* const first = request.out + begin * request.units;
  for (int64_t row = begin; row < end; ++row) {
    uint8_t* const out = request.out + row * request.units;
    if (request.per_sequence && row > begin) {
      std::copy(first, first + request.units, out);
    } else {
      fill_row(request, key, uint32_t(row - begin), out);
    }
  }
}

}  // namespace

void bind_philox(py::module_& module) {
  module.def(
      "dropout_bits",
      [](uint64_t seed, int64_t example_id, uint32_t position, uint32_t stream, uint32_t units) {
        py::array_t<uint16_t> out(units);
        auto bits = out.mutable_unchecked<1>();
        const DropoutKey key(seed, example_id, stream);
        for (uint32_t unit = 0; unit < units; ++unit) bits(unit) = dropout_bits(key, position, unit / 8)[unit % 8];
        return out;
      },
      py::arg("seed"), py::arg("example_id"), py::arg("position"), py::arg("stream"), py::arg("units"),
      "The 16 random bits of each of the first `units` units at one position of one example: the rule as C++ applies "
      "it.");
  module.def(
      "weight_bits",
      [](uint64_t seed, int64_t example_id, uint32_t head, uint32_t query, uint32_t keys) {
        py::array_t<uint16_t> out(keys);
        auto bits = out.mutable_unchecked<1>();
        const HeadKey head_key(seed, example_id, head);
        const auto pair = [](uint32_t i) { return i / 16 * 8 + i % 8; };
        for (uint32_t key = 0; key < keys; ++key) {
          const auto words = philox2x32({head_key.of_query ^ pair(query), head_key.of_key ^ pair(key)}, head_key.key);
          bits(key) = uint16_t(words[query / 8 % 2] >> (key / 8 % 2 * 16));
        }
        return out;
      },
      py::arg("seed"), py::arg("example_id"), py::arg("head"), py::arg("query"), py::arg("keys"),
      "The 16 random bits of one query's attention weights for the first `keys` keys, likewise.");
  module.def(
      "keep_mask",
      [](const py::kwargs& given) {
        Arguments a("keep_mask", given);
        MaskRequest request{};
        a.get<"cu_seqlens">(request.cu_seqlens), a.get<"batch">(request.batch), a.get_or_none<"ids">(request.ids);
        a.get<"seed">(request.seed), a.get<"stream">(request.stream), a.get<"units">(request.units);
        a.get<"threshold">(request.threshold), a.get<"per_sequence">(request.per_sequence), a.get<"out">(request.out);
        const int threads = a.get<"threads", int>();
        a.finish();
        const py::gil_scoped_release release;
        parallel_for(request.batch, threads, [&](int64_t b, int) { fill_sequence(request, b); });
      },
      "Writes 1 where a unit is kept, 0 where it is dropped, to (tokens, units) bytes. Pointers are addresses; ids may "
      "be 0.");
}

}  // namespace penstock
