#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "bindings.h"

namespace py = pybind11;

namespace penstock {
namespace {

// FNV-1a of words of each piece of memory, given by address and bytes, at equal distances from its first to its last.
uint64_t sampled(const std::vector<std::array<uint64_t, 2>>& pieces) {
  constexpr int64_t kWords = 64;
  uint64_t hash = 0xCBF29CE484222325;
  for (const auto& [address, bytes] : pieces) {
    const int64_t words = int64_t(bytes / sizeof(uint32_t)), n = std::min(words, kWords);
    const auto* from = reinterpret_cast<const uint32_t*>(static_cast<uintptr_t>(address));
    for (int64_t i = 0; i < n; ++i) {
      const int64_t word = n > 1 ? i * (words - 1) / (n - 1) : 0;
      hash = (hash ^ from[word]) * 0x100000001B3;
    }
  }
  return hash;
}

}  // namespace

void bind_sampled(py::module_& module) {
  module.def("sampled", &sampled, py::arg("pieces"),
             "A hash of 64 words of each piece of memory, given as (address, bytes).");
}

}  // namespace penstock
