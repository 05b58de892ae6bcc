// The CUDA launchers of the upsampling operators: one thread block per tile, one thread per column.
#include <ATen/Dispatch.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "../common/launch.h"
#include "argmax_arguments.h"
#include "cross_entropy_arguments.h"

namespace vss::upsample {
namespace {

constexpr int kForwardThreads = 192;   // at most; 480 columns make three even tiles
constexpr int kBackwardThreads = 128;  // at most, and how many label columns a tile may reach
constexpr int kReduceThreads = 1024;
constexpr int64_t kBackwardBlocks = 4096;  // several waves on the largest GPUs

template <typename T>
struct LossTile {
  LossGeometry g;
  const T* logits;
  float *losses, *log_sums, *parts;
  VSS_DEVICE void operator()(const GpuBlock& block, int64_t i) const {
    loss_tile(block, g, logits, losses, log_sums, parts, i);
  }
};

struct ReduceLoss {
  Reduction reduction;
  int64_t pixels, count;
  const float* parts;
  float *result, *scale;
  VSS_DEVICE void operator()(const GpuBlock& block, int64_t) const {
    reduce_loss(block, reduction, pixels, parts, count, result, scale);
  }
};

template <typename T>
struct LossTileBackward {
  LossBackwardGeometry g;
  const T* logits;
  T* grad_logits;
  VSS_DEVICE void operator()(const GpuBlock& block, int64_t i) const {
    loss_tile_backward(block, g, logits, grad_logits, i);
  }
};

template <bool kConfidence, typename T>
struct ArgmaxTile {
  ArgmaxGeometry g;
  const T* logits;
  ArgmaxResult result;
  VSS_DEVICE void operator()(const GpuBlock& block, int64_t i) const {
    argmax_tile<kConfidence>(block, g, logits, result, i);
  }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> cross_entropy(
    const at::Tensor& logits, const at::Tensor& labels,
    const std::optional<at::Tensor>& class_weights, int64_t ignore_index,
    std::string_view reduction_name, double smoothing) {
  const c10::DeviceGuard guard(logits.device());
  const Reduction reduction = parse_reduction(reduction_name);
  LossInputs in = loss_inputs(logits, labels, class_weights, ignore_index, smoothing);
  LossGeometry& g = in.geometry;
  g.tile = tile_width(g.horizontal.resized, kForwardThreads, GpuBlock::kWarp);
  const LossResults results = loss_results(in, reduction);
  VSS_DISPATCH_FLOATING(logits.scalar_type(), "upsample_cross_entropy", [&] {
    launch_each<kForwardThreads>(
        "upsample_cross_entropy", g.blocks(), g.tile, 2 * g.tile,
        LossTile<scalar_t>{g, in.logits.const_data_ptr<scalar_t>(), results.losses(),
                           results.log_sums.mutable_data_ptr<float>(), results.tile_sums()});
  });
  if (reduction != Reduction::kNone) {
    launch_each<kReduceThreads>(
        "upsample_cross_entropy", 1, kReduceThreads, 0,
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
  const c10::DeviceGuard guard(logits.device());
  LossBackwardInputs in = loss_backward_inputs(grad, scale, log_sums, logits, labels,
                                               class_weights, ignore_index, smoothing);
  LossBackwardGeometry& g = in.geometry;
  set_tiles(g, kBackwardThreads, GpuBlock::kLanes, kBackwardBlocks);
  VSS_DISPATCH_FLOATING(logits.scalar_type(), "upsample_cross_entropy_backward", [&] {
    launch_each<kBackwardThreads>(
        "upsample_cross_entropy_backward", g.blocks(), g.reach, g.scratch_floats(),
        LossTileBackward<scalar_t>{g, in.loss.logits.const_data_ptr<scalar_t>(),
                                   in.grad_logits.mutable_data_ptr<scalar_t>()});
  });
  return in.grad_logits;
}

std::tuple<at::Tensor, at::Tensor> argmax(const at::Tensor& logits, at::IntArrayRef size,
                                          at::IntArrayRef through, bool confidence) {
  const c10::DeviceGuard guard(logits.device());
  ArgmaxCall call = argmax_call(logits, size, through, confidence);
  ArgmaxGeometry& g = call.geometry;
  g.tile = tile_width(size[1], kForwardThreads, GpuBlock::kWarp);
  VSS_DISPATCH_FLOATING(logits.scalar_type(), "upsample_argmax", [&] {
    const auto* map = call.logits.const_data_ptr<scalar_t>();
    if (confidence) {
      launch_each<kForwardThreads>("upsample_argmax", g.blocks(), g.tile, 0,
                                   ArgmaxTile<true, scalar_t>{g, map, call.result});
    } else {
      launch_each<kForwardThreads>("upsample_argmax", g.blocks(), g.tile, 0,
                                   ArgmaxTile<false, scalar_t>{g, map, call.result});
    }
  });
  return {call.classes, call.confidence};
}

}  // namespace
}  // namespace vss::upsample

TORCH_LIBRARY_IMPL(vss_kernels, VSS_GPU_KEY, m) {
  m.impl("upsample_cross_entropy", TORCH_FN(vss::upsample::cross_entropy));
  m.impl("upsample_cross_entropy_backward", TORCH_FN(vss::upsample::cross_entropy_backward));
  m.impl("upsample_argmax", TORCH_FN(vss::upsample::argmax));
}
