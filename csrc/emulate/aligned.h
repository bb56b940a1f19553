// SPDX-License-Identifier: Apache-2.0
// Instructions that PTX calls .aligned: all threads of a warp execute the same one, or nothing is defined.
//
// So all threads of a warp pass the same places of the source in the same order, whatever they do in between. A log of
// these places finds a warp whose threads have taken different branches, without a thread having to wait for another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace aapt::emulate {

// A place in the source. As a default argument Place::here() is the place of the call.
struct Place {
  const char* file = "";
  int line = 0;

  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  std::string text() const;  // "softmax.cuh:41"
};

// The instructions that a warp has executed, or a warpgroup for those that take one.
class AlignedLog {
 public:
  AlignedLog() = default;
  explicit AlignedLog(int threads) : threads_(threads) {}

  // Thread `thread` comes to its instruction number `number`, counted from 0. Misuse if others had another one there.
  void enter(std::uint64_t number, int thread, const char* instruction, Place place) {
    const std::size_t at = open_ + static_cast<std::size_t>(number - first_);
    if (at == entries_.size()) {
      entries_.push_back({instruction, place, thread, 0});
    } else if (entries_[at].place.line != place.line || entries_[at].place.file != place.file ||
               entries_[at].instruction != instruction) {
      require_same(entries_[at], thread, instruction, place);
    }
    // What all have executed, and everything before it, is not needed any more.
    if (++entries_[at].came < threads_ || at != open_) return;
    for (; open_ < entries_.size() && entries_[open_].came == threads_; ++open_) ++first_;
    if (open_ < entries_.size()) return;
    entries_.clear();
    open_ = 0;
  }

  // Misuse if some threads ended without an instruction that others of them have executed.
  void end() const;

 private:
  struct Entry {
    const char* instruction;
    Place place;
    int thread;  // that came first
    int came;    // threads so far
  };
  static void require_same(const Entry& entry, int thread, const char* instruction, Place place);

  int threads_ = 0;
  std::vector<Entry> entries_;
  std::size_t open_ = 0;     // the first entry that some threads have not come to
  std::uint64_t first_ = 0;  // its number
};

}  // namespace aapt::emulate
