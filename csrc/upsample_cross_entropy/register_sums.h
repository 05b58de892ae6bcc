// The sums of the backward pass as a CPU takes them, a register of label
// columns at a time.
//
// What is the same for all classes is read once for a few rows of labels. The
// rows' sums of a class are then all that its turn keeps in registers. A
// completed row is turned around, so that the classes of a label column are
// neighbours: the sum over the columns that read a cell, which start anywhere,
// takes all its classes in one register.
#pragma once

#include "../math/exponential.h"
#include "../math/interleave.h"
#include "backward_geometry.h"

namespace vss::inline VSS_MACHINE::upsample_cross_entropy {

// What the losses of kLanes pixels in up to kRows rows say about their
// gradients: dloss/dz_k = all exp(z_k - log_sum) - own [k = label] - spread
// w_k.
struct PixelRows {
  int count = 0;
  float weight[kRows];  // of the lower source row
  Ints label[kRows];
  Floats log_sum[kRows], all[kRows], own[kRows], spread[kRows];

  // Takes in the next row, unless all of its pixels are ignored.
  VSS_INLINE void add(const LossBackwardGeometry& g, int64_t n, int64_t y, int64_t x,
                      int64_t x_end) {
    const LossGeometry& loss = g.loss;
    const Ints labels = loss.labels.read(n, y, x, x_end);
    const Ints counts = labels != Labels::kIgnored;
    if (!any_of(counts)) return;
    const int width = x_end - x < kLanes ? static_cast<int>(x_end - x) : kLanes;
    // An infinite log-sum makes every probability zero.
    log_sum[count] = counts ? load(g.log_sums + loss.pixel(n, y, x), width)
                            : broadcast(std::numeric_limits<float>::infinity());
    const Floats grad = *g.scale * incoming(g, n, y, x, width);
    Floats of_label = grad * (1.0f - loss.smoothing);
    if (loss.class_weights != nullptr) of_label *= loss.weights(labels >= 0 ? labels : Ints{});
    const Ints is_invalid = labels == Labels::kInvalid;
    of_label = is_invalid ? broadcast(std::numeric_limits<float>::quiet_NaN()) : of_label;
    own[count] = counts ? of_label : Floats{};
    all[count] = own[count];
    if (loss.smoothing > 0.0f) {
      spread[count] = counts ? grad * loss.spread() : Floats{};
      all[count] += spread[count] * loss.total_weight();
    }
    label[count] = labels;
    weight[count] = loss.vertical.tap(y).weight;
    ++count;
  }

 private:
  // The incoming gradients of kLanes pixels, `width` of which there are.
  static VSS_INLINE Floats incoming(const LossBackwardGeometry& g, int64_t n, int64_t y, int64_t x,
                                    int width) {
    const int64_t step = g.grad_strides.column;
    const float* grad = g.grad + n * g.grad_strides.batch + y * g.grad_strides.row + x * step;
    if (step == 0) return broadcast(*grad);
    if (step == 1) return load(grad, width);
    Floats grads{};
    for (int i = 0; i < width; ++i) set_lane(grads, i, grad[i * step]);
    return grads;
  }
};

// What a class's pixels give to the source rows above and below them.
struct ClassSums {
  Floats upper, lower;

  VSS_INLINE void add(const LossGeometry& loss, const PixelRows& pixels, int k, Floats above,
                      Floats below) {
    const auto add_row = [&](int r) VSS_LAMBDA {
      const float weight = pixels.weight[r], keep = 1.0f - weight;
      const Floats z = keep * above + weight * below;
      const Floats own = pixels.label[r] == k ? pixels.own[r] : Floats{};
      Floats grad = pixels.all[r] * exponential(z - pixels.log_sum[r]) - own;
      if (loss.smoothing > 0.0f) grad -= loss.weight(k) * pixels.spread[r];
      upper += keep * grad;
      lower += weight * grad;
    };
    if (pixels.count == kRows) {
      VSS_UNROLL
      for (int r = 0; r < kRows; ++r) add_row(r);
    } else {
      for (int r = 0; r < pixels.count; ++r) add_row(r);
    }
  }
};

// What the label columns of register `i`, from column `x` on, give to the
// source row above `rows`, which completes it, and to the one below. `last`:
// both are the last row.
template <typename T>
VSS_INLINE void give_rows(const LossBackwardGeometry& g, const TileScratch& scratch, const T* map,
                          int64_t n, int k, int count, const Range& rows, int64_t i, int64_t x,
                          int64_t x_end, bool last) {
  const LossGeometry& loss = g.loss;
  ClassSums sums[kBackwardClasses] = {};
  if (rows.size() > 0) {
    const WindowedColumns columns(SourceColumns(scratch.table + i * SourceColumns::kStored),
                                  loss.strides.column == 1 ? loss.horizontal.size : 0);
    const Tap vertical = loss.vertical.tap(rows.begin);  // the source rows are those of all rows
    const T* first = map + vertical.first * loss.strides.row;
    const T* second = map + vertical.second * loss.strides.row;
    for (int64_t y = rows.begin; y < rows.end;) {
      PixelRows pixels;
      for (; y < rows.end && pixels.count < kRows; ++y) pixels.add(g, n, y, x, x_end);
      if (pixels.count == 0) continue;
      for (int c = 0; c < count; ++c) {
        sums[c].add(loss, pixels, k + c, columns.read(first + (k + c) * loss.strides.channel),
                    columns.read(second + (k + c) * loss.strides.channel));
      }
    }
  }
  Floats complete[kBackwardClasses];
  VSS_UNROLL
  for (int c = 0; c < kBackwardClasses; ++c) {
    float* carry = scratch.carried + c * g.reach + i * kLanes;
    complete[c] = load(carry) + sums[c].upper + (last ? sums[c].lower : Floats{});
    store(carry, sums[c].lower);
  }
  lanes_first(complete);
  VSS_UNROLL
  for (int c = 0; c < kBackwardClasses; ++c)
    store(scratch.complete + (i * kBackwardClasses + c) * kLanes, complete[c]);
}

// Gathers a completed row into its cells; `row` is the first class's, classes
// are `step` apart.
template <typename T>
VSS_INLINE void gather_cells(const Block&, const LossBackwardGeometry& g,
                             const TileScratch& scratch, int count, int cells, T* row,
                             int64_t step) {
  typedef float Classes
      __attribute__((vector_size(kBackwardClasses * sizeof(float)), aligned(4), may_alias));
  for (int begin = 0; begin < cells; begin += kLanes) {
    const int width = cells - begin < kLanes ? cells - begin : kLanes;
    float sums[kLanes * kBackwardClasses] = {};
    for (int i = 0; i < width; ++i) {
      const float* values =
          scratch.complete + static_cast<int>(scratch.firsts[begin + i]) * kBackwardClasses;
      const float* weight = scratch.weights + (begin + i) * g.fan_out;
      const int fan = static_cast<int>(scratch.fans[begin + i]);
      Classes total = {};
      for (int j = 0; j < fan; ++j)
        total += weight[j] * reinterpret_cast<const Classes*>(values)[j];
      *reinterpret_cast<Classes*>(sums + i * kBackwardClasses) = total;
    }
    Floats totals[kBackwardClasses];
    VSS_UNROLL
    for (int c = 0; c < kBackwardClasses; ++c) totals[c] = load(sums + c * kLanes);
    registers_first(totals);
    VSS_UNROLL
    for (int c = 0; c < kBackwardClasses; ++c)
      if (c < count) store(row + c * step + begin, totals[c], width);
  }
}

}  // namespace vss::inline VSS_MACHINE::upsample_cross_entropy
