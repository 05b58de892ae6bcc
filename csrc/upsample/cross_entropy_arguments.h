// What the CPU and the CUDA launcher of upsample_cross_entropy share: checks, geometry, results.
#pragma once

#include <ATen/ops/full.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <tuple>

#include "arguments.h"
#include "cross_entropy_backward.h"

namespace vss::upsample {

inline LabelType label_type(const at::Tensor& labels) {
  switch (labels.scalar_type()) {
    case at::kByte:
      return LabelType::kUInt8;
    case at::kShort:
      return LabelType::kInt16;
    case at::kInt:
      return LabelType::kInt32;
    case at::kLong:
      return LabelType::kInt64;
    default:
      TORCH_CHECK_TYPE(false,
                       "upsample_cross_entropy: labels must be uint8, int16, int32 or int64, got ",
                       labels.scalar_type());
  }
}

inline Reduction parse_reduction(std::string_view name) {
  if (name == "mean_all") return Reduction::kMeanAll;
  if (name == "mean") return Reduction::kMean;
  if (name == "sum") return Reduction::kSum;
  TORCH_CHECK_VALUE(name == "none",
                    "upsample_cross_entropy: reduction must be mean_all, mean, sum or none, got ",
                    name);
  return Reduction::kNone;
}

// The checked tensors, kept alive while a kernel reads them.
struct LossInputs {
  at::Tensor logits, labels, class_weights, weight_total;
  LossGeometry geometry;
};

inline LossInputs loss_inputs(const at::Tensor& logits, const at::Tensor& labels,
                              const std::optional<at::Tensor>& class_weights, int64_t ignore_index,
                              double smoothing) {
  constexpr const char* kOp = "upsample_cross_entropy";
  check_dims(kOp, "labels", labels, 3);
  LossInputs in;
  in.logits = checked_logits(kOp, logits);
  in.labels = labels;
  TORCH_CHECK_VALUE(labels.device() == logits.device(), kOp, ": labels are on ", labels.device(),
                    " but logits are on ", logits.device());
  TORCH_CHECK_VALUE(
      labels.size(0) == logits.size(0) && labels.size(1) > 0 && labels.size(2) > 0, kOp,
      ": labels must have shape (N, H, W) with the N of the logits, ", logits.size(0),
      ", and at least one row and column, got ", labels.sizes());
  LossGeometry& g = in.geometry;
  g.batch = logits.size(0);
  g.classes = static_cast<int>(logits.size(1));
  g.vertical = Resize(logits.size(2), labels.size(1));
  g.horizontal = Resize(logits.size(3), labels.size(2));
  g.strides = map_strides(in.logits);
  g.labels = {labels.const_data_ptr(), label_type(labels), pixel_strides(labels), ignore_index,
              g.classes};
  g.smoothing = static_cast<float>(smoothing);
  g.class_weights = g.weight_total = nullptr;
  if (class_weights.has_value()) {
    check_dims(kOp, "class_weights", *class_weights, 1);
    TORCH_CHECK_VALUE(class_weights->size(0) == g.classes &&
                          class_weights->scalar_type() == at::kFloat &&
                          class_weights->device() == logits.device(),
                      kOp, ": class_weights must be ", g.classes, " float32 values on ",
                      logits.device());
    in.class_weights = class_weights->contiguous();
    g.class_weights = in.class_weights.const_data_ptr<float>();
    if (smoothing > 0) {
      in.weight_total = in.class_weights.sum();
      g.weight_total = in.weight_total.const_data_ptr<float>();
    }
  }
  g.tile = labels.size(2);
  return in;
}

struct LossResults {
  at::Tensor loss;      // () or, without reduction, (N, H, W)
  at::Tensor log_sums;  // (N, H, W)
  at::Tensor scale;     // (): what a pixel's loss counts in the reduced one
  at::Tensor parts;     // (blocks, 2): sums of the losses and weights of each tile; or no rows

