// SPDX-License-Identifier: Apache-2.0
#include "common/tensor.h"

#include <algorithm>
#include <limits>

namespace aapt {
namespace {

std::string message(const char* argument, const std::string& expected, const std::string& got) {
  return std::string(argument) + ": expected " + expected + ", got " + got;
}

template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::string text = "[";
  for (const std::int64_t size : sizes) {
    if (text.size() > 1) text += ", ";
    text += size == kAnySize ? "any" : std::to_string(size);
  }
  return text + "]";
}

}  // namespace

const char* dtype_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32: return "float32";
    case Dtype::kBFloat16: return "bfloat16";
    case Dtype::kFloat16: return "float16";
    case Dtype::kInt32: return "int32";
    case Dtype::kInt64: return "int64";
    case Dtype::kUInt8: return "uint8";
  }
  return "another dtype";  // Python sends -1 for those: no kernel does them, a composition may
}

int dtype_bytes(Dtype dtype) {
  switch (dtype) {
    case Dtype::kUInt8: return 1;
    case Dtype::kBFloat16:
    case Dtype::kFloat16: return 2;
    case Dtype::kFloat32:
    case Dtype::kInt32: return 4;
    case Dtype::kInt64: return 8;
  }
  throw std::invalid_argument("dtype: expected a known code, got " + std::to_string(static_cast<int>(dtype)));
}

void require_valid(bool condition, const char* argument, const std::string& expected, const std::string& got) {
  if (!condition) throw std::invalid_argument(message(argument, expected, got));
}

void require_supported(bool condition, const char* argument, const std::string& expected, const std::string& got) {
  if (!condition) throw Unsupported(message(argument, expected, got));
}

void require_shape(const char* argument, const Tensor& tensor, std::initializer_list<std::int64_t> shape) {
  const auto fits = [](std::int64_t size, std::int64_t expected) { return expected == kAnySize || size == expected; };
  const bool all = tensor.shape.size() == shape.size() &&
                   std::equal(tensor.shape.begin(), tensor.shape.end(), shape.begin(), fits);
  require_valid(all, argument, "shape " + shape_text(shape), shape_text(tensor.shape));
}

std::int64_t Tensor::elements() const {
  std::int64_t product = 1;
  for (const std::int64_t size : shape) product *= size;
  return product;
}

void require_dense(const char* argument, const Tensor& tensor) {
  std::int64_t expected = 1;
  bool dense = true;
  for (std::size_t i = tensor.shape.size(); i-- > 0; expected *= tensor.shape[i]) {
    dense = dense && (tensor.shape[i] <= 1 || tensor.stride[i] == expected);
  }
  require_valid(dense || tensor.elements() == 0, argument, "a contiguous tensor",
                "strides " + shape_text(tensor.stride) + " for shape " + shape_text(tensor.shape));
}

int to_int(const char* argument, const char* what, std::int64_t size) {
  constexpr int largest = std::numeric_limits<int>::max();
  require_supported(size >= 0 && size <= largest, argument,
                    std::string("at most ") + std::to_string(largest) + " " + what, std::to_string(size));
  return static_cast<int>(size);
}

void require_grid(const char* argument, const char* what, std::int64_t size) {
  require_supported(size <= 65535, argument, std::string("at most 65535 ") + what + " for this kernel",
                    std::to_string(size));
}

void require_dtype(const char* argument, const Tensor& tensor, Dtype dtype) {
  require_valid(tensor.dtype == dtype, argument, dtype_name(dtype), dtype_name(tensor.dtype));
}

void require_half(const char* argument, const Tensor& tensor) {
  require_supported(tensor.dtype == Dtype::kBFloat16 || tensor.dtype == Dtype::kFloat16, argument,
                    "bfloat16 or float16 for this kernel", dtype_name(tensor.dtype));
}

void require_weight(const char* argument, const Tensor& tensor, Dtype dtype) {
  require_supported(tensor.dtype == dtype || tensor.dtype == Dtype::kFloat32, argument,
                    std::string("float32 or ") + dtype_name(dtype) + " for this kernel", dtype_name(tensor.dtype));
}

void require_pages(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages) {
  require_shape("k_pages", k_pages, {kAnySize, kPageSlots, kAnySize, kAnySize});
  const std::int64_t kv_heads = k_pages.size(2), width = k_pages.size(3);
  require_half("k_pages", k_pages);
  require_shape("v_pages", v_pages, {k_pages.size(0), kPageSlots, kv_heads, width});
  require_dtype("v_pages", v_pages, k_pages.dtype);
  require_shape("q", q, {kAnySize, kAnySize, kAnySize, width});
  require_dtype("q", q, k_pages.dtype);
  const std::int64_t heads = q.size(2);
  require_valid(kv_heads > 0 && heads % kv_heads == 0, "q",
                "a number of heads that is a multiple of the pages' " + std::to_string(kv_heads),
                std::to_string(heads));
}

void require_one_of(const char* argument, const char* what, std::int64_t size,
                    std::initializer_list<std::int64_t> sizes) {
  std::string expected = std::string("a ") + what + " of ";
  for (const std::int64_t* possible = sizes.begin(); possible != sizes.end(); ++possible) {
    if (size == *possible) return;
    const char* before = possible == sizes.begin() ? "" : possible + 1 == sizes.end() ? " or " : ", ";
    expected += before + std::to_string(*possible);
  }
  require_supported(false, argument, expected + " for this kernel", std::to_string(size));
}

void require_16_byte_rows(const char* argument, const Tensor& tensor) {
  if (tensor.elements() == 0) return;
  const int bytes = dtype_bytes(tensor.dtype);
  const std::size_t last = tensor.shape.size() - 1;
  bool aligned = reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0;
  bool dense = tensor.shape[last] <= 1 || tensor.stride[last] == 1;
  for (std::size_t i = 0; i < last; ++i) {
    if (tensor.shape[i] > 1) aligned = aligned && tensor.stride[i] * bytes % 16 == 0;
  }
  require_supported(dense && aligned, argument, "rows of adjacent elements that start at multiples of 16 bytes",
                    "strides " + shape_text(tensor.stride) + " of " + std::to_string(bytes) + " bytes at address " +
                        std::to_string(reinterpret_cast<std::uintptr_t>(tensor.data) % 16) + " modulo 16");
}

}  // namespace aapt
