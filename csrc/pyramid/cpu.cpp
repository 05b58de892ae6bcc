// The CPU launcher of fuse_pyramid.
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "../common/parallel.h"
#include "pyramid_arguments.h"

namespace vss::pyramid {
namespace {

constexpr int64_t kGrain = 4;  // see parallel_blocks

template <typename T>
VSS_CPU_BLOCK void run_columns(const CpuBlock& block, const Pyramid& p, const Sources<T>& sources,
                               T* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) fuse_columns(block, p, sources, out, i);
}

template <typename T>
VSS_CPU_BLOCK void run_channels(const CpuBlock& block, const Pyramid& p, const Sources<T>& sources,
                                T* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) fuse_channels(block, p, sources, out, i);
}

template <typename T>
VSS_CPU_BLOCK void run_backward(const CpuBlock& block, const PyramidBackward& p, const T* grad,
                                T* const* grad_levels, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) fuse_backward(block, p, grad, grad_levels, i);
}

at::Tensor fuse(at::TensorList levels) {
  PyramidInputs in = pyramid_inputs(levels);
  Pyramid& p = in.geometry;
  p.tile_channels = in.turned ? 16 : 4;
  p.tile_columns = tile_size(p.columns, in.turned ? 64 : 512, CpuBlock::kLanes);
  const at::Tensor out = fused_output(in);
  if (out.numel() == 0) return out;
  VSS_DISPATCH_FLOATING(out.scalar_type(), "fuse_pyramid", [&] {
    const Sources<scalar_t> sources = in.sources<scalar_t>();
    auto* result = out.mutable_data_ptr<scalar_t>();
    parallel_blocks(p.blocks(), kGrain, p.scratch_floats(CpuBlock::kLanes, in.turned),
                    [&](const CpuBlock& block, int64_t begin, int64_t end) {
                      if (in.turned) {
                        run_channels(block, p, sources, result, begin, end);
                      } else {
                        run_columns(block, p, sources, result, begin, end);
                      }
                    });
  });
  return out;
}

std::vector<at::Tensor> fuse_levels_backward(const at::Tensor& grad, at::IntArrayRef sizes) {
  constexpr int64_t kBandRows = 128;
  const PyramidBackwardCall call = backward_call(grad, sizes, kBandRows);
  const PyramidBackward& p = call.geometry;
  VSS_DISPATCH_FLOATING(grad.scalar_type(), "fuse_pyramid_backward", [&] {
    const auto* incoming = call.grad.const_data_ptr<scalar_t>();
    const auto results = call.results<scalar_t>();
    parallel_blocks(p.blocks(), kGrain, p.scratch_floats(),
                    [&](const CpuBlock& block, int64_t begin, int64_t end) {
                      run_backward(block, p, incoming, results.data(), begin, end);
                    });
  });
  return call.grad_levels;
}

}  // namespace
}  // namespace vss::pyramid

TORCH_LIBRARY_IMPL(vss_kernels, CPU, m) {
  m.impl("fuse_pyramid", TORCH_FN(vss::pyramid::fuse));
  m.impl("fuse_pyramid_backward", TORCH_FN(vss::pyramid::fuse_levels_backward));
}
