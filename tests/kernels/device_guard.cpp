// SPDX-License-Identifier: Apache-2.0
// Host code of the kernels on the fake CUDA runtime. Runs the scenario that its argument names, in a fresh thread, and
// prints the diary, then the thread's current GPU.
#include <cstdio>
#include <map>
#include <string>
#include <thread>

#include "common/device_guard.h"
#include "common/device_info.h"
#include "common/launch_cuda.h"
#include "common/tensor.h"
#include "common/tensor_map.h"
#include "fake_cuda_runtime.h"

namespace {

void launch_on(int device, unsigned cluster = 2, bool early = false) {
  aapt::Launch how;
  how.grid = {4, 3, 2};
  how.threads = 128;
  how.shared_bytes = 1000;
  how.stream = {device, 77};
  how.cluster = cluster;
  how.early = early;
  const int parameter = 5;
  aapt::launch_kernel(reinterpret_cast<const void*>(11), how, &parameter);
}

// float32 [2, 1, 8] with these strides, for a box of [1, 1, 8].
void map_on(int device, std::vector<std::int64_t> strides) {
  const aapt::Tensor tensor = {nullptr, aapt::Dtype::kFloat32, {2, 1, 8}, strides};
  aapt::make_tensor_map("x", tensor, {1, 1, 8}, aapt::Swizzle::kNone, device);
}

// As torch does for a tensor on the GPU: its context is there before a kernel of ours runs.
void use(int device) { cudaSetDevice(device); }

void use_in_another_thread(int device) {
  std::thread([device] { use(device); }).join();
}

const std::map<std::string, void (*)()> scenarios = {
    {"launch on the first GPU", [] { use_in_another_thread(0), launch_on(0); }},
    {"launch on a GPU while the first one is unused", [] { launch_on(1); }},
    {"launch on a GPU while another one is current", [] { use(2), launch_on(1); }},
    {"launch where the driver does not tell contexts",
     [] { fake::forget("cuDevicePrimaryCtxGetState"), use(2), launch_on(1); }},
    {"launch on a GPU that is not there", [] { use(2), launch_on(3); }},
    {"launch that may begin early", [] { use(1), launch_on(1, 1, true); }},
    {"launch that may begin early, in clusters", [] { use(1), launch_on(1, 2, true); }},
    {"launch with too much shared memory",
     [] { fake::fail("cudaFuncSetAttribute", cudaErrorInvalidValue), use(2), launch_on(1); }},
    {"launch that fails, and one after it",
     [] {
       fake::fail("cudaLaunchKernelExC", cudaErrorLaunchOutOfResources);
       use(2);
       try {
         launch_on(1);
       } catch (const std::exception& error) {
         fake::diary.push_back(error.what());
       }
       fake::diary.push_back(cudaGetErrorName(cudaGetLastError()));
       launch_on(1);
     }},
    {"map", [] { use_in_another_thread(0), map_on(0, {16, 3, 1}); }},
    {"map on another GPU", [] { use(0), map_on(2, {16, 3, 1}); }},
    {"map of an expanded tensor", [] { map_on(0, {0, 8, 1}); }},
    {"map of rows that overlap backwards", [] { map_on(0, {-16, 8, 1}); }},
    {"map with rows far apart", [] { map_on(0, {std::int64_t{1} << 38, 8, 1}); }},
    {"map with rows almost that far apart", [] { map_on(0, {(std::int64_t{1} << 38) - 4, 8, 1}); }},
    {"map by an old driver", [] { fake::forget("cuTensorMapEncodeTiled"), use(1), map_on(2, {8, 8, 1}); }},
    {"questions about a GPU",
     [] { aapt::device_count(), aapt::device_info(1), aapt::require_capability(1, 8, 0), aapt::require_hopper(1); }},
};

}  // namespace

int main(int, char** arguments) {
  std::thread([scenario = scenarios.at(arguments[1])] {
    try {
      scenario();
    } catch (const aapt::Unsupported& error) {
      fake::diary.push_back(std::string("Unsupported: ") + error.what());
    } catch (const std::exception& error) {
      fake::diary.push_back(std::string("error: ") + error.what());
    }
    for (const std::string& event : fake::diary) std::puts(event.c_str());
    int current = -1;
    cudaGetDevice(&current);
    std::printf("current GPU %d\n", current);
  }).join();
}
