// What csrc/module.cpp asks of pybind11, over a pipe: a function is called with the numbers that come in and
// its result goes out. A number is a letter for its kind and eight bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

namespace remote {

void read(void* bytes, size_t count);
void write(const void* bytes, size_t count);

inline void put(char kind, const void* eight) {
  write(&kind, 1);
  write(eight, 8);
}

inline void put_text(char kind, const std::string& text) {
  const int64_t size = static_cast<int64_t>(text.size());
  put(kind, &size);
  write(text.data(), text.size());
}

template <class T>
void put_result(T value) {
  if constexpr (std::is_same_v<T, const char*>) {
    put_text('s', value);
  } else if constexpr (std::is_floating_point_v<T>) {
    const double wide = value;
    put('f', &wide);
  } else {
    const int64_t wide = static_cast<int64_t>(value);
    put(std::is_same_v<T, bool> ? 'b' : 'i', &wide);
  }
}

struct Number {
  char kind;
  union {
    int64_t whole;
    double real;
  };
};

inline Number take() {
  Number number;
  read(&number.kind, 1);
  read(&number.whole, 8);
  return number;
}

inline Number take(char kind) {
  const Number number = take();
  if (number.kind != kind)
    throw std::invalid_argument(std::string("expected ") + kind + ", got " + number.kind);
  return number;
}

template <class T>
struct Get {
  static_assert(std::is_arithmetic_v<T>, "no way to read this type: see stl.h");
  static T value() {
    if constexpr (std::is_floating_point_v<T>) {
      const Number number = take();
      return number.kind == 'f' ? static_cast<T>(number.real) : static_cast<T>(number.whole);
    } else {
      return static_cast<T>(take('i').whole);
    }
  }
};

template <class T>
T get() {
  return Get<std::decay_t<T>>::value();
}

template <class Function>
struct Signature : Signature<decltype(&Function::operator())> {};
template <class Result, class... Fields>
struct Signature<Result (*)(Fields...)> {
  template <class Function>
  static void call(Function function) {
    std::tuple<std::decay_t<Fields>...> fields{get<Fields>()...};  // braces: from the first to the last
    if constexpr (std::is_void_v<Result>) {
      std::apply(function, fields);
      put_text('n', "");
    } else {
      put_result<Result>(std::apply(function, fields));
    }
  }
};
template <class Class, class Result, class... Fields>
struct Signature<Result (Class::*)(Fields...) const> : Signature<Result (*)(Fields...)> {};

}  // namespace remote

namespace pybind11 {

struct gil_scoped_release {};
template <class>
struct call_guard {};
struct mod_gil_not_used {};

class module_ {
 public:
  std::map<std::string, std::function<void()>> functions;
  std::map<std::string, std::function<void()>> attributes;  // each puts its value

  struct Doc {
    void operator=(const char*) {}
  };
  Doc doc() { return {}; }

  template <class Function, class... Extra>
  void def(const char* name, Function function, Extra...) {
    functions[name] = [function] { remote::Signature<Function>::call(function); };
  }

  struct Attribute {
    module_& module;
    const char* name;
    template <class T>
    void operator=(T value) {
      module.attributes[name] = [value] { remote::put_result(value); };
    }
  };
  Attribute attr(const char* name) { return {*this, name}; }
};

}  // namespace pybind11

#define PYBIND11_MODULE(name, module, ...) void define_module(pybind11::module_& module)
