// The CPU launchers of the focal operators.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <vector>

#include "pool_arguments.h"

namespace vss::focal {
namespace {

template <typename T>
VSS_CPU_BLOCK void run_pool_cells(const CpuBlock& block, const PoolGeometry& g, const T* x,
                                  const T* weight, const T* bias, T* out, int64_t begin,
                                  int64_t end) {
  for (int64_t i = begin; i < end; ++i) pool_cell(block, g, x, weight, bias, out, i);
}

template <typename T>
VSS_CPU_BLOCK void run_pool_pixels_backward(const CpuBlock& block, const PoolGeometry& g,
                                            const T* grad, const T* weight, T* grad_x,
                                            int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) pool_pixel_backward(block, g, grad, weight, grad_x, i);
}

template <typename T>
VSS_CPU_BLOCK void run_pool_weight_backward(const CpuBlock& block, const PoolGeometry& g,
                                            const T* grad, const T* x, float* parts, int64_t begin,
                                            int64_t end) {
  for (int64_t i = begin; i < end; ++i) pool_weight_backward(block, g, grad, x, parts, i);
}

// Splits [0, count) over the threads; each gets a block with its own scratch.
template <typename F>
void parallel_blocks(int64_t count, int64_t scratch_floats, const F& f) {
  constexpr int64_t kGrain = 8;  // blocks below which another thread is not worth its start
  at::parallel_for(0, count, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(scratch_floats);
    f(CpuBlock(scratch.data()), begin, end);
  });
}

at::Tensor pool(const at::Tensor& x_any, const at::Tensor& weight_any, const at::Tensor& bias,
                at::IntArrayRef cells) {
  const PoolInputs in = pool_inputs(x_any, weight_any, bias, cells);
  at::Tensor out = pool_output(in);
  if (out.numel() == 0) return out;
  VSS_DISPATCH_FLOATING(out.scalar_type(), "focal_pool", [&] {
    const auto* x = in.x.const_data_ptr<scalar_t>();
    const auto* weight = in.weight.const_data_ptr<scalar_t>();
    const auto* offset = bias.const_data_ptr<scalar_t>();
    auto* result = out.mutable_data_ptr<scalar_t>();
    parallel_blocks(in.geometry.cells(), patch_capacity(in.geometry),
                    [&](const CpuBlock& block, int64_t begin, int64_t end) {
                      run_pool_cells(block, in.geometry, x, weight, offset, result, begin, end);
                    });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pool_backward(const at::Tensor& grad_any,
                                                             const at::Tensor& x_any,
                                                             const at::Tensor& weight_any,
                                                             std::array<bool, 3> needs) {
  const PoolBackwardInputs in = pool_backward_inputs(grad_any, x_any, weight_any, needs);
  const PoolGeometry& g = in.geometry;
  VSS_DISPATCH_FLOATING(in.x.scalar_type(), "focal_pool_backward", [&] {
    const auto* grad = in.grad.const_data_ptr<scalar_t>();
    if (in.grad_x.numel() > 0) {
      const auto* weight = in.weight.const_data_ptr<scalar_t>();
      auto* result = in.grad_x.mutable_data_ptr<scalar_t>();
      parallel_blocks(g.pixels(), cell_capacity(g),
                      [&](const CpuBlock& block, int64_t begin, int64_t end) {
                        run_pool_pixels_backward(block, g, grad, weight, result, begin, end);
                      });
    }
    if (in.parts.numel() > 0) {
      const auto* x = in.x.const_data_ptr<scalar_t>();
      auto* parts = in.parts.mutable_data_ptr<float>();
      parallel_blocks(g.cells(), patch_capacity(g),
                      [&](const CpuBlock& block, int64_t begin, int64_t end) {
                        run_pool_weight_backward(block, g, grad, x, parts, begin, end);
                      });
    }
  });
  return pool_gradients(in);
}

}  // namespace
}  // namespace vss::focal

TORCH_LIBRARY_IMPL(vss_kernels, CPU, m) {
  m.impl("focal_pool", TORCH_FN(vss::focal::pool));
  m.impl("focal_pool_backward", TORCH_FN(vss::focal::pool_backward));
}
