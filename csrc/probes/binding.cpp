// SPDX-License-Identifier: Apache-2.0
// The module _probes: every probe under its name, with the same arguments.
#include <pybind11/pybind11.h>

#include "bindings.h"
#include "common/tensor_binding.h"
#include "probes/probes.h"

namespace py = pybind11;

namespace aapt::probes {
namespace {

struct Entry {
  const char* name;
  Probe* probe;
};

constexpr Entry kProbes[] = {
    {"named_barrier", &named_barrier},
    {"cp_async", &cp_async},
    {"block_counter", &block_counter},
    {"half_precision", &half_precision},
    {"barrier_ring", &barrier_ring},
    {"tile_load", &tile_load},
    {"tile_multicast", &tile_multicast},
    {"multicast_ring", &multicast_ring},
    {"tile_store", &tile_store},
    {"encode_tensor_map", &encode_tensor_map},
    {"wgmma", &wgmma},
    {"wgmma_written", &wgmma_written},
    {"shifted_rows", &shifted_rows},
    {"paged_attention", &paged_attention},
    {"l2_bandwidth", &l2_bandwidth},
};

}  // namespace
}  // namespace aapt::probes

PYBIND11_MODULE(_probes, module) {
  module.doc() = "Small kernels that use or measure one primitive each; see csrc/probes.";
  aapt::register_tensor(module);
#ifdef AAPT_EMULATE
  aapt::register_emulate(module);
#endif
  for (const auto& [name, probe] : aapt::probes::kProbes) {
    module.def(
        name,
        [probe = probe](std::vector<aapt::Tensor> inputs, std::vector<aapt::Tensor> outputs, std::vector<int> values,
                        const aapt::Stream& stream) {
          const py::gil_scoped_release released;
          probe({std::move(inputs), std::move(outputs), std::move(values)}, stream);
        },
        py::arg("inputs"), py::arg("outputs"), py::arg("values"), py::arg("stream"));
  }
}
