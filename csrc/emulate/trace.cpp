// SPDX-License-Identifier: Apache-2.0
// Accesses to memory of kernels that are compiled for tracing: with -fsanitize=thread, GCC calls these functions before
// every load and store that may reach memory, and the linker finds ours instead of ThreadSanitizer's. They tell the
// machine, which then knows the thread of each write to shared memory, and accesses to registers that a product uses.
//
// Tests of planted bugs compile kernels this way (aapt_fast/testing/planting.py); it costs several times the time.
#include <cstddef>

#include "emulate/machine.h"

namespace {

bool inside = false;  // functions that are called from here may be traced themselves

void access(const void* address, std::size_t bytes, bool write) {
  const char local = 0;
  aapt::emulate::Machine* machine = aapt::emulate::running_machine();
  if (inside || machine == nullptr || !machine->runs_on(&local)) return;
  const struct Inside {
    Inside() { inside = true; }
    ~Inside() { inside = false; }
  } now;
  machine->access(address, bytes, write);
}

}  // namespace

#define AAPT_TRACE(bytes)                                                                \
  void __tsan_read##bytes(void* address) { access(address, bytes, false); }              \
  void __tsan_write##bytes(void* address) { access(address, bytes, true); }              \
  void __tsan_unaligned_read##bytes(void* address) { access(address, bytes, false); }    \
  void __tsan_unaligned_write##bytes(void* address) { access(address, bytes, true); }

extern "C" {

AAPT_TRACE(1)
AAPT_TRACE(2)
AAPT_TRACE(4)
AAPT_TRACE(8)
AAPT_TRACE(16)

void __tsan_read_range(void* address, unsigned long bytes) { access(address, bytes, false); }
void __tsan_write_range(void* address, unsigned long bytes) { access(address, bytes, true); }

void __tsan_func_entry(void*) {
  const char local = 0;
  aapt::emulate::Machine* machine = aapt::emulate::running_machine();
  if (machine != nullptr && machine->runs_on(&local)) machine->trace();
}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}

}  // extern "C"
