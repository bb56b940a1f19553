// SPDX-License-Identifier: Apache-2.0
// A fiber: a function with its own stack that hands control back and forth with its scheduler.
#pragma once

#include <cstddef>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace aapt::emulate {

class Fiber {
 public:
  static constexpr std::size_t kStackBytes = 128 << 10;

  // `entry` must never return: its last act is to suspend for good.
  void prepare(void (*entry)());
  void resume();   // called by the scheduler
  void suspend();  // called inside the fiber
  bool has(const void* address) const {  // on its stack
    const auto* byte = static_cast<const char*>(address);
    return byte >= stack_.get() && byte < stack_.get() + kStackBytes;
  }

 private:
  std::unique_ptr<char[]> stack_;
#if defined(__x86_64__)
  void* inside_ = nullptr;   // stack pointers of whoever does not run
  void* outside_ = nullptr;
#else
  ucontext_t inside_, outside_;
#endif
};

}  // namespace aapt::emulate
