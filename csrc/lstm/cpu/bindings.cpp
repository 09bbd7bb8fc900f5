#include "bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "lstm/cpu/kernels.h"
#include "lstm/cpu/team.h"
#include "lstm/cpu/workspace.h"

namespace py = pybind11;

namespace penstock {
namespace {

using lstm::Block;

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

lstm::DType dtype_named(const std::string& name) {
  if (name == "float32") return lstm::DType::float32;
  if (name == "bfloat16") return lstm::DType::bfloat16;
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

lstm::Layer make_layer(const std::string& dtype, int64_t tokens, int64_t batch, int64_t input_size, int64_t hidden_size,
                       int threads, uint64_t x, const std::optional<Embeddings>& embeddings, uint64_t cu_seqlens,
                       const std::vector<std::array<uint64_t, 4>>& weights, uint64_t h0, uint64_t c0,
                       const std::string& pool) {
  if (weights.empty() || weights.size() > lstm::kMaxDirections)
    throw std::invalid_argument("weights must be of 1 or 2 directions");
  if (tokens < 0 || batch < 0 || input_size < 1 || hidden_size < 1)
    throw std::invalid_argument("sizes must be positive");
  lstm::Layer layer{};
  layer.dtype = dtype_named(dtype);
  layer.tokens = tokens;
  layer.batch = batch;
  layer.input_size = input_size;
  layer.hidden_size = hidden_size;
  layer.directions = int(weights.size());
  layer.threads = threads < 1 ? 1 : threads;
  layer.x = pointer(x);
  if (embeddings) {
    const auto& [ids, table, table_dtype, vocabulary] = *embeddings;
    layer.ids = pointer<int32_t>(ids);
    layer.table = pointer(table);
    layer.table_dtype = dtype_named(table_dtype);
    layer.vocabulary = vocabulary;
    if (layer.table_dtype != layer.dtype && layer.table_dtype != lstm::DType::float32)
      throw std::invalid_argument("embeddings must be float32 or of the weights' dtype");
  }
  layer.cu_seqlens = pointer<int32_t>(cu_seqlens);
  for (size_t d = 0; d < weights.size(); ++d) {
    layer.weights[d] = {pointer(weights[d][0]), pointer(weights[d][1]), pointer(weights[d][2]), pointer(weights[d][3])};
  }
  layer.h0 = pointer(h0);
  layer.c0 = pointer<float>(c0);
  layer.pool = pool_named(pool);
  return layer;
}

}  // namespace

void bind_lstm_cpu(py::module_& parent) {
  py::module_ module =
      parent.def_submodule("lstm_cpu", "The LSTM layer on the CPU; pointers are addresses, 0 for none.");

  py::class_<Buffer>(module, "Buffer", py::buffer_protocol(),
                     "Bytes of the kept workspace, returned to it when they die.")
      .def(py::init<size_t>(), py::arg("size"))
      .def_buffer(&Buffer::info);

  module.def(
      "forward",
      [](const std::string& isa, const std::string& dtype, int64_t tokens, int64_t batch, int64_t input_size,
         int64_t hidden_size, int threads, uint64_t x, const std::optional<Embeddings>& embeddings, uint64_t cu_seqlens,
         const std::vector<std::array<uint64_t, 4>>& weights, uint64_t h0, uint64_t c0, const std::string& pool,
         uint64_t y, uint64_t h_n, uint64_t c_n, uint64_t gates, uint64_t c, uint64_t pooled, uint64_t maximum) {
        const lstm::Kernels& kernels = lstm::kernels_for(isa_named(isa));
        const lstm::Layer layer = make_layer(dtype, tokens, batch, input_size, hidden_size, threads, x, embeddings,
                                             cu_seqlens, weights, h0, c0, pool);
        const lstm::Forward out{pointer(y),        pointer(h_n),    pointer<float>(c_n),      pointer(gates),
                                pointer<float>(c), pointer(pooled), pointer<int32_t>(maximum)};
        py::gil_scoped_release released;
        kernels.forward(layer, out);
      },
      py::kw_only(), py::arg("isa"), py::arg("dtype"), py::arg("tokens"), py::arg("batch"), py::arg("input_size"),
      py::arg("hidden_size"), py::arg("threads"), py::arg("x"), py::arg("embeddings"), py::arg("cu_seqlens"),
      py::arg("weights"), py::arg("h0"), py::arg("c0"), py::arg("pool"), py::arg("y"), py::arg("h_n"), py::arg("c_n"),
      py::arg("gates"), py::arg("c"), py::arg("pooled"), py::arg("maximum"));

  module.def(
      "backward",
      [](const std::string& isa, const std::string& dtype, int64_t tokens, int64_t batch, int64_t input_size,
         int64_t hidden_size, int threads, uint64_t x, const std::optional<Embeddings>& embeddings, uint64_t cu_seqlens,
         const std::vector<std::array<uint64_t, 4>>& weights, uint64_t h0, uint64_t c0, const std::string& pool,
         uint64_t y, uint64_t gates, uint64_t c, uint64_t maximum, uint64_t dy, uint64_t dpooled, uint64_t dc,
         uint64_t dh_n, uint64_t dc_n, uint64_t dx, const std::vector<std::array<uint64_t, 3>>& weight_gradients,
         uint64_t dh0, uint64_t dc0) {
        const lstm::Kernels& kernels = lstm::kernels_for(isa_named(isa));
        const lstm::Layer layer = make_layer(dtype, tokens, batch, input_size, hidden_size, threads, x, embeddings,
                                             cu_seqlens, weights, h0, c0, pool);
        if (!weight_gradients.empty() && weight_gradients.size() != weights.size()) {
          throw std::invalid_argument("weight_gradients must be empty or of as many directions as weights");
        }
        lstm::Backward io{};
        io.y = pointer(y);
        io.gates = pointer(gates);
        io.c = pointer<float>(c);
        io.maximum = pointer<int32_t>(maximum);
        io.dy = pointer(dy);
        io.dpooled = pointer(dpooled);
        io.dc = pointer<float>(dc);
        io.dh_n = pointer(dh_n);
        io.dc_n = pointer<float>(dc_n);
        io.dx = pointer(dx);
        io.dh0 = pointer(dh0);
        io.dc0 = pointer<float>(dc0);
        for (size_t d = 0; d < weight_gradients.size(); ++d) {
          io.weights[d] = {pointer(weight_gradients[d][0]), pointer(weight_gradients[d][1]),
                           pointer(weight_gradients[d][2])};
        }
        py::gil_scoped_release released;
        kernels.backward(layer, io);
      },
      py::kw_only(), py::arg("isa"), py::arg("dtype"), py::arg("tokens"), py::arg("batch"), py::arg("input_size"),
      py::arg("hidden_size"), py::arg("threads"), py::arg("x"), py::arg("embeddings"), py::arg("cu_seqlens"),
      py::arg("weights"), py::arg("h0"), py::arg("c0"), py::arg("pool"), py::arg("y"), py::arg("gates"), py::arg("c"),
      py::arg("maximum"), py::arg("dy"), py::arg("dpooled"), py::arg("dc"), py::arg("dh_n"), py::arg("dc_n"),
      py::arg("dx"), py::arg("weight_gradients"), py::arg("dh0"), py::arg("dc0"));

  module.def(
      "multiply_in_registers",
      [](const std::string& isa, const std::string& dtype, int threads, int64_t rounds) {
        const lstm::Kernels& kernels = lstm::kernels_for(isa_named(isa));
        const lstm::DType type = dtype_named(dtype);
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
        const lstm::WorkspaceUse use = lstm::workspace_use();
        return py::dict(py::arg("kept") = use.kept, py::arg("in_use") = use.in_use, py::arg("limit") = use.limit);
      },
      "Bytes kept for the next call, handed out, and the most that is kept.");
  module.def("set_workspace_limit", &lstm::set_workspace_limit, py::arg("bytes"));
  module.def("release_workspace", &lstm::release_workspace, "Returns the kept memory to the system.");
}

}  // namespace penstock
