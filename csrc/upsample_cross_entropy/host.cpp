// upsample_cross_entropy on every machine: checks, geometry and launches of the kernels in kernel.h
// and backward.h or, on a GPU, those for labels of four times the sides (gpu_ratio_four.h).
#include "../machine/machine.h"

#include "backward.h"
#include "gpu_ratio_four_backward.h"
#include "kernel.h"

namespace vss::inline VSS_MACHINE::upsample_cross_entropy {
namespace {

constexpr int kForwardThreads = 192;   // at most; 480 columns make three even tiles
constexpr int kBackwardThreads = 128;  // at most, and how many label columns a tile may reach
constexpr int kReduceThreads = 1024;

LabelType label_type(const at::Tensor& labels) {
  switch (labels.scalar_type()) {
    case at::kByte: return LabelType::kUInt8;
    case at::kShort: return LabelType::kInt16;
    case at::kInt: return LabelType::kInt32;
    case at::kLong: return LabelType::kInt64;
    default:
      TORCH_CHECK_TYPE(false,
                       "upsample_cross_entropy: labels must be uint8, int16, int32 or int64, got ",
                       labels.scalar_type());
  }
}

Reduction parse_reduction(std::string_view name) {
  if (name == "mean_all") return Reduction::kMeanAll;
  if (name == "mean") return Reduction::kMean;
  if (name == "sum") return Reduction::kSum;
  TORCH_CHECK_VALUE(name == "none",
                    "upsample_cross_entropy: reduction must be mean_all, mean, sum or none, got ",
                    name);
  return Reduction::kNone;
}

Strides pixel_strides(const at::Tensor& pixels) {
  return {pixels.stride(0), 0, pixels.stride(1), pixels.stride(2)};
}

// A tensor (N, H, W) itself, or a copy that the kernels for one ratio can index.
at::Tensor narrow_pixels(const at::Tensor& pixels) {
  return fits_32_bits(pixel_strides(pixels), 0, pixels.size(1), pixels.size(2))
             ? pixels
             : pixels.contiguous();
}

// The checked tensors, kept alive while a kernel reads them.
struct LossInputs {
  at::Tensor logits, labels, class_weights, weight_total;
  LossGeometry geometry;
};

LossInputs loss_inputs(const at::Tensor& logits, const at::Tensor& labels,
                       const std::optional<at::Tensor>& class_weights, int64_t ignore_index,
                       double smoothing, bool align_corners) {
  constexpr const char* kOp = "upsample_cross_entropy";
  check_dims(kOp, "labels", labels, 3);
  LossInputs in;
  in.logits = checked_logits(kOp, logits);
  in.labels = labels;
  TORCH_CHECK_VALUE(labels.device() == logits.device(), kOp, ": labels are on ", labels.device(),
                    " but logits are on ", logits.device());
  TORCH_CHECK_VALUE(labels.size(0) == logits.size(0) && labels.size(1) > 0 && labels.size(2) > 0,
                    kOp, ": labels must have shape (N, H, W) with the N of the logits, ",
                    logits.size(0), ", and at least one row and column, got ", labels.sizes());
  LossGeometry& g = in.geometry;
  g.batch = logits.size(0);
  g.classes = static_cast<int>(logits.size(1));
  g.vertical = Resize(logits.size(2), labels.size(1), align_corners);
  g.horizontal = Resize(logits.size(3), labels.size(2), align_corners);
  g.strides = strides_of(in.logits);
  g.labels = {labels.const_data_ptr(), label_type(labels), pixel_strides(labels), ignore_index,
              g.classes};
  g.smoothing = static_cast<float>(smoothing);
  g.class_weights = g.weight_total = nullptr;
  if (class_weights.has_value()) {
    check_dims(kOp, "class_weights", *class_weights, 1);
    TORCH_CHECK_VALUE(
        class_weights->size(0) == g.classes && class_weights->scalar_type() == at::kFloat &&
            class_weights->device() == logits.device(),
        kOp, ": class_weights must be ", g.classes, " float32 values on ", logits.device());
    in.class_weights = class_weights->contiguous();
    g.class_weights = in.class_weights.const_data_ptr<float>();
    if (smoothing > 0) {
      in.weight_total = in.class_weights.sum();
      g.weight_total = in.weight_total.const_data_ptr<float>();
    }
  }
  g.tile = kGpu ? tile_width(labels.size(2), kForwardThreads, 32) : labels.size(2);
  if (takes_patches(g)) {
    if (!fits_32_bits(g.strides, g.classes, g.vertical.size, g.horizontal.size)) {
      in.logits = in.logits.contiguous();
      g.strides = strides_of(in.logits);
    }
    in.labels = narrow_pixels(labels);
    g.labels.data = in.labels.const_data_ptr();
    g.labels.strides = pixel_strides(in.labels);
  }
  return in;
}

struct LossResults {
  at::Tensor loss;      // () or, without reduction, (N, H, W)
  at::Tensor log_sums;  // (N, H, W), as this machine's backward pass wants them
  at::Tensor scale;     // (): what a pixel's loss counts in the reduced one
  at::Tensor parts;     // (blocks, 2): sums of the losses and weights of each tile; or no rows

