// How Python calls the kernels: by named arguments only. What is misspelt, missing or of another type is a TypeError
// that names the function and the argument; nothing is ignored and nothing converted.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "types.h"

namespace penstock {

// An argument's name, as a template argument: so its Python string is made once.
template <size_t kSize>
struct Name {
  char text[kSize];
  consteval Name(const char (&from)[kSize]) {  // NOLINT: implicit
    for (size_t i = 0; i < kSize; ++i) text[i] = from[i];
  }
};

template <Name name>
PyObject* interned() {
  static PyObject* const string = PyUnicode_InternFromString(name.text);
  return string;
}

// The arguments of one call, all of which are given. Each is asked for once, by name; a pointer's is its address, 0 for
// an empty tensor.
class Arguments {
 public:
  Arguments(const char* function, const pybind11::kwargs& given) : function_(function), given_(given.ptr()) {}
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;

  template <Name name, class T>
  void get(T& value) {
    PyObject* const object = find(interned<name>());
    if (object == nullptr) refuse_missing(name.text);
    cast(name.text, object, value);
  }
  template <Name name, class T>
  T get() {
    T value{};
    get<name>(value);
    return value;
  }
  // Leaves `value` as it is where the argument is None.
  template <Name name, class T>
  void get_or_none(T& value) {
    PyObject* const object = find(interned<name>());
    if (object == nullptr) refuse_missing(name.text);
    if (object != Py_None) cast(name.text, object, value);
  }

  // After the last argument was asked for: throws if there are more.
  void finish() const {
    if (used_ != PyDict_GET_SIZE(given_)) refuse_unknown();
  }

 private:
  static constexpr int kMost = 64;

  PyObject* find(PyObject* name) {
    PyObject* const object = PyDict_GetItemWithError(given_, name);
    if (object != nullptr) names_[used_++] = name;
    return object;
  }

  template <class T>
  void cast(const char* name, PyObject* object, T& value) const {
    if constexpr (std::is_pointer_v<T>) {
      uintptr_t address;
      cast(name, object, address);
      value = reinterpret_cast<T>(address);
    } else {
      pybind11::detail::make_caster<T> caster;
      // True is not a number here, nor b"avx2" a name
      constexpr bool number = std::is_arithmetic_v<T> && !std::is_same_v<T, bool>,
                     text = std::is_same_v<T, std::string>;
      const bool another = (number && PyBool_Check(object)) || (text && !PyUnicode_Check(object));
      if (another || !caster.load(object, false)) refuse_type(name, object, kind<T>());
      value = pybind11::detail::cast_op<T>(std::move(caster));
    }
  }

  template <class T>
  static std::string kind() {
    if constexpr (std::is_same_v<T, bool>) return "a bool";
    if constexpr (std::is_unsigned_v<T>) return "an integer of 0 to 2^" + std::to_string(8 * sizeof(T)) + " - 1";
    if constexpr (std::is_integral_v<T>) return "an integer of " + std::to_string(8 * sizeof(T)) + " bits";
    if constexpr (std::is_floating_point_v<T>) return "a float";
    if constexpr (std::is_same_v<T, std::string>) return "a str";
    return pybind11::type_id<T>();
  }

  [[noreturn]] void refuse_missing(const char* name) const;
  [[noreturn]] void refuse_type(const char* name, PyObject* object, const std::string& wanted) const;
  [[noreturn]] void refuse_unknown() const;

  const char* const function_;
  PyObject* const given_;
  Py_ssize_t used_ = 0;
  PyObject* names_[kMost];
};

// What every kernel's call says besides its tensors.
struct Where {
  std::string isa;
  int threads;

  explicit Where(Arguments& arguments) {
    arguments.get<"isa">(isa);
    arguments.get<"threads">(threads);
  }
};

// What floating-point tensors are of.
template <Name name = "bfloat16">
DType dtype(Arguments& a) {
  return a.get<name, bool>() ? DType::bfloat16 : DType::float32;
}

}  // namespace penstock
