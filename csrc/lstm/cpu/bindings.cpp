#include "bindings.h"

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "arguments.h"
#include "lstm/cpu/kernels.h"
#include "lstm/cpu/team.h"
#include "workspace.h"

namespace py = pybind11;

namespace penstock {
namespace {

template <class T = void>
T* pointer(uint64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

// Pooled memory that Python sees as a buffer.
class Buffer {
 public:
  explicit Buffer(size_t size) : block_(size), size_(size) {}
  py::buffer_info info() { return {block_.as<uint8_t>(), 1, "B", 1, {py::ssize_t(size_)}, {py::ssize_t(1)}}; }

 private:
  Block block_;
  size_t size_;
};

// Weights that `pack` made and forward takes, for layers like its own.
struct Packed {
  Isa isa;
  DType dtype;
  int64_t input_size, hidden_size;
  int directions;
  bool quantised;
  size_t bytes;
  Block block;

  // Throws std::invalid_argument if the call is for other weights, or another instruction set.
  void check(Isa called, const lstm::Layer& layer) const {
    const std::array packed{int64_t(isa), int64_t(dtype), input_size, hidden_size, int64_t{directions}};
    const std::array wanted{int64_t(called), int64_t(layer.dtype), layer.input_size, layer.hidden_size,
                            int64_t{layer.directions}};
    for (const auto& [i, what] : {std::pair{0, "instruction set"},
                                  {1, "dtype"},
                                  {2, "input_size"},
                                  {3, "hidden_size"},
                                  {4, "number of directions"}}) {
      if (packed[i] != wanted[i]) throw std::invalid_argument(std::string("packed weights have another ") + what);
    }
  }
};

DType dtype_named(const std::string& name) {
  if (name == "float32") return DType::float32;
  if (name == "bfloat16") return DType::bfloat16;
  throw std::invalid_argument("dtype must be float32 or bfloat16, got " + name);
}

lstm::Pool pool_named(const std::string& name) {
  if (name.empty()) return lstm::Pool::none;
  if (name == "max") return lstm::Pool::max;
  if (name == "mean") return lstm::Pool::mean;
  throw std::invalid_argument("pool must be empty, max or mean, got " + name);
}

// The rows of an embedding table and which of them the tokens are: addresses of int32 ids and of the table, the table's
// dtype and its number of rows.
using Embeddings = std::tuple<uint64_t, uint64_t, std::string, int64_t>;

// Its weights and their sizes.
lstm::Layer weights_of(Arguments& a) {
  const auto weights = a.get<"weights", std::vector<std::array<uint64_t, 4>>>();
  lstm::Layer layer{};
  layer.dtype = dtype_named(a.get<"dtype", std::string>());
  a.get<"input_size">(layer.input_size), a.get<"hidden_size">(layer.hidden_size);
  if (weights.empty() || weights.size() > lstm::kMaxDirections)
    throw std::invalid_argument("weights must be of 1 or 2 directions");
  if (layer.input_size < 1 || layer.hidden_size < 1) throw std::invalid_argument("sizes must be positive");
  layer.directions = int(weights.size());
  for (size_t d = 0; d < weights.size(); ++d) {
    layer.weights[d] = {pointer(weights[d][0]), pointer(weights[d][1]), pointer(weights[d][2]), pointer(weights[d][3])};
  }
  return layer;
}

lstm::Layer layer_of(Arguments& a) {
  const auto embeddings = a.get<"embeddings", std::optional<Embeddings>>();
  lstm::Layer layer = weights_of(a);
  a.get<"tokens">(layer.tokens), a.get<"batch">(layer.batch);
  a.get_or_none<"x">(layer.x), a.get<"cu_seqlens">(layer.cu_seqlens);
  a.get_or_none<"h0">(layer.h0), a.get_or_none<"c0">(layer.c0);
  layer.pool = pool_named(a.get<"pool", std::string>());
  if (layer.tokens < 0 || layer.batch < 0) throw std::invalid_argument("sizes must be positive");
  if (embeddings) {
    const auto& [ids, table, table_dtype, vocabulary] = *embeddings;
    layer.ids = pointer<int32_t>(ids);
    layer.table = pointer(table);
    layer.table_dtype = dtype_named(table_dtype);
    layer.vocabulary = vocabulary;
    if (layer.table_dtype != layer.dtype && layer.table_dtype != DType::float32)
      throw std::invalid_argument("embeddings must be float32 or of the weights' dtype");
  }
  return layer;
}

lstm::Forward forward_of(Arguments& a) {
  lstm::Forward out{};
  a.get_or_none<"y">(out.y), a.get<"h_n">(out.h_n), a.get<"c_n">(out.c_n), a.get_or_none<"gates">(out.gates);
  a.get_or_none<"c">(out.c), a.get_or_none<"pooled">(out.pooled), a.get_or_none<"maximum">(out.maximum);
  return out;
}

lstm::Backward backward_of(Arguments& a, const lstm::Layer& layer) {
  lstm::Backward io{};
  a.get<"y">(io.y), a.get<"gates">(io.gates), a.get<"c">(io.c), a.get_or_none<"maximum">(io.maximum);
  a.get_or_none<"dy">(io.dy), a.get_or_none<"dpooled">(io.dpooled), a.get_or_none<"dc">(io.dc);
  a.get_or_none<"dh_n">(io.dh_n), a.get_or_none<"dc_n">(io.dc_n), a.get_or_none<"dx">(io.dx);
  a.get_or_none<"dh0">(io.dh0), a.get_or_none<"dc0">(io.dc0);
  const auto gradients = a.get<"weight_gradients", std::vector<std::array<uint64_t, 3>>>();
  if (!gradients.empty() && int(gradients.size()) != layer.directions)
    throw std::invalid_argument("weight_gradients must be empty or of as many directions as weights");
  for (size_t d = 0; d < gradients.size(); ++d)
    io.weights[d] = {pointer(gradients[d][0]), pointer(gradients[d][1]), pointer(gradients[d][2])};
  return io;
}

// Reads a call's arguments, then computes without the GIL.
void run_forward(const py::kwargs& given) {
  Arguments a("lstm_cpu.forward", given);
  const Where where(a);
  const Isa isa = isa_named(where.isa);
  lstm::Layer layer = layer_of(a);
  layer.threads = std::max(where.threads, 1);
  std::shared_ptr<Packed> packed;
  a.get_or_none<"packed">(packed);
  const lstm::Forward out = forward_of(a);
  a.finish();
  if (packed) {
    packed->check(isa, layer);
    layer.packed = packed->block.as<void>();
    layer.quantised = packed->quantised;
  }
  const py::gil_scoped_release released;
  lstm::kernels_for(isa).forward(layer, out);
}

void run_backward(const py::kwargs& given) {
  Arguments a("lstm_cpu.backward", given);
  const Where where(a);
  lstm::Layer layer = layer_of(a);
  layer.threads = std::max(where.threads, 1);
  const lstm::Backward io = backward_of(a, layer);
  a.finish();
  const lstm::Kernels& kernels = lstm::kernels_for(isa_named(where.isa));
  const py::gil_scoped_release released;
  kernels.backward(layer, io);
}

std::shared_ptr<Packed> pack(const py::kwargs& given) {
  Arguments a("lstm_cpu.pack", given);
  const Where where(a);
  const Isa isa = isa_named(where.isa);
  lstm::Layer layer = weights_of(a);
  layer.threads = std::max(where.threads, 1);
  a.get<"quantised">(layer.quantised);
  a.finish();
  const lstm::Kernels& kernels = lstm::kernels_for(isa);
  const py::gil_scoped_release released;
  const size_t bytes = kernels.packed_bytes(layer);
  const auto packed = std::make_shared<Packed>(Packed{isa, layer.dtype, layer.input_size, layer.hidden_size,
                                                      layer.directions, layer.quantised, bytes, Block(bytes)});
  kernels.pack(layer, packed->block.as<void>());
  return packed;
}

}  // namespace

void bind_lstm_cpu(py::module_& parent) {
  py::module_ module =
      parent.def_submodule("lstm_cpu", "The LSTM layer on the CPU; pointers are addresses, 0 or None for none.");

  py::class_<Buffer>(module, "Buffer", py::buffer_protocol(),
                     "Bytes of the kept workspace, returned to it when they die.")
      .def(py::init<size_t>(), py::arg("size"))
      .def_buffer(&Buffer::info);

  py::class_<Packed, std::shared_ptr<Packed>>(module, "Packed", "A layer's weights as `pack` laid them out.")
      .def_property_readonly("isa", [](const Packed& packed) { return name(packed.isa); })
      .def_readonly("bytes", &Packed::bytes);

  module.def("pack", &pack, "One layer's weights packed for `forward`; they may change afterwards.");
  module.def("forward", &run_forward, "One layer; kernels/lstm/cpu.py makes the arguments.");
  module.def("backward", &run_backward, "Its gradients, from what forward saved.");
  module.def(
      "multiply_in_registers",
      [](const std::string& isa, const std::string& dtype, int threads, int64_t rounds) {
        const lstm::Kernels& kernels = lstm::kernels_for(isa_named(isa));
        const DType type = dtype_named(dtype);
        double operations = 0;
        py::gil_scoped_release released;
        auto run = [&](int member, int members) {
          const double done = kernels.multiply_in_registers(type, rounds);
          if (member == 0) operations = done * members;
        };
        lstm::parallel(threads, run);
        return operations;
      },
      py::arg("isa"), py::arg("dtype"), py::arg("threads"), py::arg("rounds"),
      "Multiplies on every thread without touching memory; returns the floating-point operations done. Timed, it gives "
      "the machine's peak.");
  module.def(
      "workspace_use",
      [] {
        const WorkspaceUse use = workspace_use();
        return py::dict(py::arg("kept") = use.kept, py::arg("in_use") = use.in_use, py::arg("limit") = use.limit);
      },
      "Bytes kept for the next call, handed out, and the most that is kept.");
  module.def("set_workspace_limit", &set_workspace_limit, py::arg("bytes"));
  module.def("release_workspace", &release_workspace, "Returns the kept memory to the system.");
}

}  // namespace penstock