  std::tuple<at::Tensor, at::Tensor, at::Tensor> outputs() const { return {loss, log_sums, scale}; }
  float* losses() const {
    return loss.dim() == 3 ? loss.mutable_data_ptr<float>() : nullptr;
  }
  float* tile_sums() const {
    return loss.dim() == 3 ? nullptr : parts.mutable_data_ptr<float>();
  }
};

inline LossResults loss_results(const LossInputs& in, Reduction reduction) {
  const at::TensorOptions options = in.logits.options().dtype(at::kFloat);
  const bool reduced = reduction != Reduction::kNone;
  LossResults results;
  results.log_sums = at::empty(in.labels.sizes(), options);
  results.loss = reduced ? at::empty({}, options) : at::empty(in.labels.sizes(), options);
  results.scale = reduced ? at::empty({}, options) : at::full({}, 1.0, options);
  results.parts = at::empty({reduced ? in.geometry.blocks() : 0, 2}, options);
  return results;
}

// Sets the tiles of the backward pass: at most `limit` label columns a block, and about
// `wanted_blocks` blocks as long as their bands are not so low that the row above costs much.
inline void set_tiles(LossBackwardGeometry& g, int64_t limit, int64_t lanes,
                      int64_t wanted_blocks) {
  constexpr int64_t kLowestBand = 8;
  // A kernel may fuse multiplications and additions where this function does not. A source position
  // that an output position falls on exactly may then gain a reader on either side.
  constexpr int64_t kRounding = 2;
  const Resize& horizontal = g.loss.horizontal;
  g.fan_out = 0;
  for (int64_t x = 0; x < horizontal.size; ++x)
    g.fan_out = std::max(g.fan_out, readers(horizontal, x, x).size() + kRounding);
  const auto reach_of = [&](int64_t tile) {
    int64_t reach = 0;
    for (int64_t x = 0; x < horizontal.size; x += tile)
      reach = std::max(reach,
                       readers(horizontal, x, std::min(x + tile, horizontal.size) - 1).size());
    return ceil_div(reach + kRounding, lanes) * lanes;
  };
  g.tile = horizontal.size;
  for (int64_t tiles = 1; g.tile > 1 && reach_of(g.tile) > limit;)
    g.tile = ceil_div(horizontal.size, ++tiles);
  g.reach = reach_of(g.tile);

  const int64_t rows = g.loss.vertical.size;
  g.band = rows;
  const int64_t bands = ceil_div(wanted_blocks, std::max<int64_t>(g.blocks(), 1));
  g.band = std::max(ceil_div(rows, bands), std::min(kLowestBand, rows));
}

struct LossBackwardInputs {
  LossInputs loss;
  at::Tensor grad_logits;
  LossBackwardGeometry geometry;
};

inline LossBackwardInputs loss_backward_inputs(const at::Tensor& grad, const at::Tensor& scale,
                                               const at::Tensor& log_sums,
                                               const at::Tensor& logits, const at::Tensor& labels,
                                               const std::optional<at::Tensor>& class_weights,
                                               int64_t ignore_index, double smoothing) {
  constexpr const char* kOp = "upsample_cross_entropy_backward";
  check_like(kOp, "grad", grad, "log_sums", log_sums);
  check_like(kOp, "scale", scale, "log_sums", log_sums);
  TORCH_CHECK_TYPE(log_sums.scalar_type() == at::kFloat, kOp, ": log_sums must be float32, got ",
                   log_sums.scalar_type());
  TORCH_CHECK_VALUE(log_sums.sizes() == labels.sizes() && log_sums.is_contiguous() &&
                        log_sums.device() == logits.device(),
                    kOp, ": log_sums must be those of the labels");
  check_dims(kOp, "scale", scale, 0);
  TORCH_CHECK_VALUE(grad.dim() == 0 || grad.sizes() == labels.sizes(), kOp,
                    ": grad must be a scalar or match the labels, got ", grad.sizes());
  LossBackwardInputs in;
  in.loss = loss_inputs(logits, labels, class_weights, ignore_index, smoothing);
  in.grad_logits = at::empty(logits.sizes(), logits.options());
  LossBackwardGeometry& g = in.geometry;
  g.loss = in.loss.geometry;
  g.grad_strides = grad.dim() == 0 ? Strides{0, 0, 0, 0} : pixel_strides(grad);
  g.grad = grad.const_data_ptr<float>();
  g.scale = scale.const_data_ptr<float>();
  g.log_sums = log_sums.const_data_ptr<float>();
  return in;
}

}  // namespace vss::upsample
