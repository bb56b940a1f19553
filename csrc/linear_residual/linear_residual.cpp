// SPDX-License-Identifier: Apache-2.0
#include "linear_residual/linear_residual.h"

#include "common/device_info.h"
#include "common/types.h"
#include "linear_residual/params.h"

namespace aapt {
namespace {

void check_vector(const char* argument, const std::optional<Tensor>& vector, const Tensor& x, bool per_row) {
  if (!vector) return;
  if (per_row && vector->shape.size() == 3) {
    require_shape(argument, *vector, {x.size(0), 1, x.size(2)});
  } else {
    require_shape(argument, *vector, {x.size(2)});
  }
  require_supported(vector->dtype == x.dtype, argument, dtype_name(x.dtype), dtype_name(vector->dtype));
  require_16_byte_rows(argument, *vector);
}

// Tokens of all rows, or of one, lie equally far apart.
bool evenly_spaced(const Tensor& tensor) {
  return tensor.size(0) == 1 || tensor.stride[0] == tensor.size(1) * tensor.stride[1];
}

// The part that row `row` of the batch has in a tensor.
const void* row_of(const Tensor& tensor, std::int64_t row) {
  return static_cast<const char*>(tensor.data) + row * tensor.stride[0] * dtype_bytes(tensor.dtype);
}

}  // namespace

void linear_residual_sm90(const Tensor& x, const Tensor& inputs, const Tensor& weight,
                             const std::optional<Tensor>& bias, const std::optional<Tensor>& gate, const Tensor& out,
                             const Stream& stream) {
  require_shape("x", x, {kAnySize, kAnySize, kAnySize});
  require_half("x", x);
  require_shape("inputs", inputs, {x.size(0), x.size(1), kAnySize});
  require_shape("weight", weight, {x.size(2), inputs.size(2)});
  require_shape("out", out, {x.size(0), x.size(1), x.size(2)});
  for (const auto& [argument, tensor] : {std::pair{"inputs", &inputs}, {"weight", &weight}, {"out", &out}}) {
    require_dtype(argument, *tensor, x.dtype);
  }
  for (const auto& [argument, tensor] : {std::pair{"x", &x}, {"inputs", &inputs}, {"weight", &weight}}) {
    require_16_byte_rows(argument, *tensor);
  }
  require_dense("weight", weight);
  require_dense("out", out);
  require_supported(x.size(2) % kVectorElements == 0, "x", "a width that is a multiple of 8 for this kernel",
                    std::to_string(x.size(2)));
  require_supported(inputs.size(2) % kVectorElements == 0 && inputs.size(2) > 0, "inputs",
                    "a depth that is a multiple of 8 for this kernel", std::to_string(inputs.size(2)));
  check_vector("bias", bias, x, false);
  check_vector("gate", gate, x, true);
  require_capability(stream.device, 9, 0);
  if (x.elements() == 0) return;

  // A launch for all rows, or one for each if they have gates of their own or gaps between them.
  const bool own_gates = gate && gate->shape.size() == 3 && x.size(0) > 1;
  const bool together = !own_gates && evenly_spaced(x) && evenly_spaced(inputs);
  LinearResidualParams params = {};
  params.weight = weight.data;
  params.bias = bias ? bias->data : nullptr;
  params.tokens = to_int("x", "tokens of all rows", together ? x.size(0) * x.size(1) : x.size(1));
  params.width = to_int("x", "elements per token", x.size(2));
  params.depth = to_int("inputs", "elements per token", inputs.size(2));
  for (std::int64_t row = 0; row < (together ? 1 : x.size(0)); ++row) {
    params.inputs = {row_of(inputs, row), inputs.stride[1]};
    params.residual = {row_of(x, row), x.stride[1]};
    params.gate = !gate ? nullptr : own_gates ? row_of(*gate, row) : gate->data;
    params.out = const_cast<void*>(row_of(out, row));
    (x.dtype == Dtype::kBFloat16 ? launch_linear_residual_sm90<bfloat16>
                                 : launch_linear_residual_sm90<float16>)(params, stream);
  }
}

}  // namespace aapt
