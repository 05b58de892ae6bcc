// The CUDA launchers of the focal operators: one thread block per cell or pixel.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "pool_arguments.h"

namespace vss::focal {
namespace {

// One block per index in [0, count). Indices beyond the largest grid are taken in strides.
template <typename F>
__global__ void for_each_block(int64_t count, const F f) {
  extern __shared__ float shared[];
  const CudaBlock block(shared);
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) f(block, i);
}

template <typename T>
struct PoolCell {
  PoolGeometry g;
  const T *x, *weight, *bias;
  T* out;
  __device__ void operator()(const CudaBlock& block, int64_t i) const {
    pool_cell(block, g, x, weight, bias, out, i);
  }
};

template <typename T>
struct PoolPixelBackward {
  PoolGeometry g;
  const T *grad, *weight;
  T* grad_x;
  __device__ void operator()(const CudaBlock& block, int64_t i) const {
    pool_pixel_backward(block, g, grad, weight, grad_x, i);
  }
};

template <typename T>
struct PoolWeightBackward {
  PoolGeometry g;
  const T *grad, *x;
  float* parts;
  __device__ void operator()(const CudaBlock& block, int64_t i) const {
    pool_weight_backward(block, g, grad, x, parts, i);
  }
};

// A whole number of warps, enough for one channel a thread up to 256 channels.
int threads_for(int64_t channels) {
  return static_cast<int>(std::clamp<int64_t>(ceil_div<int64_t>(channels, 32) * 32, 64, 256));
}

template <typename F>
void launch(int64_t count, int64_t channels, int64_t scratch_floats, const F& f) {
  constexpr int64_t kDefaultSharedBytes = 48 * 1024;
  const int64_t bytes = (CudaBlock::kReserved + scratch_floats) * sizeof(float);
  TORCH_CHECK(bytes <= kDefaultSharedBytes, "focal_pool: one cell reads a patch of ",
              scratch_floats, " pixels, more than fits in shared memory; use the eager backend");
  const int64_t blocks = std::min<int64_t>(count, (int64_t{1} << 31) - 1);
  for_each_block<<<blocks, threads_for(channels), bytes, c10::cuda::getCurrentCUDAStream()>>>(count,
                                                                                             f);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor pool(const at::Tensor& x_any, const at::Tensor& weight_any, const at::Tensor& bias,
                at::IntArrayRef cells) {
  const c10::cuda::CUDAGuard guard(x_any.device());
  const PoolInputs in = pool_inputs(x_any, weight_any, bias, cells);
  at::Tensor out = pool_output(in);
  if (out.numel() == 0) return out;
  VSS_DISPATCH_FLOATING(out.scalar_type(), "focal_pool", [&] {
    launch(in.geometry.cells(), in.geometry.channels, patch_capacity(in.geometry),
           PoolCell<scalar_t>{in.geometry, in.x.const_data_ptr<scalar_t>(),
                              in.weight.const_data_ptr<scalar_t>(),
                              bias.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>()});
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pool_backward(const at::Tensor& grad_any,
                                                             const at::Tensor& x_any,
                                                             const at::Tensor& weight_any,
                                                             std::array<bool, 3> needs) {
  const c10::cuda::CUDAGuard guard(x_any.device());
  const PoolBackwardInputs in = pool_backward_inputs(grad_any, x_any, weight_any, needs);
  const PoolGeometry& g = in.geometry;
  VSS_DISPATCH_FLOATING(in.x.scalar_type(), "focal_pool_backward", [&] {
    const auto* grad = in.grad.const_data_ptr<scalar_t>();
    if (in.grad_x.numel() > 0) {
      launch(g.pixels(), g.channels, cell_capacity(g),
             PoolPixelBackward<scalar_t>{g, grad, in.weight.const_data_ptr<scalar_t>(),
                                         in.grad_x.mutable_data_ptr<scalar_t>()});
    }
    if (in.parts.numel() > 0) {
      launch(g.cells(), g.channels, patch_capacity(g),
             PoolWeightBackward<scalar_t>{g, grad, in.x.const_data_ptr<scalar_t>(),
                                          in.parts.mutable_data_ptr<float>()});
    }
  });
  return pool_gradients(in);
}

}  // namespace
}  // namespace vss::focal

TORCH_LIBRARY_IMPL(vss_kernels, CUDA, m) {
  m.impl("focal_pool", TORCH_FN(vss::focal::pool));
  m.impl("focal_pool_backward", TORCH_FN(vss::focal::pool_backward));
}
