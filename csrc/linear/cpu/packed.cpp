// The calls from Python: packing weights, and linear layers on what was packed, blocks of rows shared out among
// threads.
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "bindings.h"
#include "isa.h"
#include "linear/cpu/packed_problem.h"
#include "threads.h"
#include "workspace.h"

namespace py = pybind11;

namespace penstock {
namespace linear {
namespace {

const PackedKernels& packed_kernels_for(Isa isa) {
  return PENSTOCK_TABLE_FOR(isa, portable_packed, avx2_packed, avx512_packed, avx512_bf16_packed, amx_bf16_packed);
}

// Weights that `pack` made.
struct Packed {
  Isa isa;
  Kind kind;
  int64_t in_features, out_features;
  size_t bytes;
  Block block;
};

Kind kind_named(const std::string& name) {
  if (name == "float32") return Kind::float32;
  if (name == "bfloat16") return Kind::bfloat16;
  if (name == "int8") return Kind::int8;
  throw std::invalid_argument("kind must be float32, bfloat16 or int8, got " + name);
}

Then then_named(const std::string& name) {
  if (name.empty()) return Then::nothing;
  if (name == "gelu") return Then::gelu;
  if (name == "geglu") return Then::geglu;
  if (name == "norm") return Then::norm;
  throw std::invalid_argument("then must be empty, gelu, geglu or norm, got " + name);
}

bool fits(Kind kind, DType dtype) {
  return kind == Kind::int8 || (kind == Kind::bfloat16) == (dtype == DType::bfloat16);
}

// Weights and biases by address, and how many rows they have.
std::shared_ptr<Packed> pack(const py::kwargs& given) {
  Arguments a("pack_linear", given);
  const Where where(a);
  const auto named = a.get<"parts", std::vector<std::tuple<uintptr_t, uintptr_t, int64_t>>>();
  Weights weights{};
  weights.kind = kind_named(a.get<"kind", std::string>()), weights.dtype = dtype(a);
  a.get<"in_features">(weights.in_features);
  a.finish();
  std::vector<Part> parts;
  for (const auto& [weight, bias, rows] : named) {
    parts.push_back({reinterpret_cast<const void*>(weight), reinterpret_cast<const float*>(bias), rows});
    if (rows < 0) throw std::invalid_argument("sizes must be positive");
    weights.out_features += rows;
  }
  if (weights.in_features < 1 || weights.out_features < 1) throw std::invalid_argument("sizes must be positive");
  if (!fits(weights.kind, weights.dtype)) throw std::invalid_argument("weights are of another type than products");
  weights.parts = parts.data(), weights.count = int64_t(parts.size());
  const Isa isa = isa_named(where.isa);
  const PackedKernels& kernels = packed_kernels_for(isa);
  const py::gil_scoped_release release;
  const size_t bytes = kernels.bytes(weights);
  const auto packed = std::make_shared<Packed>(
      Packed{isa, weights.kind, weights.in_features, weights.out_features, bytes, Block(bytes)});
  kernels.pack(weights, packed->block.as<void>());
  return packed;
}

// One of the layers of a call, and the object that holds its weights.
std::shared_ptr<Packed> layer_of(const py::dict& given, PackedLayer& layer) {
  Arguments a("packed_layers: a layer", py::reinterpret_borrow<py::kwargs>(given));
  auto packed = a.get<"packed", std::shared_ptr<Packed>>();
  layer.then = then_named(a.get<"then", std::string>());
  a.get_or_none<"out">(layer.out), a.get_or_none<"z">(layer.z);
  a.get_or_none<"residual">(layer.residual), a.get<"residual_of">(layer.residual_of);
  layer.residual_dtype = dtype<"bfloat16_residual">(a);
  a.get_or_none<"norm_weight">(layer.norm_weight), a.get_or_none<"norm_bias">(layer.norm_bias), a.get<"eps">(layer.eps);
  a.finish();
  layer.kind = packed->kind, layer.in_features = packed->in_features, layer.out_features = packed->out_features;
  layer.packed = packed->block.as<void>();
  return packed;
}

// Throws unless layer i can follow those before it.
void check(const PackedCall& p, const std::vector<PackedLayer>& layers, int64_t i) {
  const PackedLayer& layer = layers[i];
  if (!fits(layer.kind, p.dtype)) throw std::invalid_argument("packed weights have another dtype");
  if (layer.then == Then::geglu && layer.out_features % 2 != 0) throw std::invalid_argument("geglu needs two halves");
  if (i > 0 && layers[i - 1].width() != layer.in_features)
    throw std::invalid_argument("a layer reads another number of features than the one before it gives");
  if (p.rows == 0 || layer.then != Then::norm) return;
  if (layer.norm_weight == nullptr) throw std::invalid_argument("a norm needs norm_weight");
  if (layer.residual != nullptr) return;
  if (layer.residual_of < 0 || layer.residual_of >= i || layers[layer.residual_of].width() != layer.width())
    throw std::invalid_argument("a norm needs residual, or residual_of, a layer before it of its width");
}

void run(const py::kwargs& given) {
  Arguments a("packed_layers", given);
  const Where where(a);
  PackedCall p{};
  p.dtype = dtype(a);
  a.get<"rows">(p.rows), a.get<"x">(p.x);
  const auto described = a.get<"layers", std::vector<py::dict>>();
  a.finish();
  if (described.empty()) throw std::invalid_argument("there must be a layer");
  const Isa isa = isa_named(where.isa);
  std::vector<PackedLayer> layers(described.size());
  std::vector<std::shared_ptr<Packed>> held;
  p.block = block_rows(1);
  size_t bytes = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    held.push_back(layer_of(described[i], layers[i]));
    if (held.back()->isa != isa) throw std::invalid_argument("packed weights have another instruction set");
    check(p, layers, int64_t(i));
    p.block = std::min(p.block, block_rows(layers[i].out_features)), bytes += held.back()->bytes;
  }
  p.layers = layers.data(), p.count = int64_t(layers.size());
  const auto compute = packed_kernels_for(isa).run;
  const py::gil_scoped_release release;
  // What a row comes to does not depend on its block: few rows are shared out too.
  constexpr int64_t kLeast = 12;
  // Weights that the second-level cache cannot hold all at once serve more rows before the next layer's take their
  // place.
  constexpr size_t kCached = 3 << 19;
  const int64_t most = p.block * (p.count > 1 && bytes > kCached ? 4 : 1), whole = (p.rows + most - 1) / most;
  const int64_t blocks = std::max(whole, std::min<int64_t>(where.threads, p.rows / kLeast));
  parallel_for(blocks, where.threads,
               [&](int64_t i, int) { compute(p, share(p.rows, blocks, i), Scratch::of_this_thread()); });
}

}  // namespace
}  // namespace linear

void bind_packed_linear(py::module_& module) {
  using namespace linear;
  py::class_<Packed, std::shared_ptr<Packed>>(module, "PackedLinear", "Weights as `pack_linear` laid them out.")
      .def_property_readonly("isa", [](const Packed& packed) { return name(packed.isa); })
      .def_readonly("bytes", &Packed::bytes);
  module.def("pack_linear", &pack, "Linear layers' weights packed for `packed_layers`; they may change afterwards.");
  module.def("packed_layers", &run,
             "Fills each layer's out and z, where given; kernels/packed_linear.py makes the arguments.");
}

}  // namespace penstock
