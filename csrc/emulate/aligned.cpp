// SPDX-License-Identifier: Apache-2.0
#include "emulate/aligned.h"

#include <cstring>

#include "emulate/machine.h"

namespace aapt::emulate {

std::string Place::text() const {
  const char* slash = std::strrchr(file, '/');
  return std::string(slash ? slash + 1 : file) + ":" + std::to_string(line);
}

// The compiler may keep a name twice, so equal pointers are not needed.
void AlignedLog::require_same(const Entry& entry, int thread, const char* instruction, Place place) {
  if (entry.place.line == place.line && std::strcmp(entry.place.file, place.file) == 0 &&
      std::strcmp(entry.instruction, instruction) == 0) {
    return;
  }
  misuse(std::string(instruction) + ": threads of a warp have diverged: thread " + std::to_string(thread) + " is at " +
         place.text() + ", thread " + std::to_string(entry.thread) + " at the " + entry.instruction + " of " +
         entry.place.text());
}

void AlignedLog::end() const {
  if (entries_.empty()) return;
  const Entry& entry = entries_[open_];
  misuse(std::string(entry.instruction) + ": expected all " + std::to_string(threads_) + " threads at " +
         entry.place.text() + ", got " + std::to_string(entry.came));
}

}  // namespace aapt::emulate
