// SPDX-License-Identifier: Apache-2.0
#include "linear_residual/kernel_sm90.cuh"

namespace aapt {

template <>
void launch_linear_residual_sm90<bfloat16>(const LinearResidualParams& params, const Stream& stream) {
  linear_residual::launch<cutlass::bfloat16_t>(params, stream);
}

}  // namespace aapt
