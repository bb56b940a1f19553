// SPDX-License-Identifier: Apache-2.0
#include "emulate/wgmma.h"

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "emulate/arch_ptx.h"

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

// An operand as its descriptor describes it.
struct Matrix {
  std::uint32_t start, leading, stride, pattern_row, pieces;  // pieces: of 16 bytes in a row of the swizzle, 1 for none

  explicit Matrix(std::uint64_t bits)
      : start((bits & 0x3fff) << 4),
        leading((bits >> 16 & 0x3fff) << 4),
        stride((bits >> 32 & 0x3fff) << 4),
        pattern_row(bits >> 49 & 7),
        pieces(std::array<int, 4>{1, 8, 4, 2}[bits >> 62]) {}

  // Place of piece `along` (16 bytes of the dense index) of row `across`.
  std::uint32_t address(std::uint32_t along, std::uint32_t across, bool mn_major) const {
    std::uint32_t offset = across % 8 * pieces * 16;
    if (mn_major && pieces > 1) {
      offset += along % pieces * 16 + along / pieces * leading + across / 8 * stride;
    } else if (mn_major) {
      offset += along * stride + across / 8 * leading;
    } else {
      offset += across / 8 * stride + along * (pieces > 1 ? 16 : leading);
    }
    const std::uint32_t at = start + offset;
    return at ^ ((((at >> 7) - pattern_row) & (pieces - 1)) << 4);
  }
};

// Reads an operand of shared memory into to[k][row], rows of `rows` numbers.
void read_operand(Block& block, std::uint64_t bits, bool mn_major, Dtype dtype, int rows, float* to) {
  const Matrix matrix(bits);
  const int dense = mn_major ? rows : kDepth, other = mn_major ? kDepth : rows;
  for (int across = 0; across < other; ++across) {
    for (int piece = 0; piece < dense / 8; ++piece) {
      const std::uint32_t address = matrix.address(piece, across, mn_major);
      block.at(address, 16, "wgmma");
      const char* bytes = block.asynchronous_memory.data() + address;
      for (int i = 0; i < 8; ++i) {
        const int along = piece * 8 + i;
        to[mn_major ? across * rows + along : along * rows + across] = number(dtype, bytes + 2 * i);
      }
    }
  }
}

// Gathers A from the registers of the warpgroup into to[k][row].
void gather_registers(const Product& product, float* to) {
  for (int thread = 0; thread < 128; ++thread) {
    const int lane = thread % 32;
    for (int word = 0; word < 4; ++word) {
      const char* bytes = reinterpret_cast<const char*>(product.a_words[thread] + word);
      const int row = thread / 32 * 16 + lane / 4 + word % 2 * 8;
      const int column = lane % 4 * 2 + word / 2 * 8;
      for (int i = 0; i < 2; ++i) to[(column + i) * kRows + row] = number(product.dtype, bytes + 2 * i);
    }
  }
}

void multiply(Block& block, const Product& product) {
  const int columns = product.columns;
  static thread_local float a[kDepth * kRows], b[kDepth * kMostColumns], sums[kRows * kMostColumns];
  if (product.a_in_registers) {
    gather_registers(product, a);
  } else {
    read_operand(block, product.a, /*mn_major=*/false, product.dtype, kRows, a);
  }
  read_operand(block, product.b, product.b_mn_major, product.dtype, columns, b);
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
      const int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
      const float sum = sums[row * columns + i / 4 * 8 + thread % 4 * 2 + i % 2];
      d[i] = product.accumulate ? d[i] + sum : sum;
    }
  }
}

void finish(Block& block, Warpgroup& warpgroup, std::uint64_t target) {
  while (warpgroup.done < target) {
    multiply(block, *warpgroup.products.front());
    warpgroup.products.pop_front();
    ++warpgroup.done;
  }
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

void fence_products() { machine().thread().wgmma_fenced = true; }

void issue_product(Dtype dtype, const Operands& operands, float* d, int columns, bool accumulate) {
  Block& block = machine().block();
  Warpgroup& warpgroup = own_warpgroup("wgmma");
  Thread& thread = machine().thread();
  if (!thread.wgmma_fenced) misuse("wgmma: expected wgmma_fence before it, and again after wgmma_wait");
  const std::uint64_t number = thread.products_issued++;
  while (warpgroup.done + warpgroup.products.size() <= number) {
    warpgroup.products.push_back(std::make_unique<Product>());
  }
  Product& product = *warpgroup.products[number - warpgroup.done];
  if (product.issued == 0) {
    product.a = operands.a;
    product.b = operands.b;
    product.columns = columns;
    product.dtype = dtype;
    product.a_in_registers = operands.a_words != nullptr;
    product.b_mn_major = operands.b_mn_major;
    product.accumulate = accumulate;
  }
  if (product.a != operands.a || product.b != operands.b || product.columns != columns ||
      product.accumulate != accumulate) {
    misuse("wgmma: expected the same operands in all threads of a warpgroup");
  }
  product.d[thread.index % 128] = d;
  product.a_words[thread.index % 128] = operands.a_words;
  if (++product.issued == 128 && machine().coin()) {
    machine().later([&block, &warpgroup, number] { finish(block, warpgroup, number + 1); });
  }
}

void commit_products() { machine().thread().product_groups.push_back(machine().thread().products_issued); }

// A product without an early warp is done after all 128 threads have come to wait for it.
void wait_for_products(std::size_t pending) {
  Thread& thread = machine().thread();
  Warpgroup& warpgroup = own_warpgroup("wgmma_wait");
  thread.wgmma_fenced = false;
  std::uint64_t target = 0;
  for (; thread.product_groups.size() > pending; thread.product_groups.pop_front()) {
    target = thread.product_groups.front();
  }
  if (target <= warpgroup.done) return;
  warpgroup.awaited[thread.index % 128] = target;
  if (*std::min_element(std::begin(warpgroup.awaited), std::end(warpgroup.awaited)) == target) {
    Block& block = machine().block();
    machine().later([&block, &warpgroup, target] { finish(block, warpgroup, target); });
  }
  machine().wait(&warpgroup.done, target, "wgmma_wait of its whole warpgroup");
}

}  // namespace aapt::emulate
