#include "philox.h"

#include <pybind11/numpy.h>

#include "bindings.h"

namespace py = pybind11;

namespace penstock {

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
}

}  // namespace penstock