  float* losses() const { return loss.dim() == 3 ? loss.mutable_data_ptr<float>() : nullptr; }
  float* tile_sums() const { return loss.dim() == 3 ? nullptr : parts.mutable_data_ptr<float>(); }
};

// How many blocks the forward pass consists of.
int64_t forward_blocks(const LossGeometry& g) {
#if VSS_GPU_CODE
  if (takes_patches(g)) return LossPatches<float>{g}.blocks();
#endif
  return g.blocks();
}

LossResults loss_results(const LossInputs& in, Reduction reduction) {
  const at::TensorOptions options = in.logits.options().dtype(at::kFloat);
  const bool reduced = reduction != Reduction::kNone;
  LossResults results;
  results.log_sums = at::empty(in.labels.sizes(), options);
  results.loss = reduced ? at::empty({}, options) : at::empty(in.labels.sizes(), options);
  results.scale = reduced ? at::empty({}, options) : at::full({}, 1.0, options);
  results.parts = at::empty({reduced ? forward_blocks(in.geometry) : 0, 2}, options);
  return results;
}

// Sets the tiles of the backward pass: at most `limit` label columns a block, and about
// `wanted_blocks` blocks as long as their bands are not so low that the row above costs much.
void set_tiles(LossBackwardGeometry& g, int64_t limit, int64_t wanted_blocks) {
  constexpr int64_t kLowestBand = 8;
  // Fused multiply-adds in a kernel can move a tap that falls on a source position by one; reserve
  // room for one more output position on either side.
  constexpr int64_t kRounding = 2;
  const Resize& horizontal = g.loss.horizontal;
  g.fan_out = 0;
  for (int64_t x = 0; x < horizontal.size; ++x)
    g.fan_out = std::max(g.fan_out, positions_reading(horizontal, x, x).size() + kRounding);
  const auto reach_of = [&](int64_t tile) {
    int64_t reach = 0;
    for (int64_t x = 0; x < horizontal.size; x += tile)
      reach = std::max(
          reach, positions_reading(horizontal, x, std::min(x + tile, horizontal.size) - 1).size());
    return whole_lanes(reach + kRounding);
  };
  g.tile = horizontal.size;
  for (int64_t tiles = 1; g.tile > 1 && reach_of(g.tile) > limit;)
    g.tile = cdiv(horizontal.size, ++tiles);
  g.reach = reach_of(g.tile);

  const int64_t rows = g.loss.vertical.size;
  g.band = rows;
  const int64_t bands = cdiv(wanted_blocks, std::max<int64_t>(g.blocks(), 1));
  g.band = std::max(cdiv(rows, bands), std::min(kLowestBand, rows));
}

struct LossBackwardInputs {
  LossInputs loss;
  at::Tensor grad, grad_logits;
  LossBackwardGeometry geometry;
};

LossBackwardInputs loss_backward_inputs(const at::Tensor& grad, const at::Tensor& scale,
                                        const at::Tensor& log_sums, const at::Tensor& logits,
                                        const at::Tensor& labels,
                                        const std::optional<at::Tensor>& class_weights,
                                        int64_t ignore_index, double smoothing,
                                        bool align_corners) {
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
  in.loss = loss_inputs(logits, labels, class_weights, ignore_index, smoothing, align_corners);
  in.grad_logits = at::empty(logits.sizes(), logits.options());
  LossBackwardGeometry& g = in.geometry;
  g.loss = in.loss.geometry;
  in.grad = grad;
  if (grad.dim() > 0 && takes_patches(g.loss)) in.grad = narrow_pixels(grad);
  g.grad_strides = grad.dim() == 0 ? Strides{0, 0, 0, 0} : pixel_strides(in.grad);
  g.grad = in.grad.const_data_ptr<float>();
  g.scale = scale.const_data_ptr<float>();
  g.log_sums = log_sums.const_data_ptr<float>();
  return in;
}

void set_tiles(LossBackwardGeometry& g) {
  if constexpr (kGpu) {
    constexpr int64_t kBlocks = 4096;  // several waves on the largest GPUs
    set_tiles(g, kBackwardThreads, kBlocks);
  } else {
    constexpr int64_t kTileColumns = 2048;  // two sums of each class: 128 KiB
    constexpr int64_t kBlocksPerThread = 4;
    set_tiles(g, kTileColumns, kBlocksPerThread * at::get_num_threads());
  }
}

template <typename T>
void run_forward(const char* op, const LossInputs& in, const LossResults& results) {
  const LossGeometry& g = in.geometry;
  const T* logits = in.logits.const_data_ptr<T>();
  float* log_sums = results.log_sums.mutable_data_ptr<float>();
#if VSS_GPU_CODE
  if (takes_patches(g)) {
    const LossPatches<T> patches{g, logits, results.losses(), log_sums, results.tile_sums()};
    run_blocks<patches.kThreads>(
        {.op = op, .blocks = patches.blocks(), .threads = patches.kThreads}, patches);
    return;
  }
#endif
  run_blocks<kForwardThreads>(
      {.op = op, .blocks = g.blocks(), .threads = g.tile, .scratch_floats = 2 * g.tile},
      LossTile<T>{g, logits, results.losses(), log_sums, results.tile_sums()});
}

#if VSS_GPU_CODE
template <typename T, bool kUniform>
void run_patches_backward(const char* op, const LossBackwardGeometry& g, const T* logits,
                          T* grad_logits) {
  const LossPatchesBackward<T, kUniform> patches(g, logits, grad_logits);
  run_blocks<patches.kThreads>({.op = op,
                                .blocks = patches.blocks(),
                                .threads = patches.kThreads,
                                .scratch_floats = patches.kScratchFloats},
                               patches);
}
#endif

template <typename T>
void run_backward(const char* op, const LossBackwardInputs& in) {
  const LossBackwardGeometry& g = in.geometry;
  const T* logits = in.loss.logits.const_data_ptr<T>();
  T* grad_logits = in.grad_logits.mutable_data_ptr<T>();
#if VSS_GPU_CODE
  if (takes_patches(g.loss)) {
    const bool is_reduced = g.grad_strides.row == 0 && g.grad_strides.column == 0 &&
                            (g.grad_strides.batch == 0 || g.loss.batch == 1);
    if (is_reduced && g.loss.class_weights == nullptr)
      run_patches_backward<T, true>(op, g, logits, grad_logits);
    else
      run_patches_backward<T, false>(op, g, logits, grad_logits);
    return;
  }
#endif
  run_blocks<kBackwardThreads>(
      {.op = op, .blocks = g.blocks(), .threads = g.reach, .scratch_floats = g.scratch_floats()},
      LossTileBackward<T>{g, logits, grad_logits});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> cross_entropy(
    const at::Tensor& logits, const at::Tensor& labels,
    const std::optional<at::Tensor>& class_weights, int64_t ignore_index,
    std::string_view reduction_name, double smoothing, bool align_corners) {
  constexpr const char* op = "upsample_cross_entropy";
  const c10::DeviceGuard guard(logits.device());
  const Reduction reduction = parse_reduction(reduction_name);
  const LossInputs in =
      loss_inputs(logits, labels, class_weights, ignore_index, smoothing, align_corners);
  const LossGeometry& g = in.geometry;
  const LossResults results = loss_results(in, reduction);
  if (kGpu && !takes_patches(g)) {
    LossBackwardGeometry backward = {};
    backward.loss = g;
    set_tiles(backward);
    check_scratch("upsample_cross_entropy_backward", backward.scratch_floats());
  }
  VSS_DISPATCH_FLOATING(logits.scalar_type(), op, [&] { run_forward<scalar_t>(op, in, results); });
  if (reduction != Reduction::kNone) {
    run_blocks<kReduceThreads>(
        {.op = op, .blocks = 1, .threads = kReduceThreads},
        ReduceLoss{reduction, labels.numel(), results.parts.size(0), results.tile_sums(),
                   results.loss.mutable_data_ptr<float>(),
                   results.scale.mutable_data_ptr<float>()});
  }
  return {results.loss, results.log_sums, results.scale};
}

at::Tensor cross_entropy_backward(const at::Tensor& grad, const at::Tensor& scale,
                                  const at::Tensor& log_sums, const at::Tensor& logits,
                                  const at::Tensor& labels,
                                  const std::optional<at::Tensor>& class_weights,
                                  int64_t ignore_index, double smoothing, bool align_corners) {
  constexpr const char* op = "upsample_cross_entropy_backward";
  const c10::DeviceGuard guard(logits.device());
  LossBackwardInputs in = loss_backward_inputs(grad, scale, log_sums, logits, labels, class_weights,
                                               ignore_index, smoothing, align_corners);
  if (!takes_patches(in.geometry.loss)) set_tiles(in.geometry);
  VSS_DISPATCH_FLOATING(logits.scalar_type(), op, [&] { run_backward<scalar_t>(op, in); });
  return in.grad_logits;
}

}  // namespace

void implement(torch::Library& m) {
  m.impl("upsample_cross_entropy", TORCH_FN(cross_entropy));
  m.impl("upsample_cross_entropy_backward", TORCH_FN(cross_entropy_backward));
}

}  // namespace vss::inline VSS_MACHINE::upsample_cross_entropy
