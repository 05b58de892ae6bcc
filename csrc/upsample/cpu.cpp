// The CPU launchers of the upsampling operators.
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "../common/parallel.h"
#include "argmax_arguments.h"
#include "cross_entropy_arguments.h"

namespace vss::upsample {
namespace {

template <typename T>
VSS_CPU_BLOCK void run_loss_tiles(const CpuBlock& block, const LossGeometry& g, const T* logits,
                                  float* losses, float* log_sums, float* parts, int64_t begin,
                                  int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    loss_tile(block, g, logits, losses, log_sums, parts, i);
}

template <typename T>
VSS_CPU_BLOCK void run_loss_tiles_backward(const CpuBlock& block, const LossBackwardGeometry& g,
                                           const T* logits, T* grad_logits, int64_t begin,
                                           int64_t end) {
  for (int64_t i = begin; i < end; ++i) loss_tile_backward(block, g, logits, grad_logits, i);
}

template <bool kConfidence, typename T>
VSS_CPU_BLOCK void run_argmax_tiles(const CpuBlock& block, const ArgmaxGeometry& g,
                                    const T* logits, const ArgmaxResult& result, int64_t begin,
                                    int64_t end) {
  for (int64_t i = begin; i < end; ++i) argmax_tile<kConfidence>(block, g, logits, result, i);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> cross_entropy(
    const at::Tensor& logits, const at::Tensor& labels,
    const std::optional<at::Tensor>& class_weights, int64_t ignore_index,
    std::string_view reduction_name, double smoothing) {
  const Reduction reduction = parse_reduction(reduction_name);
  const LossInputs in = loss_inputs(logits, labels, class_weights, ignore_index, smoothing);
  const LossResults results = loss_results(in, reduction);
  const LossGeometry& g = in.geometry;
  VSS_DISPATCH_FLOATING(logits.scalar_type(), "upsample_cross_entropy", [&] {
    const auto* map = in.logits.const_data_ptr<scalar_t>();
    float* losses = results.losses();
    float* log_sums = results.log_sums.mutable_data_ptr<float>();
    float* parts = results.tile_sums();
    parallel_blocks(g.blocks(), 1, 2 * g.tile,
                    [&](const CpuBlock& block, int64_t begin, int64_t end) {
                      run_loss_tiles(block, g, map, losses, log_sums, parts, begin, end);
                    });
  });
  if (reduction != Reduction::kNone) {
    reduce_loss(CpuBlock(nullptr), reduction, labels.numel(), results.tile_sums(), g.blocks(),
                results.loss.mutable_data_ptr<float>(), results.scale.mutable_data_ptr<float>());
  }
  return results.outputs();
}

at::Tensor cross_entropy_backward(const at::Tensor& grad, const at::Tensor& scale,
                                  const at::Tensor& log_sums, const at::Tensor& logits,
                                  const at::Tensor& labels,
                                  const std::optional<at::Tensor>& class_weights,
                                  int64_t ignore_index, double smoothing) {
  LossBackwardInputs in = loss_backward_inputs(grad, scale, log_sums, logits, labels,
                                               class_weights, ignore_index, smoothing);
  constexpr int64_t kTileColumns = 2048;  // two sums of each class: 128 KiB
  constexpr int64_t kBlocksPerThread = 4;
  LossBackwardGeometry& g = in.geometry;
  set_tiles(g, kTileColumns, CpuBlock::kLanes, kBlocksPerThread * at::get_num_threads());
  VSS_DISPATCH_FLOATING(logits.scalar_type(), "upsample_cross_entropy_backward", [&] {
    const auto* map = in.loss.logits.const_data_ptr<scalar_t>();
    auto* result = in.grad_logits.mutable_data_ptr<scalar_t>();
    parallel_blocks(g.blocks(), 1, g.scratch_floats(),
                    [&](const CpuBlock& block, int64_t begin, int64_t end) {
                      run_loss_tiles_backward(block, g, map, result, begin, end);
                    });
  });
  return in.grad_logits;
}

std::tuple<at::Tensor, at::Tensor> argmax(const at::Tensor& logits, at::IntArrayRef size,
                                          at::IntArrayRef through, bool confidence) {
  const ArgmaxCall call = argmax_call(logits, size, through, confidence);
  const ArgmaxGeometry& g = call.geometry;
  VSS_DISPATCH_FLOATING(logits.scalar_type(), "upsample_argmax", [&] {
    const auto* map = call.logits.const_data_ptr<scalar_t>();
    parallel_blocks(g.blocks(), 1, 0, [&](const CpuBlock& block, int64_t begin, int64_t end) {
      if (confidence) {
        run_argmax_tiles<true>(block, g, map, call.result, begin, end);
      } else {
        run_argmax_tiles<false>(block, g, map, call.result, begin, end);
      }
    });
  });
  return {call.classes, call.confidence};
}

}  // namespace
}  // namespace vss::upsample

TORCH_LIBRARY_IMPL(vss_kernels, CPU, m) {
  m.impl("upsample_cross_entropy", TORCH_FN(vss::upsample::cross_entropy));
  m.impl("upsample_cross_entropy_backward", TORCH_FN(vss::upsample::cross_entropy_backward));
  m.impl("upsample_argmax", TORCH_FN(vss::upsample::argmax));
}
