// SPDX-License-Identifier: Apache-2.0
// CUTLASS's own 3-D convolution for Hopper (implicit GEMM with im2col loads), as a baseline of bench/bench_conv3d.py.
// Built by bench/baselines/cutlass_conv3d.py; no part of the package.
#include <cutlass/kernel_hardware_info.h>

#include <cute/tensor.hpp>
#include <cutlass/conv/collective/collective_builder.hpp>
#include <cutlass/conv/convolution.h>
#include <cutlass/conv/device/conv_universal_adapter.hpp>
#include <cutlass/conv/kernel/conv_universal.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>

namespace {

using cute::_1;
using cute::_128;
using cute::_2;
using cute::_64;
using Element = cutlass::bfloat16_t;
using Layout = cutlass::layout::TensorNDHWC;
using Operator = cutlass::arch::OpClassTensorOp;
constexpr int kAligned = 8;  // elements of 16 bytes

// 128 pixels by Outputs, 64 channels of a tap at a time; two blocks share the weights.
template <class Outputs>
struct Convolution {
  using Tile = cute::Shape<_128, Outputs, cute::Shape<_64>>;
  using OutTile = cute::Shape<_128, Outputs, _64>;
  using Cluster = cute::Shape<_2, _1, _1>;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, Operator, OutTile, Cluster, cutlass::epilogue::collective::EpilogueTileAuto, float, float,
      Element, Layout, kAligned, Element, Layout, kAligned,
      cutlass::epilogue::collective::EpilogueScheduleAuto>::CollectiveOp;
  using Mainloop = typename cutlass::conv::collective::CollectiveBuilder<
      cutlass::arch::Sm90, Operator, cutlass::conv::Operator::kFprop, Element, Layout, kAligned, Element, Layout, kAligned,
      float, Tile, Cluster,
      cutlass::conv::collective::StageCountAutoCarveout<sizeof(typename Epilogue::SharedStorage)>,
      cutlass::conv::collective::KernelScheduleAuto>::CollectiveOp;
  using Problem = cutlass::conv::ConvProblemShape<cutlass::conv::Operator::kFprop, 3>;
  using Kernel = cutlass::conv::kernel::ConvUniversal<Problem, Mainloop, Epilogue>;
  using Device = cutlass::conv::device::ConvUniversalAdapter<Kernel>;

  static int run(const Problem& problem, void* x, void* weight, void* out, void* stream) {
    typename Kernel::StrideD strides{};
    cute::for_each(cute::make_seq<cute::rank<0>(typename Kernel::StrideD{})>{}, [&](auto i) {
      cute::get<0, i>(strides) = problem.stride_C[3 - i];
    });
    typename Device::Arguments arguments{
        problem,
        {static_cast<Element*>(x), static_cast<Element*>(weight)},
        {{1.0f, 0.0f}, static_cast<Element*>(out), strides, static_cast<Element*>(out), strides},
    };
    Device device;
    if (device.can_implement(arguments) != cutlass::Status::kSuccess || Device::get_workspace_size(arguments) != 0) {
      return 1;
    }
    cudaStream_t on = static_cast<cudaStream_t>(stream);
    const bool done = device.initialize(arguments, nullptr, on) == cutlass::Status::kSuccess &&
                      device.run(on) == cutlass::Status::kSuccess;
    return done ? 0 : 2;
  }
};

}  // namespace

// x [B, D, H, W, C], weight [O, kt, kh, kw, C], out [B, D - kt + 1, H, W, O], all bfloat16 and contiguous: zeros in
// space, none in time. Returns 0, 1 for sizes that it does not take, 2 if the launch failed.
extern "C" int cutlass_conv3d(void* x, void* weight, void* out, const int* sizes, void* stream) {
  const int batch = sizes[0], depth = sizes[1], height = sizes[2], width = sizes[3], channels = sizes[4];
  const int outputs = sizes[5], kt = sizes[6], kh = sizes[7], kw = sizes[8];
  using Problem = cutlass::conv::ConvProblemShape<cutlass::conv::Operator::kFprop, 3>;
  const Problem problem(cutlass::conv::Mode::kCrossCorrelation, {batch, depth, height, width, channels},
                        {outputs, kt, kh, kw, channels}, {0, kh / 2, kw / 2}, {0, kh / 2, kw / 2}, {1, 1, 1}, {1, 1, 1}, 1);
  const bool narrow = outputs % 128 != 0 && outputs <= 64;
  return narrow ? Convolution<_64>::run(problem, x, weight, out, stream)
                : Convolution<_128>::run(problem, x, weight, out, stream);
}
