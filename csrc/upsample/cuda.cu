// The CUDA launchers of the upsampling operators: one thread block per tile, one thread per column.
#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "argmax_arguments.h"
#include "cross_entropy_arguments.h"

namespace vss::upsample {
namespace {

constexpr int kForwardThreads = 192;   // at most; 480 columns make three even tiles
constexpr int kBackwardThreads = 128;  // at most, and how many label columns a tile may reach
constexpr int kReduceThreads = 1024;
constexpr int64_t kBackwardBlocks = 4096;  // several waves on the largest GPUs

// One block per index in [0, count). Indices beyond the largest grid are taken in strides.
template <int kThreads, typename F>
__global__ void __launch_bounds__(kThreads) for_each_block(int64_t count, const F f) {
  extern __shared__ float shared[];
  const CudaBlock block(shared);
  for (int64_t i = blockIdx.x; i < count; i += gridDim.x) f(block, i);
}

template <typename T>
struct LossTile {
  LossGeometry g;
  const T* logits;
  float *losses, *log_sums, *parts;
  __device__ void operator()(const CudaBlock& block, int64_t i) const {
    loss_tile(block, g, logits, losses, log_sums, parts, i);
  }
};

struct ReduceLoss {
  Reduction reduction;
  int64_t pixels, count;
  const float* parts;
  float *result, *scale;
  __device__ void operator()(const CudaBlock& block, int64_t) const {
    reduce_loss(block, reduction, pixels, parts, count, result, scale);
  }
};

template <typename T>
struct LossTileBackward {
  LossBackwardGeometry g;
  const T* logits;
  T* grad_logits;
  __device__ void operator()(const CudaBlock& block, int64_t i) const {
    loss_tile_backward(block, g, logits, grad_logits, i);
  }
};

template <bool kConfidence, typename T>
struct ArgmaxTile {
  ArgmaxGeometry g;
  const T* logits;
  ArgmaxResult result;
  __device__ void operator()(const CudaBlock& block, int64_t i) const {
    argmax_tile<kConfidence>(block, g, logits, result, i);
  }
};

template <int kThreads, typename F>
void launch(int64_t count, int64_t threads, int64_t scratch_floats, const F& f) {
  if (count == 0) return;
  constexpr int64_t kDefaultSharedBytes = 48 * 1024;
  const int64_t bytes = (CudaBlock::kReserved + scratch_floats) * sizeof(float);
  // A scale of several hundred times; a kernel that needs more has to be allowed it.
  if (bytes > kDefaultSharedBytes) {
    C10_CUDA_CHECK(cudaFuncSetAttribute(for_each_block<kThreads, F>,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(bytes)));
  }
  const int64_t warps = ceil_div<int64_t>(threads, CudaBlock::kWarp);
  const int block = static_cast<int>(std::min<int64_t>(warps * CudaBlock::kWarp, kThreads));
  const int64_t grid = std::min<int64_t>(count, (int64_t{1} << 31) - 1);
  for_each_block<kThreads><<<grid, block, bytes, c10::cuda::getCurrentCUDAStream()>>>(count, f);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> cross_entropy(
    const at::Tensor& logits, const at::Tensor& labels,
    const std::optional<at::Tensor>& class_weights, int64_t ignore_index,
    std::string_view reduction_name, double smoothing) {
  const c10::cuda::CUDAGuard guard(logits.device());
  const Reduction reduction = parse_reduction(reduction_name);
  LossInputs in = loss_inputs(logits, labels, class_weights, ignore_index, smoothing);
  LossGeometry& g = in.geometry;
  g.tile = tile_width(g.horizontal.resized, kForwardThreads, CudaBlock::kWarp);
  const LossResults results = loss_results(in, reduction);
  VSS_DISPATCH_FLOATING(logits.scalar_type(), "upsample_cross_entropy", [&] {
    launch<kForwardThreads>(
        g.blocks(), g.tile, 2 * g.tile,
        LossTile<scalar_t>{g, in.logits.const_data_ptr<scalar_t>(), results.losses(),
                           results.log_sums.mutable_data_ptr<float>(), results.tile_sums()});
  });
  if (reduction != Reduction::kNone) {
    launch<kReduceThreads>(1, kReduceThreads, 0,
                           ReduceLoss{reduction, labels.numel(), g.blocks(), results.tile_sums(),
                                      results.loss.mutable_data_ptr<float>(),
                                      results.scale.mutable_data_ptr<float>()});
  }
  return results.outputs();
}

at::Tensor cross_entropy_backward(const at::Tensor& grad, const at::Tensor& scale,
                                  const at::Tensor& log_sums, const at::Tensor& logits,
                                  const at::Tensor& labels,
                                  const std::optional<at::Tensor>& class_weights,
                                  int64_t ignore_index, double smoothing) {
  const c10::cuda::CUDAGuard guard(logits.device());
  LossBackwardInputs in = loss_backward_inputs(grad, scale, log_sums, logits, labels,
                                               class_weights, ignore_index, smoothing);
  LossBackwardGeometry& g = in.geometry;
  set_tiles(g, kBackwardThreads, CudaBlock::kLanes, kBackwardBlocks);
  VSS_DISPATCH_FLOATING(logits.scalar_type(), "upsample_cross_entropy_backward", [&] {
    launch<kBackwardThreads>(
        g.blocks(), g.reach, g.scratch_floats(),
        LossTileBackward<scalar_t>{g, in.loss.logits.const_data_ptr<scalar_t>(),
                                   in.grad_logits.mutable_data_ptr<scalar_t>()});
  });
  return in.grad_logits;
}

std::tuple<at::Tensor, at::Tensor> argmax(const at::Tensor& logits, at::IntArrayRef size,
                                          at::IntArrayRef through, bool confidence) {
  const c10::cuda::CUDAGuard guard(logits.device());
  ArgmaxCall call = argmax_call(logits, size, through, confidence);
  ArgmaxGeometry& g = call.geometry;
  g.tile = tile_width(size[1], kForwardThreads, CudaBlock::kWarp);
  VSS_DISPATCH_FLOATING(logits.scalar_type(), "upsample_argmax", [&] {
    const auto* map = call.logits.const_data_ptr<scalar_t>();
    if (confidence) {
      launch<kForwardThreads>(g.blocks(), g.tile, 0,
                              ArgmaxTile<true, scalar_t>{g, map, call.result});
    } else {
      launch<kForwardThreads>(g.blocks(), g.tile, 0,
                              ArgmaxTile<false, scalar_t>{g, map, call.result});
    }
  });
  return {call.classes, call.confidence};
}

}  // namespace
}  // namespace vss::upsample

TORCH_LIBRARY_IMPL(vss_kernels, CUDA, m) {
  m.impl("upsample_cross_entropy", TORCH_FN(vss::upsample::cross_entropy));
  m.impl("upsample_cross_entropy_backward", TORCH_FN(vss::upsample::cross_entropy_backward));
  m.impl("upsample_argmax", TORCH_FN(vss::upsample::argmax));
}
