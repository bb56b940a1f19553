// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "common/device_info.h"

namespace aapt {
namespace {

// 13000 -> "13.0"
std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

py::dict device_info_dict(int device) {
  const DeviceInfo info = [device] {
    py::gil_scoped_release release;  // the first call starts the driver
    return device_info(device);
  }();
  py::dict result;
  result["name"] = info.name;
  result["compute_capability"] = py::make_tuple(info.compute_capability_major, info.compute_capability_minor);
  result["total_memory"] = info.total_memory;
  result["multiprocessors"] = info.multiprocessors;
  result["driver_version"] = version_text(info.driver_version);
  result["runtime_version"] = version_text(info.runtime_version);
  return result;
}

}  // namespace

void register_device_info(py::module_& module) {
  module.def("device_count", &device_count, py::call_guard<py::gil_scoped_release>(),
             "Number of GPUs; 0 without a driver or in a build without CUDA.");
  module.def("device_info", &device_info_dict, py::arg("device"),
             "name, compute_capability, total_memory (bytes), multiprocessors, driver_version (newest CUDA it knows)\n"
             "and runtime_version (inside the module) of a GPU. Raises IndexError when there is no such device.");
}

}  // namespace aapt
