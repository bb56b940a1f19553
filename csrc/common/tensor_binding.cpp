// SPDX-License-Identifier: Apache-2.0
// The dtype codes of tensors, and the exception for arguments that a kernel does not do.
#include "bindings.h"
#include "common/tensor.h"

namespace aapt {

void register_tensor(py::module_& module) {
  py::register_local_exception<Unsupported>(module, "Unsupported", PyExc_ValueError);
  py::dict codes;
  for (const Dtype dtype :
       {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16, Dtype::kInt32, Dtype::kInt64, Dtype::kUInt8}) {
    codes[dtype_name(dtype)] = static_cast<int>(dtype);
  }
  module.attr("dtypes") = codes;
}

}  // namespace aapt
