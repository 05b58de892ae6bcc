// The CUDA launcher of fuse_pyramid: one thread block per tile or, backward, per band of a plane.
#include <ATen/Dispatch.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>

#include "../common/launch.h"
#include "pyramid_arguments.h"

namespace vss::pyramid {
namespace {

constexpr int kThreads = 256;

template <bool kTurned, typename T>
struct FuseTile {
  Pyramid p;
  Sources<T> sources;
  T* out;
  VSS_DEVICE void operator()(const GpuBlock& block, int64_t i) const {
    if constexpr (kTurned) {
      fuse_channels(block, p, sources, out, i);
    } else {
      fuse_columns(block, p, sources, out, i);
    }
  }
};

template <typename T>
struct FuseBackward {
  PyramidBackward p;
  const T* grad;
  T* grad_levels[kMaxLevels];
  VSS_DEVICE void operator()(const GpuBlock& block, int64_t i) const {
    fuse_backward(block, p, grad, grad_levels, i);
  }
};

at::Tensor fuse(at::TensorList levels) {
  TORCH_CHECK_VALUE(!levels.empty(), "fuse_pyramid: levels must hold at least one map");
  const c10::DeviceGuard guard(levels[0].device());
  PyramidInputs in = pyramid_inputs(levels);
  Pyramid& p = in.geometry;
  // A warp reads 32 neighbours, and a block has several items for each thread.
  constexpr int64_t kItems = 4 * kThreads;
  p.tile_columns = tile_size(p.columns, in.turned ? GpuBlock::kWarp : 512, 1);
  p.tile_channels = in.turned ? GpuBlock::kWarp
                              : static_cast<int>(std::max<int64_t>(kItems / p.tile_columns, 1));
  const at::Tensor out = fused_output(in);
  if (out.numel() == 0) return out;
  VSS_DISPATCH_FLOATING(out.scalar_type(), "fuse_pyramid", [&] {
    const Sources<scalar_t> sources = in.sources<scalar_t>();
    auto* result = out.mutable_data_ptr<scalar_t>();
    const int64_t scratch = p.scratch_floats(GpuBlock::kLanes, in.turned);
    if (in.turned) {
      launch_each<kThreads>("fuse_pyramid", p.blocks(), kThreads, scratch,
                            FuseTile<true, scalar_t>{p, sources, result});
    } else {
      launch_each<kThreads>("fuse_pyramid", p.blocks(), kThreads, scratch,
                            FuseTile<false, scalar_t>{p, sources, result});
    }
  });
  return out;
}

std::vector<at::Tensor> fuse_levels_backward(const at::Tensor& grad, at::IntArrayRef sizes) {
  const c10::DeviceGuard guard(grad.device());
  constexpr int64_t kBandRows = 32;
  const PyramidBackwardCall call = backward_call(grad, sizes, kBandRows);
  const PyramidBackward& p = call.geometry;
  VSS_DISPATCH_FLOATING(grad.scalar_type(), "fuse_pyramid_backward", [&] {
    FuseBackward<scalar_t> f = {p, call.grad.const_data_ptr<scalar_t>(), {}};
    const auto results = call.results<scalar_t>();
    std::copy(results.begin(), results.end(), f.grad_levels);
    launch_each<kThreads>("fuse_pyramid_backward", p.blocks(), kThreads, p.scratch_floats(), f);
  });
  return call.grad_levels;
}

}  // namespace
}  // namespace vss::pyramid

TORCH_LIBRARY_IMPL(vss_kernels, VSS_GPU_KEY, m) {
  m.impl("fuse_pyramid", TORCH_FN(vss::pyramid::fuse));
  m.impl("fuse_pyramid_backward", TORCH_FN(vss::pyramid::fuse_levels_backward));
}
