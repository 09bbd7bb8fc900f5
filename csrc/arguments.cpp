#include "arguments.h"

#include <algorithm>

namespace py = pybind11;

namespace penstock {

void Arguments::refuse_missing(const char* name) const {
  throw py::type_error(std::string(function_) + "() misses the argument '" + name + "'");
}

void Arguments::refuse_type(const char* name, PyObject* object, const std::string& wanted) const {
  throw py::type_error(std::string(function_) + "(): '" + name + "' must be " + wanted + ", got " +
                       std::string(py::repr(object)) + " (" + Py_TYPE(object)->tp_name + ")");
}

void Arguments::refuse_unknown() const {
  for (const auto& [key, value] : py::reinterpret_borrow<py::dict>(given_)) {
    const bool used = std::any_of(names_, names_ + used_,
                                  [&key = key](PyObject* name) { return PyUnicode_Compare(key.ptr(), name) == 0; });
    if (!used)
      throw py::type_error(std::string(function_) + "() got an unexpected argument '" + std::string(py::str(key)) +
                           "'");
  }
  throw py::type_error(std::string(function_) + "() got an unexpected argument");
}

}  // namespace penstock
