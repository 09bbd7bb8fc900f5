#include "bindings.h"

#include <pybind11/stl.h>

#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

#include "lstm/cuda/launch.h"

namespace py = pybind11;

namespace penstock {
namespace {

using namespace lstm::cuda;

template <class T>
T* pointer(uint64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

int32_t narrow(int64_t value, const char* what) {
  if (value < 0 || value > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument(std::string(what) + " must fit 32 bits, got " + std::to_string(value));
  }
  return int32_t(value);
}

template <class AnyProblem>
AnyProblem problem_of(uint64_t ranked, int64_t batch, int directions, uint64_t biases, uint64_t exchange) {
  AnyProblem problem{};
  problem.ranked = pointer<const Span>(ranked);
  problem.batch = narrow(batch, "batch");
  problem.directions = directions;
  problem.biases = pointer<const float>(biases);
  problem.exchange = pointer<uint64_t>(exchange);
  return problem;
}

}  // namespace

void bind_lstm_cuda(py::module_& parent) {
  py::module_ module = parent.def_submodule(
      "lstm_cuda", "The LSTM's recurrent kernels on the current CUDA device; pointers are addresses, 0 for none.");

  py::class_<Plan>(module, "Plan", "How one launch shares out a batch.")
      .def_property_readonly("tier", [](const Plan& plan) { return plan.tier->name; })
      .def_readonly("lanes", &Plan::lanes)
      .def_readonly("tiles", &Plan::tiles)
      .def_readonly("groups", &Plan::groups)
      .def_property_readonly("exchange_words", &Plan::exchange_words,
                             "64-bit words, zero at launch, that forward and backward take as `exchange`");

  module.def(
      "why_not",
      [](int hidden_size) -> std::optional<std::string> {
        const char* reason = why_not(hidden_size);
        return reason ? std::optional<std::string>(reason) : std::nullopt;
      },
      py::arg("hidden_size"), "None if the current device can hold such a layer, else the reason.");

  module.def("plan", &make_plan, py::kw_only(), py::arg("hidden_size"), py::arg("directions"), py::arg("batch"),
             py::arg("tokens"), py::arg("max_seqlen"), py::arg("backward"));

  module.def(
      "rank",
      [](uint64_t stream, uint64_t cu_seqlens, int64_t batch, int64_t tokens, uint64_t ranked) {
        rank_sequences(pointer<void>(stream), pointer<const int32_t>(cu_seqlens), narrow(batch, "batch"),
                       narrow(tokens, "tokens"), pointer<Span>(ranked));
      },
      py::arg("stream"), py::arg("cu_seqlens"), py::arg("batch"), py::arg("tokens"), py::arg("ranked"));

  module.def(
      "forward",
      [](const Plan& plan, uint64_t stream, uint64_t ranked, int64_t batch, int directions, uint64_t biases,
         uint64_t exchange, uint64_t projections, uint64_t ids, uint64_t gates, uint64_t w_hh, uint64_t h0, uint64_t c0,
         uint64_t y, uint64_t cells, uint64_t h_n, uint64_t c_n, uint64_t pooled, uint64_t shares, uint64_t maximum) {
        auto problem = problem_of<ForwardProblem>(ranked, batch, directions, biases, exchange);
        problem.projections = pointer<const uint16_t>(projections);
        problem.ids = pointer<const int32_t>(ids);
        problem.gates = pointer<uint16_t>(gates);
        problem.w_hh = pointer<const uint16_t>(w_hh);
        problem.h0 = pointer<const uint16_t>(h0);
        problem.c0 = pointer<const float>(c0);
        problem.y = pointer<uint16_t>(y);
        problem.cells = pointer<float>(cells);
        problem.h_n = pointer<uint16_t>(h_n);
        problem.c_n = pointer<float>(c_n);
        problem.pooled = pointer<uint16_t>(pooled);
        problem.shares = pointer<const float>(shares);
        problem.maximum = pointer<int32_t>(maximum);
        launch_forward(plan, pointer<void>(stream), problem);
      },
      py::arg("plan"), py::arg("stream"), py::kw_only(), py::arg("ranked"), py::arg("batch"), py::arg("directions"),
      py::arg("biases"), py::arg("exchange"), py::arg("projections"), py::arg("ids"), py::arg("gates"), py::arg("w_hh"),
      py::arg("h0"), py::arg("c0"), py::arg("y"), py::arg("cells"), py::arg("h_n"), py::arg("c_n"), py::arg("pooled"),
      py::arg("shares"), py::arg("maximum"));

  module.def(
      "backward",
      [](const Plan& plan, uint64_t stream, uint64_t ranked, int64_t batch, int directions, uint64_t biases,
         uint64_t exchange, uint64_t dgates, uint64_t gates, uint64_t transposed, uint64_t cells, uint64_t c0,
         uint64_t dy, bool pooled, uint64_t maximum, uint64_t dh_n, uint64_t dc_n, uint64_t dc0) {
        auto problem = problem_of<BackwardProblem>(ranked, batch, directions, biases, exchange);
        problem.dgates = pointer<uint16_t>(dgates);
        problem.gates = pointer<const uint16_t>(gates);
        problem.transposed = pointer<const uint16_t>(transposed);
        problem.cells = pointer<const float>(cells);
        problem.c0 = pointer<const float>(c0);
        problem.dy = pointer<const uint16_t>(dy);
        problem.pooled = pooled;
        problem.maximum = pointer<const int32_t>(maximum);
        problem.dh_n = pointer<const float>(dh_n);
        problem.dc_n = pointer<const float>(dc_n);
        problem.dc0 = pointer<float>(dc0);
        launch_backward(plan, pointer<void>(stream), problem);
      },
      py::arg("plan"), py::arg("stream"), py::kw_only(), py::arg("ranked"), py::arg("batch"), py::arg("directions"),
      py::arg("biases"), py::arg("exchange"), py::arg("dgates"), py::arg("gates"), py::arg("transposed"),
      py::arg("cells"), py::arg("c0"), py::arg("dy"), py::arg("pooled"), py::arg("maximum"), py::arg("dh_n"),
      py::arg("dc_n"), py::arg("dc0"));
}

}  // namespace penstock
