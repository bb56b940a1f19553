// SPDX-License-Identifier: Apache-2.0
// Checks and binding of gate_residual_norm: gate, residual sum, RMSNorm and modulation.
#include <optional>

#include "bindings.h"
#include "common/device_info.h"
#include "common/tensor_binding.h"
#include "gate_residual_norm/params.h"

namespace aapt {
namespace {

using Params = GateResidualNormParams;

void check_rows(const char* argument, const Tensor& tensor, const Tensor& x) {
  require_shape(argument, tensor, {x.size(0), x.size(1), x.size(2)});
  require_dtype(argument, tensor, x.dtype);
  require_16_byte_rows(argument, tensor);
}

void check_modulation(const char* argument, const std::optional<Tensor>& modulation, const Tensor& x) {
  if (!modulation) return;
  if (modulation->shape.size() == 1) {
    require_shape(argument, *modulation, {x.size(2)});
  } else {
    require_shape(argument, *modulation, {x.size(0), kAnySize, x.size(2)});
    require_valid(modulation->size(1) == 1 || modulation->size(1) == x.size(1), argument,
                  "1 or " + std::to_string(x.size(1)) + " tokens", std::to_string(modulation->size(1)));
  }
  require_weight(argument, *modulation, x.dtype);
  require_16_byte_rows(argument, *modulation);
}

Params::Rows rows(const Tensor& tensor) { return {tensor.stride[0], tensor.stride[1]}; }

Params::Modulation modulation(const std::optional<Tensor>& tensor) {
  Params::Modulation result = {};
  if (!tensor) return result;
  result.data = tensor->data;
  result.is_float32 = tensor->dtype == Dtype::kFloat32;
  if (tensor->shape.size() == 3) result.stride = {tensor->stride[0], tensor->size(1) == 1 ? 0 : tensor->stride[1]};
  return result;
}

// x, y, residual, normed [B, N, d]; gate, scale, shift [d], [B, 1, d] or [B, N, d]. residual and normed are dense; the
// sum is not written where there is no residual.
void gate_residual_norm_portable(const Tensor& x, const std::optional<Tensor>& y, const std::optional<Tensor>& gate,
                                 const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                                 const std::optional<Tensor>& residual, const Tensor& normed, float eps,
                                 const Stream& stream) {
  require_shape("x", x, {kAnySize, kAnySize, kAnySize});
  const bool floats = x.dtype == Dtype::kFloat32;  // of models under autocast
  if (!floats) require_half("x", x);
  const std::int64_t width = x.size(2);
  require_supported(width % kVectorElements == 0 && width <= kGateResidualNormMaxWidth, "x",
                    "a width that is a multiple of 8 up to " + std::to_string(kGateResidualNormMaxWidth) +
                        " for this kernel",
                    std::to_string(width));
  check_rows("x", x, x);
  if (y) check_rows("y", *y, x);
  require_valid(y || !gate, "gate", "None, as y is None", "a tensor");
  check_modulation("gate", gate, x);
  check_modulation("scale", scale, x);
  check_modulation("shift", shift, x);
  const auto check_result = [&x](const char* argument, const Tensor& out) {
    check_rows(argument, out, x);
    require_dense(argument, out);
  };
  if (residual) check_result("residual", *residual);
  check_result("normed", normed);
  require_capability(stream.device, 8, 0);
  if (x.elements() == 0) return;
  to_int("x", "tokens of all rows", x.size(0) * x.size(1));  // blocks of the grid

  Params params = {};
  params.x = x.data;
  params.x_stride = rows(x);
  if (y) {
    params.y = y->data;
    params.y_stride = rows(*y);
  }
  params.residual = residual ? residual->data : nullptr;
  params.normed = normed.data;
  params.gate = modulation(gate);
  params.scale = modulation(scale);
  params.shift = modulation(shift);
  params.batch = to_int("x", "rows", x.size(0));
  params.tokens = to_int("x", "tokens", x.size(1));
  params.width = to_int("x", "elements per token", width);
  params.eps = eps;
  (floats                         ? launch_gate_residual_norm_portable<float>
   : x.dtype == Dtype::kBFloat16 ? launch_gate_residual_norm_portable<bfloat16>
                                 : launch_gate_residual_norm_portable<float16>)(params, stream);
}

}  // namespace

void register_gate_residual_norm(py::module_& module) {
  module.def("gate_residual_norm_portable", &gate_residual_norm_portable, py::arg("x"), py::arg("y"), py::arg("gate"),
             py::arg("scale"), py::arg("shift"), py::arg("residual"), py::arg("normed"), py::arg("eps"),
             py::arg("stream"), py::call_guard<py::gil_scoped_release>(),
             "Gate, residual sum, RMSNorm and modulation.");
}

}  // namespace aapt
