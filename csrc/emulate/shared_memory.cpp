// SPDX-License-Identifier: Apache-2.0
#include "emulate/shared_memory.h"

#include <algorithm>
#include <cstring>

#include "emulate/machine.h"

namespace aapt::emulate {
namespace {

constexpr std::uint32_t kWordBytes = 4;

std::string byte(std::uint32_t offset) { return "byte " + std::to_string(offset) + " of shared memory"; }

}  // namespace

SharedMemory::SharedMemory(std::size_t bytes, int threads)
    : memory_(bytes + 1024, static_cast<char>(0xff)),
      asynchronous_(bytes, static_cast<char>(0xff)),
      readers_(bytes / kPieceBytes + 1),
      of_thread_(threads) {
  constexpr std::uintptr_t alignment = 1024;
  const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
  data_ = reinterpret_cast<char*>((address + alignment - 1) & ~(alignment - 1));
}

// ---- threads ----

void SharedMemory::will_write(int thread, std::uint32_t offset, std::size_t bytes) {
  if (!traced_) {
    traced_ = true;
    writers_.resize(size() / kWordBytes + 1);
  }
  const std::uint32_t last = offset + static_cast<std::uint32_t>(bytes) - 1;
  for (std::uint32_t word = offset / kWordBytes; word <= last / kWordBytes; ++word) {
    if (writers_[word] == thread + 1) continue;
    writers_[word] = static_cast<std::uint16_t>(thread + 1);
    of_thread_[thread].written.push_back(word * kWordBytes);
  }
  for (std::uint32_t piece = offset / kPieceBytes; piece <= last / kPieceBytes; ++piece) {
    if (readers_[piece]) suspects_.push_back({thread, piece * kPieceBytes});
  }
}

void SharedMemory::fence(int thread) {
  if (!traced_) {
    fenced_ = true;
    return;
  }
  auto& [written, fenced] = of_thread_[thread];
  for (const std::uint32_t offset : written) {
    std::uint16_t& writer = writers_[offset / kWordBytes];
    if (writer == thread + 1) writer = 0;
  }
  fenced.insert(fenced.end(), written.begin(), written.end());
  written.clear();
}

void SharedMemory::publish(std::vector<std::uint32_t>& words) {
  for (const std::uint32_t offset : words) {
    std::memcpy(asynchronous_.data() + offset, data_ + offset, std::min<std::size_t>(kWordBytes, size() - offset));
  }
  words.clear();
}

void SharedMemory::settle() {
  check_writes();
  if (fenced_) std::memcpy(asynchronous_.data(), data_, size());
  fenced_ = false;
  if (!traced_) return;
  for (Words& words : of_thread_) publish(words.fenced);
}

void SharedMemory::settle(int thread) {
  if (traced_) {
    publish(of_thread_[thread].fenced);
  } else {
    settle();
  }
}

void SharedMemory::check_suspects() {
  for (const Write& write : suspects_) {
    if (is_visible(write.offset)) continue;
    misuse("write of thread " + std::to_string(write.thread) + " near " + byte(write.offset) +
           ", which a product or a tile store still reads");
  }
  suspects_.clear();
}

// ---- the asynchronous proxy ----

void SharedMemory::write(std::uint32_t offset, const char* bytes, const char* what) {
  if (readers_[offset / kPieceBytes]) require_unread({offset}, what);
  std::memcpy(data_ + offset, bytes, kPieceBytes);
  std::memcpy(asynchronous_.data() + offset, bytes, kPieceBytes);
}

bool SharedMemory::is_visible(std::uint32_t offset) const {
  return std::memcmp(data_ + offset, asynchronous_.data() + offset, kPieceBytes) == 0;
}

void SharedMemory::require_visible(const Pieces& pieces, const char* what) const {
  for (const std::uint32_t offset : pieces) {
    if (is_visible(offset)) continue;
    misuse(std::string(what) + ": it does not see what " + writer(offset) + " wrote near " + byte(offset) +
           ": expected fence_proxy_async() of that thread after the write, and a barrier after the fence");
  }
}

void SharedMemory::require_unchanged(const Pieces& pieces, const char* what) const {
  for (const std::uint32_t offset : pieces) {
    if (is_visible(offset)) continue;
    misuse(std::string(what) + ": " + writer(offset) + " wrote near " + byte(offset) + " before it was read");
  }
}

void SharedMemory::require_unread(const Pieces& pieces, const char* what) const {
  for (const std::uint32_t offset : pieces) {
    if (readers_[offset / kPieceBytes] == 0) continue;
    misuse(std::string(what) + ": it writes near " + byte(offset) + ", which a product or a tile store still reads");
  }
}

void SharedMemory::begin_read(const Pieces& pieces) {
  for (const std::uint32_t offset : pieces) ++readers_[offset / kPieceBytes];
}

void SharedMemory::end_read(const Pieces& pieces) {
  for (const std::uint32_t offset : pieces) --readers_[offset / kPieceBytes];
}

std::string SharedMemory::writer(std::uint32_t offset) const {
  for (std::uint32_t word = offset; traced_ && word < offset + kPieceBytes; word += kWordBytes) {
    const int writer = writers_[word / kWordBytes];
    if (writer) return "thread " + std::to_string(writer - 1);
  }
  return "a thread";
}

}  // namespace aapt::emulate
