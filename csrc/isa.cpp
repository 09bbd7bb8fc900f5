#include "isa.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "amx.h"
#include "bindings.h"
#include "load.h"

namespace penstock {

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> isas = [] {
    std::vector<Isa> found{Isa::portable};
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(Isa::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      found.push_back(Isa::avx512);
      if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) {
        found.push_back(Isa::avx512_bf16);
        if (may_use_amx()) found.push_back(Isa::amx_bf16);
      }
    }
#endif
    return found;
  }();
  return isas;
}

std::string name(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::amx_bf16:
      return "amx_bf16";
    default:
      return "portable";
  }
}

Isa isa_named(const std::string& wanted) {
  const auto& isas = available_isas();
  if (wanted.empty()) return isas.back();
  std::string names;
  for (const Isa isa : isas) {
    if (name(isa) == wanted) return isa;
    names += (names.empty() ? "" : ", ") + name(isa);
  }
  throw std::invalid_argument("no instruction set '" + wanted + "' here, there is " + names);
}

void bind_isa(pybind11::module_& module) {
  module.def(
      "available_isas",
      [] {
        std::vector<std::string> names;
        for (const Isa isa : available_isas()) names.push_back(name(isa));
        return names;
      },
      "Names of the instruction sets that the CPU kernels can use here, slowest first.");
  module.def("waits_briefly", &waits_briefly,
             "Whether threads that wait sleep at once, as they do while other processes keep the cores busy.");
}

}  // namespace penstock
