// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "common/tensor_binding.h"
#include "paged_attention/paged_attention.h"

namespace py = pybind11;

namespace aapt {

void register_paged_attention(py::module_& module) {
  const auto define = [&](const char* name, auto function, const char* what, auto... more) {
    module.def(name, function, py::arg("q"), py::arg("k_pages"), py::arg("v_pages"), py::arg("page_ids"),
               py::arg("page_valid"), py::arg("page_bias"), py::arg("out"), py::arg("lse"), py::arg("scale"), more...,
               py::arg("stream"), py::call_guard<py::gil_scoped_release>(), what);
  };
  define("paged_attention_portable", &paged_attention_portable,
         "Attention with cp.async and mma.sync; shapes in csrc/paged_attention/paged_attention.h.");
  define("paged_attention_sm90", &paged_attention_sm90, "Attention with the copy engine and wgmma, for Hopper.");
  define("paged_attention_sm90_overlap", &paged_attention_sm90_overlap,
         "The same, with the softmax under the products.");
  define("paged_attention_sm90_cluster", &paged_attention_sm90_cluster,
         "The same, with copies for two blocks at once.");
  define("paged_attention_sm90_split", &paged_attention_sm90_split, "The same, with the keys of some heads in parts.",
         py::arg("part_out"), py::arg("part_lse"), py::arg("whole"), py::arg("parts"));
}

}  // namespace aapt
