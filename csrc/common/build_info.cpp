// SPDX-License-Identifier: Apache-2.0
// __version__ and build_info(): what was compiled, by what, for which GPUs.
#include "bindings.h"
#include "build_config.h"

namespace aapt {
namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = build_config::kVersion;
  info["cuda"] = build_config::kCuda;
  info["cuda_version"] = build_config::kCudaVersion;
  info["cuda_archs"] = build_config::kCudaArchitectures;
  info["cutlass_version"] = build_config::kCutlassVersion;
  info["compiler"] = build_config::kCompiler;
  info["build_type"] = build_config::kBuildType;
  info["emulated"] = build_config::kEmulated;
  return info;
}

}  // namespace

void register_build_info(py::module_& module) {
  module.attr("__version__") = build_config::kVersion;
  module.def("build_info", &build_info,
             "version, cuda, cuda_version (of the compiler), cuda_archs (80-real,...), cutlass_version, compiler,\n"
             "build_type and emulated. Texts about CUDA are empty without it.");
}

}  // namespace aapt
