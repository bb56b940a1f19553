// SPDX-License-Identifier: Apache-2.0
// Launch configuration of a kernel.
#pragma once

#include <cstddef>
#include <cstdint>

namespace aapt {

struct Index3 {
  unsigned x = 1, y = 1, z = 1;
};

// Place where a kernel runs: a GPU and a CUDA stream of it as an integer. The emulation ignores both.
struct Stream {
  int device = 0;
  std::uintptr_t handle = 0;
};

struct Launch {
  Index3 grid;
  unsigned threads = 0;
  std::size_t shared_bytes = 0;
  Stream stream;
  unsigned cluster = 1;  // blocks of a cluster, along x (Hopper)
  bool early = false;    // may begin before the kernel before it has ended, and waits for that itself (Hopper)
};

}  // namespace aapt
