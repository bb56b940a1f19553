// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "common/tensor_binding.h"
#include "paged_attention/paged_attention.h"

namespace py = pybind11;

namespace aapt {

void register_paged_attention(py::module_& module) {
  module.def("paged_attention_portable", &paged_attention_portable, py::arg("q"), py::arg("k_pages"),
             py::arg("v_pages"), py::arg("page_ids"), py::arg("page_valid"), py::arg("page_bias"), py::arg("out"),
             py::arg("lse"), py::arg("scale"), py::arg("stream"), py::call_guard<py::gil_scoped_release>(),
             "Attention with cp.async and mma.sync; shapes in csrc/paged_attention/paged_attention.h.");
  module.def("paged_attention_sm90", &paged_attention_sm90, py::arg("q"), py::arg("k_pages"), py::arg("v_pages"),
             py::arg("page_ids"), py::arg("page_valid"), py::arg("page_bias"), py::arg("out"), py::arg("lse"),
             py::arg("scale"), py::arg("stream"), py::call_guard<py::gil_scoped_release>(),
             "Attention with the copy engine and wgmma, for Hopper.");
}

}  // namespace aapt
