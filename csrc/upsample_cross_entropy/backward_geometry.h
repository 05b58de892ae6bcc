// How the backward pass of upsample_cross_entropy is divided.
#pragma once

#include "geometry.h"

namespace vss::inline VSS_MACHINE::upsample_cross_entropy {

// Classes that a work item handles together: they share one read of the labels.
constexpr int kBackwardClasses = 8;

// The output positions that read any of the source positions [first, last].
VSS_INLINE Range positions_reading(const Resize& resize, int64_t first, int64_t last) {
  int64_t begin = resize.reader_begin(first);
  int64_t end = resize.reader_end(last);
  while (begin < end && resize.tap(begin).second < first) ++begin;
  while (begin < end && resize.tap(end - 1).first > last) --end;
  return {begin, end};
}

struct LossBackwardGeometry {
  LossGeometry loss;
  Strides grad_strides;  // of the gradient of the losses, all zero where they
                         // were reduced
  const float *grad, *scale, *log_sums;
  int64_t tile, band;  // columns and rows of logits that a block owns
  int64_t reach;       // most label columns that read a tile, in whole lanes
  int64_t fan_out;     // most label columns that read one column of logits

  VSS_INLINE int64_t class_groups() const { return cdiv<int64_t>(loss.classes, kBackwardClasses); }
  VSS_INLINE int64_t tiles() const { return cdiv(loss.horizontal.size, tile); }
  VSS_INLINE int64_t bands() const { return cdiv(loss.vertical.size, band); }
  VSS_INLINE int64_t blocks() const { return loss.batch * class_groups() * bands() * tiles(); }
  // Floats of scratch: for each label column two sums a class and its source
  // positions; for each column of logits the weights of the label columns that
  // read it, and which they are.
  VSS_INLINE int64_t scratch_floats() const {
    return (2 * kBackwardClasses + 3) * reach + (fan_out + 2) * tile;
  }
};

// A block's scratch.
struct TileScratch {
  float* complete;  // [kBackwardClasses, reach] or, on a CPU, [reach,
                    // kBackwardClasses]
  float* carried;   // [kBackwardClasses, reach]
  float* table;     // the source positions of the label columns
  float* weights;   // [cells, fan_out]
  float* firsts;    // [cells]: first label column, from the tile's first one on
  float* fans;      // [cells]: how many label columns

  VSS_DEVICE TileScratch(const LossBackwardGeometry& g, float* scratch)
      : complete(scratch),
        carried(complete + kBackwardClasses * g.reach),
        table(carried + kBackwardClasses * g.reach),
        weights(table + 3 * g.reach),
        firsts(weights + g.fan_out * g.tile),
        fans(firsts + g.tile) {}
};

}  // namespace vss::inline VSS_MACHINE::upsample_cross_entropy
