// SPDX-License-Identifier: Apache-2.0
#include "emulate/wgmma.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "emulate/arch_ptx.h"
#include "emulate/operand.h"

namespace aapt::emulate {
namespace {

constexpr int kRows = 64, kMostColumns = 256, kDepth = 16;

// Every number of 16 bits.
template <class T>
const std::vector<float>& numbers() {
  static const std::vector<float> table = [] {
    std::vector<float> values(1 << 16);
    for (int i = 0; i < 1 << 16; ++i) values[i] = arch::to_float(T{static_cast<std::uint16_t>(i)});
    return values;
  }();
  return table;
}

float number(Dtype dtype, const char* bytes) {
  std::uint16_t bits;
  std::memcpy(&bits, bytes, sizeof bits);
  return (dtype == Dtype::kFloat16 ? numbers<float16>() : numbers<bfloat16>())[bits];
}

// The pieces of an operand in shared memory: for each index `across` the dense one those along it.
Pieces pieces_of(Block& block, std::uint64_t bits, bool mn_major, int rows) {
  const Matrix matrix(bits);
  const int dense = mn_major ? rows : kDepth, other = mn_major ? kDepth : rows;
  Pieces pieces;
  pieces.reserve(other * dense / 8);
  for (int across = 0; across < other; ++across) {
    for (int piece = 0; piece < dense / 8; ++piece) {
      pieces.push_back(matrix.address(piece, across, mn_major));
      block.at(pieces.back(), kPieceBytes, "wgmma");
    }
  }
  return pieces;
}

// Reads an operand of shared memory into to[k][row], rows of `rows` numbers.
void read_operand(Block& block, const Pieces& pieces, bool mn_major, Dtype dtype, int rows, float* to) {
  const int per_line = (mn_major ? rows : kDepth) / 8;
  for (int i = 0; i < static_cast<int>(pieces.size()); ++i) {
    const char* bytes = block.shared.read(pieces[i]);
    const int across = i / per_line;
    for (int j = 0; j < 8; ++j) {
      const int along = i % per_line * 8 + j;
      to[mn_major ? across * rows + along : along * rows + across] = number(dtype, bytes + 2 * j);
    }
  }
}

// Gathers A from the registers of the warpgroup into to[k][row].
void gather_registers(const Product& product, float* to) {
  for (int thread = 0; thread < 128; ++thread) {
    for (int word = 0; word < 4; ++word) {
      const char* bytes = reinterpret_cast<const char*>(product.a_words[thread] + word);
      for (int half = 0; half < 2; ++half) {
        const auto [row, column] = a_element(thread, word, half);
        to[column * kRows + row] = number(product.dtype, bytes + 2 * half);
      }
    }
  }
}

void multiply(Block& block, const Product& product) {
  const int columns = product.columns;
  static thread_local float a[kDepth * kRows], b[kDepth * kMostColumns], sums[kRows * kMostColumns];
  if (product.a_in_registers) {
    gather_registers(product, a);
  } else {
    read_operand(block, product.a_pieces, /*mn_major=*/false, product.dtype, kRows, a);
  }
  read_operand(block, product.b_pieces, product.b_mn_major, product.dtype, columns, b);
  std::fill(sums, sums + kRows * columns, 0.0f);
  for (int row = 0; row < kRows; ++row) {
    float* sum = sums + row * columns;
    for (int k = 0; k < kDepth; ++k) {
      const float factor = a[k * kRows + row];
      const float* line = b + k * columns;
      for (int column = 0; column < columns; ++column) sum[column] += factor * line[column];
    }
  }
  for (int thread = 0; thread < 128; ++thread) {
    float* d = product.d[thread];
    for (int i = 0; i < columns / 2; ++i) {
      const auto [row, column] = accumulator_element(thread, i);
      const float sum = sums[row * columns + column];
      d[i] = product.accumulate ? d[i] + sum : sum;
    }
  }
}

void finish(Block& block, Warpgroup& warpgroup, std::uint64_t target) {
  for (; warpgroup.done < target; ++warpgroup.done) {
    const Product& product = *warpgroup.products[warpgroup.done - warpgroup.first];
    block.shared.require_unchanged(product.a_pieces, "wgmma");
    block.shared.require_unchanged(product.b_pieces, "wgmma");
    multiply(block, product);
  }
}

// The running thread has waited for the first `target` products. When a thread of each warp has, nothing reads their
// operands any more: a warp waits as a whole.
void release(Block& block, Warpgroup& warpgroup, std::uint64_t target) {
  Thread& thread = machine().thread();
  thread.products_awaited = std::max(thread.products_awaited, target);
  auto& busy = thread.busy_registers;
  busy.erase(std::remove_if(busy.begin(), busy.end(), [&](const auto& each) { return each.product < target; }),
             busy.end());
  std::uint64_t& of_warp = warpgroup.released[thread.index % 128 / 32];
  if (target <= of_warp) return;
  of_warp = target;
  const std::uint64_t by_all = *std::min_element(std::begin(warpgroup.released), std::end(warpgroup.released));
  for (; warpgroup.first < by_all; ++warpgroup.first) {
    block.shared.end_read(warpgroup.products.front()->a_pieces);
    block.shared.end_read(warpgroup.products.front()->b_pieces);
    warpgroup.products.pop_front();
  }
}

// Registers that the product of this number works on, in a traced kernel.
void note_busy_registers(Thread& thread, std::uint64_t number, const void* begin, std::size_t bytes, bool read_only) {
  const auto* first = static_cast<const char*>(begin);
  for (BusyRegisters& busy : thread.busy_registers) {
    if (busy.begin != first) continue;
    busy.product = number;
    return;
  }
  thread.busy_registers.push_back({first, first + bytes, read_only, number});
}

Warpgroup& own_warpgroup(const char* what) {
  const int index = machine().thread().index / 128;
  if (128 * (index + 1) > machine().block().threads) {
    misuse(std::string(what) + ": expected a warpgroup of 128 threads, got " +
           std::to_string(machine().block().threads % 128));
  }
  return machine().block().warpgroups[index];
}

}  // namespace

void fence_products(Place place) {
  machine().group_aligned("wgmma_fence", place);
  machine().thread().wgmma_fenced = true;
}

void issue_product(Dtype dtype, const Operands& operands, float* d, int columns, bool accumulate, Place place) {
  Block& block = machine().block();
  Warpgroup& warpgroup = own_warpgroup("wgmma");
  Thread& thread = machine().thread();
  machine().group_aligned("wgmma", place);
  if (!thread.wgmma_fenced) misuse("wgmma: expected wgmma_fence before it, and again after wgmma_wait");
  const std::uint64_t number = thread.products_issued++;
  while (warpgroup.first + warpgroup.products.size() <= number) {
    warpgroup.products.push_back(std::make_unique<Product>());
  }
  Product& product = *warpgroup.products[number - warpgroup.first];
  if (product.issued == 0) {
    product.a = operands.a;
    product.b = operands.b;
    product.columns = columns;
    product.dtype = dtype;
    product.a_in_registers = operands.a_words != nullptr;
    product.b_mn_major = operands.b_mn_major;
    product.accumulate = accumulate;
    if (!product.a_in_registers) product.a_pieces = pieces_of(block, product.a, /*mn_major=*/false, kRows);
    product.b_pieces = pieces_of(block, product.b, product.b_mn_major, columns);
    block.shared.begin_read(product.a_pieces);
    block.shared.begin_read(product.b_pieces);
  }
  if (product.a != operands.a || product.b != operands.b || product.columns != columns ||
      product.accumulate != accumulate) {
    misuse("wgmma: expected the same operands in all threads of a warpgroup");
  }
  product.d[thread.index % 128] = d;
  product.a_words[thread.index % 128] = operands.a_words;
  if (machine().traced()) {
    note_busy_registers(thread, number, d, columns / 2 * sizeof *d, /*read_only=*/false);
    if (operands.a_words) note_busy_registers(thread, number, operands.a_words, 16, /*read_only=*/true);
  }
  if (++product.issued < 128) return;
  block.shared.require_visible(product.a_pieces, "wgmma");
  block.shared.require_visible(product.b_pieces, "wgmma");
  if (machine().coin()) {
    machine().later([&block, &warpgroup, number] { finish(block, warpgroup, number + 1); });
  }
}

void commit_products(Place place) {
  machine().group_aligned("wgmma_commit", place);
  machine().thread().product_groups.push_back(machine().thread().products_issued);
}

// A product without an early warp is done after all 128 threads have come to wait for it.
void wait_for_products(std::size_t pending, Place place) {
  Thread& thread = machine().thread();
  Block& block = machine().block();
  Warpgroup& warpgroup = own_warpgroup("wgmma_wait");
  machine().group_aligned("wgmma_wait", place);
  thread.wgmma_fenced = false;
  std::uint64_t target = 0;
  auto& groups = thread.product_groups;
  if (groups.size() > pending) {
    const auto last = groups.end() - static_cast<std::ptrdiff_t>(pending);
    target = last[-1];
    groups.erase(groups.begin(), last);
  }
  if (target > warpgroup.done) {
    warpgroup.awaited[thread.index % 128] = target;
    if (*std::min_element(std::begin(warpgroup.awaited), std::end(warpgroup.awaited)) == target) {
      machine().later([&block, &warpgroup, target] { finish(block, warpgroup, target); });
    }
    machine().wait(&warpgroup.done, target, "wgmma_wait of its whole warpgroup");
  }
  if (target) release(block, warpgroup, target);
}

}  // namespace aapt::emulate
