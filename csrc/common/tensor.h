// SPDX-License-Identifier: Apache-2.0
// Tensors as they arrive from Python, and the checks every op makes before it launches anything.
//
// Two kinds of error: std::invalid_argument for arguments that mean nothing to the op, Unsupported for arguments that
// are fine but that this kernel does not do; another implementation may. Both name the argument, what was expected and
// what came.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/types.h"

namespace aapt {

struct Unsupported : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// A view of memory that the caller owns. Strides count elements.
struct Tensor {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> stride;

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  std::int64_t size(int dimension) const { return shape[dimension]; }
  std::int64_t elements() const;
};

constexpr std::int64_t kAnySize = -1;

const char* dtype_name(Dtype dtype);
int dtype_bytes(Dtype dtype);

// std::invalid_argument unless the shape is this one; kAnySize fits every size.
void require_shape(const char* argument, const Tensor& tensor, std::initializer_list<std::int64_t> shape);

// std::invalid_argument unless the dtype is this one.
void require_dtype(const char* argument, const Tensor& tensor, Dtype dtype);

// std::invalid_argument unless the elements lie one after the other.
void require_dense(const char* argument, const Tensor& tensor);

// Unsupported unless the dtype is bfloat16 or float16.
void require_half(const char* argument, const Tensor& tensor);

// Unsupported unless the dtype is float32 or `dtype`, that of the kernel's elements.
void require_weight(const char* argument, const Tensor& tensor, Dtype dtype);

// std::invalid_argument unless k_pages and v_pages are [P, 64, Hkv, D] and q is [B, N, H, D], all of one dtype, with H a
// multiple of Hkv. Unsupported unless the dtype is bfloat16 or float16.
void require_pages(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages);

// Unsupported unless `size` is one of those.
void require_one_of(const char* argument, const char* what, std::int64_t size,
                    std::initializer_list<std::int64_t> sizes);

// Unsupported unless the last dimension is dense and every row of it starts at a multiple of 16 bytes, so that a thread
// can move 16 bytes at once.
void require_16_byte_rows(const char* argument, const Tensor& tensor);

// `size` as an int; Unsupported where it does not fit.
int to_int(const char* argument, const char* what, std::int64_t size);

// Unsupported unless `size` blocks fit along y or z of a grid.
void require_grid(const char* argument, const char* what, std::int64_t size);

// Unsupported unless `condition`; the message is "argument: expected ..., got ...".
void require_supported(bool condition, const char* argument, const std::string& expected, const std::string& got);

// std::invalid_argument unless `condition`.
void require_valid(bool condition, const char* argument, const std::string& expected, const std::string& got);

}  // namespace aapt
