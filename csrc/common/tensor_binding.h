// SPDX-License-Identifier: Apache-2.0
// Conversion of tensors and streams that arrive from Python (ops/kernels.py makes them):
//   Tensor   (address, dtype code, shape, strides in elements)
//   Stream   (device index, stream handle)
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "common/launch.h"
#include "common/tensor.h"

namespace pybind11::detail {

template <>
struct type_caster<aapt::Tensor> {
  PYBIND11_TYPE_CASTER(aapt::Tensor, const_name("tuple[int, int, Sequence[int], Sequence[int]]"));
  bool load(handle source, bool convert) {
    make_caster<std::tuple<std::uintptr_t, int, std::vector<std::int64_t>, std::vector<std::int64_t>>> parts;
    if (!parts.load(source, convert)) return false;
    auto [address, dtype, shape, stride] =
        cast_op<std::tuple<std::uintptr_t, int, std::vector<std::int64_t>, std::vector<std::int64_t>>>(parts);
    value.data = reinterpret_cast<void*>(address);
    value.dtype = static_cast<aapt::Dtype>(dtype);
    value.shape = std::move(shape);
    value.stride = std::move(stride);
    return value.shape.size() == value.stride.size();
  }
};

template <>
struct type_caster<aapt::Stream> {
  PYBIND11_TYPE_CASTER(aapt::Stream, const_name("tuple[int, int]"));
  bool load(handle source, bool convert) {
    make_caster<std::tuple<int, std::uintptr_t>> parts;
    if (!parts.load(source, convert)) return false;
    std::tie(value.device, value.handle) = cast_op<std::tuple<int, std::uintptr_t>>(parts);
    return true;
  }
};

}  // namespace pybind11::detail
