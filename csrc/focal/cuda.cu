// The CUDA launchers of the focal operators: one thread block per cell or strip of pixels.
#include <ATen/Dispatch.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "../common/launch.h"
#include "pool_arguments.h"

namespace vss::focal {
namespace {

constexpr int kMaxThreads = 256;

template <typename T>
struct PoolCell {
  PoolGeometry g;
  const T *x, *weight, *bias;
  T* out;
  VSS_DEVICE void operator()(const GpuBlock& block, int64_t i) const {
    pool_cell(block, g, x, weight, bias, out, i);
  }
};

template <typename T>
struct PoolStripBackward {
  PoolGeometry g;
  const T *grad, *weight;
  T* grad_x;
  VSS_DEVICE void operator()(const GpuBlock& block, int64_t i) const {
    pool_strip_backward(block, g, grad, weight, grad_x, i);
  }
};

template <typename T>
struct PoolWeightBackward {
  PoolGeometry g;
  const T *grad, *x;
  float* parts;
  VSS_DEVICE void operator()(const GpuBlock& block, int64_t i) const {
    pool_weight_backward(block, g, grad, x, parts, i);
  }
};

// One channel a thread where the block's size allows; a few more threads than that for the scratch.
template <typename F>
void launch(const char* op, int64_t count, int64_t channels, int64_t scratch_floats, const F& f) {
  launch_each<kMaxThreads>(op, count, std::max<int64_t>(channels, 64), scratch_floats, f);
}

// Sixteen neighbours are read by few cells, and have coefficients and sums enough for all threads of a
// block. Fewer where a map is enlarged many times: the scratch stays small, and a pixel has work enough.
void lengthen_strip(PoolGeometry& g) {
  constexpr int64_t kMostScratch = 4096;
  set_strip(g, 16);
  while (g.strip > 1 && strip_capacity(g) > kMostScratch) set_strip(g, g.strip / 2);
}

at::Tensor pool(const at::Tensor& x_any, const at::Tensor& weight_any, const at::Tensor& bias,
                at::IntArrayRef cells) {
  const c10::DeviceGuard guard(x_any.device());
  const PoolInputs in = pool_inputs(x_any, weight_any, bias, cells);
  at::Tensor out = pool_output(in);
  if (out.numel() == 0) return out;
  VSS_DISPATCH_FLOATING(out.scalar_type(), "focal_pool", [&] {
    launch("focal_pool", in.geometry.cells(), in.geometry.channels, patch_capacity(in.geometry),
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
  const c10::DeviceGuard guard(x_any.device());
  PoolBackwardInputs in = pool_backward_inputs(grad_any, x_any, weight_any, needs);
  PoolGeometry& g = in.geometry;
  lengthen_strip(g);
  VSS_DISPATCH_FLOATING(in.x.scalar_type(), "focal_pool_backward", [&] {
    const auto* grad = in.grad.const_data_ptr<scalar_t>();
    if (in.grad_x.numel() > 0) {
      launch("focal_pool_backward", g.strips(), g.channels, strip_capacity(g),
             PoolStripBackward<scalar_t>{g, grad, in.weight.const_data_ptr<scalar_t>(),
                                         in.grad_x.mutable_data_ptr<scalar_t>()});
    }
    if (in.parts.numel() > 0) {
      launch("focal_pool_backward", g.cells(), g.channels, patch_capacity(g),
             PoolWeightBackward<scalar_t>{g, grad, in.x.const_data_ptr<scalar_t>(),
                                          in.parts.mutable_data_ptr<float>()});
    }
  });
  return pool_gradients(in);
}

}  // namespace
}  // namespace vss::focal

TORCH_LIBRARY_IMPL(vss_kernels, VSS_GPU_KEY, m) {
  m.impl("focal_pool", TORCH_FN(vss::focal::pool));
  m.impl("focal_pool_backward", TORCH_FN(vss::focal::pool_backward));
}
