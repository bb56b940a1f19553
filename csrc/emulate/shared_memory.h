// SPDX-License-Identifier: Apache-2.0
// Shared memory of a block as its two kinds of users see it: threads, and the asynchronous proxy, which is the copy
// engine and wgmma.
//
// There are two copies of it. The copy engine writes to both. What threads write comes to the second one by
// fence_proxy_async() of the thread that wrote and a barrier after that. In a kernel that is compiled for tracing
// (trace.cpp) the thread of every write is known; in others a fence of one thread covers the writes of all.
//
// Operations that read for a while (products, tile stores) hold the places that they read. A write to such a place is
// an error, unless it leaves the same bytes there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace aapt::emulate {

// Offsets of 16 bytes each: what an operation of the asynchronous proxy reads or writes.
using Pieces = std::vector<std::uint32_t>;
constexpr std::uint32_t kPieceBytes = 16;

class SharedMemory {
 public:
  SharedMemory() = default;
  SharedMemory(std::size_t bytes, int threads);

  char* data() { return data_; }  // as threads see it; aligned to 1024 bytes
  std::size_t size() const { return asynchronous_.size(); }

  // ---- threads ----

  // A thread of a traced kernel is about to write.
  void will_write(int thread, std::uint32_t offset, std::size_t bytes);

  // fence_proxy_async() of a thread.
  void fence(int thread);

  // A barrier: writes with a fence after them become visible to the asynchronous proxy.
  void settle();

  // A thread's own operation of the asynchronous proxy: its own writes with a fence after them become visible.
  void settle(int thread);

  // Misuse if a write since the last call has changed a place that was being read.
  void check_writes() {
    if (!suspects_.empty()) check_suspects();
  }

  // ---- the asynchronous proxy; `what` names the operation in errors ----

  const char* read(std::uint32_t offset) const { return asynchronous_.data() + offset; }
  void write(std::uint32_t offset, const char* bytes, const char* what);  // a piece

  // Misuse if a thread has written to these places and the proxy does not see it: no fence, or no barrier after it.
  void require_visible(const Pieces& pieces, const char* what) const;

  // Misuse if a thread has written to these places, which an operation was reading.
  void require_unchanged(const Pieces& pieces, const char* what) const;

  // Misuse if an operation still reads these places.
  void require_unread(const Pieces& pieces, const char* what) const;

  void begin_read(const Pieces& pieces);
  void end_read(const Pieces& pieces);

 private:
  struct Write {
    int thread;
    std::uint32_t offset;  // of the piece
  };
  void publish(std::vector<std::uint32_t>& words);
  void check_suspects();
  bool is_visible(std::uint32_t offset) const;
  std::string writer(std::uint32_t offset) const;

  std::vector<char> memory_, asynchronous_;
  char* data_ = nullptr;
  std::vector<std::uint8_t> readers_;  // operations per piece

  bool traced_ = false;
  bool fenced_ = false;  // not traced: there was a fence since the last barrier
  struct Words {
    std::vector<std::uint32_t> written, fenced;  // offsets of 4 bytes: since the last fence, and since the last barrier
  };
  std::vector<Words> of_thread_;
  std::vector<std::uint16_t> writers_;  // per 4 bytes 1 + the thread that wrote them since its last fence, or 0
  std::vector<Write> suspects_;         // writes to places that were being read
};

}  // namespace aapt::emulate
