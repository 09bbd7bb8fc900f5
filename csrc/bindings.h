// Each folder of csrc/ adds its functions to the one extension module through a function declared here.
#pragma once

#include <pybind11/pybind11.h>

namespace penstock {

void bind_attention(pybind11::module_& module);
void bind_bag(pybind11::module_& module);
void bind_data(pybind11::module_& module);
void bind_isa(pybind11::module_& module);
void bind_linear(pybind11::module_& module);
void bind_lstm_cpu(pybind11::module_& module);
void bind_lstm_cuda(pybind11::module_& module);  // where it is built: cmake/cuda.cmake
void bind_packed_linear(pybind11::module_& module);
void bind_philox(pybind11::module_& module);
void bind_rowwise(pybind11::module_& module);
void bind_sampled(pybind11::module_& module);

}  // namespace penstock
