// The CUDA launcher of fuse_pyramid: one thread block per tile or, backward, per band of a plane.
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "pyramid_arguments.h"

namespace vss::pyramid {
namespace {

constexpr int kThreads = 256;

// One block per index in [0, count). Indices beyond the largest grid are taken in strides.
template <typename F>
__global__ void __launch_bounds__(kThreads) for_each_block(int64_t count, const F f) {
  extern __shared__ float shared[];
  const CudaBlock block(shared);
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) f(block, i);
}

template <bool kTurned, typename T>
struct FuseTile {
  Pyramid p;
  Sources<T> sources;
  T* out;
  __device__ void operator()(const CudaBlock& block, int64_t i) const {
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
  __device__ void operator()(const CudaBlock& block, int64_t i) const {
    fuse_backward(block, p, grad, grad_levels, i);
  }
};

template <typename F>
void launch(int64_t count, int64_t scratch_floats, const F& f) {
  if (count == 0) return;
  constexpr int64_t kDefaultSharedBytes = 48 * 1024;
  const int64_t bytes = (CudaBlock::kReserved + scratch_floats) * sizeof(float);
  if (bytes > kDefaultSharedBytes) {
    C10_CUDA_CHECK(cudaFuncSetAttribute(
        for_each_block<F>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  }
  const int64_t grid = std::min<int64_t>(count, (int64_t{1} << 31) - 1);
  for_each_block<<<grid, kThreads, bytes, c10::cuda::getCurrentCUDAStream()>>>(count, f);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor fuse(at::TensorList levels) {
  TORCH_CHECK_VALUE(!levels.empty(), "fuse_pyramid: levels must hold at least one map");
  const c10::cuda::CUDAGuard guard(levels[0].device());
  PyramidInputs in = pyramid_inputs(levels);
  Pyramid& p = in.geometry;
  // A warp reads 32 neighbours, and a block has several items for each thread.
  constexpr int64_t kItems = 4 * kThreads;
  p.tile_columns = tile_size(p.columns, in.turned ? CudaBlock::kWarp : 512, 1);
  p.tile_channels = in.turned ? CudaBlock::kWarp
                              : static_cast<int>(std::max<int64_t>(kItems / p.tile_columns, 1));
  const at::Tensor out = fused_output(in);
  if (out.numel() == 0) return out;
  VSS_DISPATCH_FLOATING(out.scalar_type(), "fuse_pyramid", [&] {
    const Sources<scalar_t> sources = in.sources<scalar_t>();
    auto* result = out.mutable_data_ptr<scalar_t>();
    const int64_t scratch = p.scratch_floats(CudaBlock::kLanes, in.turned);
    if (in.turned) {
      launch(p.blocks(), scratch, FuseTile<true, scalar_t>{p, sources, result});
    } else {
      launch(p.blocks(), scratch, FuseTile<false, scalar_t>{p, sources, result});
    }
  });
  return out;
}

std::vector<at::Tensor> fuse_levels_backward(const at::Tensor& grad, at::IntArrayRef sizes) {
  const c10::cuda::CUDAGuard guard(grad.device());
  constexpr int64_t kBandRows = 32;
  const PyramidBackwardCall call = backward_call(grad, sizes, kBandRows);
  const PyramidBackward& p = call.geometry;
  VSS_DISPATCH_FLOATING(grad.scalar_type(), "fuse_pyramid_backward", [&] {
    FuseBackward<scalar_t> f = {p, call.grad.const_data_ptr<scalar_t>(), {}};
    const auto results = call.results<scalar_t>();
    std::copy(results.begin(), results.end(), f.grad_levels);
    launch(p.blocks(), p.scratch_floats(), f);
  });
  return call.grad_levels;
}

}  // namespace
}  // namespace vss::pyramid

TORCH_LIBRARY_IMPL(vss_kernels, CUDA, m) {
  m.impl("fuse_pyramid", TORCH_FN(vss::pyramid::fuse));
  m.impl("fuse_pyramid_backward", TORCH_FN(vss::pyramid::fuse_levels_backward));
}
