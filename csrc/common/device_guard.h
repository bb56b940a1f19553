// SPDX-License-Identifier: Apache-2.0
// The current GPU of a thread.
#pragma once

namespace aapt {

// Makes a GPU the current one of this thread and goes back to the one before, if that is in use: going back to a GPU
// without a context would make one there, which takes seconds and hundreds of megabytes. torch's guard does the same.
class DeviceGuard {
 public:
  // Sets the device even where it is the current one already: that is what gives a fresh thread its context. Throws
  // std::runtime_error where there is no such device.
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_;
  int before_ = 0;
};

}  // namespace aapt
