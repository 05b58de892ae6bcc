// What a call of upsample_cross_entropy is about: sizes, layouts, labels and weights.
#pragma once

#include "labels.h"

namespace vss::inline VSS_MACHINE::upsample_cross_entropy {

// Output rows that a work item keeps in registers; the usual ratio of the sizes.
constexpr int kRows = 4;

struct LossGeometry {
  int64_t batch;
  int classes;
  Resize vertical, horizontal;
  Strides strides;  // of the logits
  Labels labels;
  const float* class_weights;  // null for all ones
  const float* weight_total;   // their sum, where it is needed
  float smoothing;
  int64_t tile;  // columns of labels that a block of the forward pass takes

  VSS_INLINE float weight(int label) const {
    return class_weights == nullptr ? 1.0f : class_weights[label];
  }
  // Those of kLanes classes.
  VSS_DEVICE Floats weights(Ints of_labels) const {
    return class_weights == nullptr ? broadcast(1.0f) : gather(class_weights, of_labels);
  }
  VSS_INLINE float total_weight() const {
    return class_weights == nullptr ? static_cast<float>(classes) : *weight_total;
  }
  VSS_INLINE float spread() const { return smoothing / classes; }
  // Offset in a contiguous (N, H, W) tensor.
  VSS_INLINE int64_t pixel(int64_t n, int64_t y, int64_t x) const {
    return (n * vertical.resized + y) * horizontal.resized + x;
  }
  // Output rows share source rows where there are more of them; else each is a group of its own.
  VSS_INLINE bool rows_share() const { return vertical.resized > vertical.size; }
  VSS_INLINE int64_t groups() const { return rows_share() ? vertical.size : vertical.resized; }
  VSS_INLINE int64_t tiles() const { return cdiv(horizontal.resized, tile); }
  VSS_INLINE int64_t blocks() const { return batch * groups() * tiles(); }
};

}  // namespace vss::inline VSS_MACHINE::upsample_cross_entropy
