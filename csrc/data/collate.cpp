#include <pybind11/pybind11.h>

#include "bindings.h"

namespace penstock {

void bind_data(pybind11::module_&) {}

}  // namespace penstock
