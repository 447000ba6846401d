// Sequences: their items come after a letter and their length.
#pragma once

#include <array>
#include <tuple>
#include <vector>

#include "pybind11.h"

namespace remote {

inline size_t get_length() { return static_cast<size_t>(take('l').whole); }

inline void expect_length(size_t length) {
  if (get_length() != length) throw std::invalid_argument("expected " + std::to_string(length) + " items");
}

template <class T>
struct Get<std::vector<T>> {
  static std::vector<T> value() {
    std::vector<T> items(get_length());
    for (T& item : items) item = get<T>();
    return items;
  }
};

template <class T, size_t N>
struct Get<std::array<T, N>> {
  static std::array<T, N> value() {
    expect_length(N);
    std::array<T, N> items;
    for (T& item : items) item = get<T>();
    return items;
  }
};

template <class... Fields>
struct Get<std::tuple<Fields...>> {
  static std::tuple<Fields...> value() {
    expect_length(sizeof...(Fields));
    return {get<Fields>()...};  // braces: from the first to the last
  }
};

}  // namespace remote
