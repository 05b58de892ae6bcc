// The sums of the backward pass as a GPU takes them: a thread has one column of
// labels.
#pragma once

#include "../math/exponential.h"
#include "backward_geometry.h"

namespace vss::inline VSS_MACHINE::upsample_cross_entropy {

// What the losses of kLanes pixels say about their gradients: dloss/dz_k = all
// exp(z_k - log_sum) - own [k = label] - spread w_k.
struct PixelGradients {
  Floats log_sum, all, own, spread;
  int label[kLanes];
  bool any = false;  // whether there is a pixel that is not ignored

  VSS_DEVICE PixelGradients(const LossBackwardGeometry& g, int64_t n, int64_t y, int64_t x,
                            int64_t x_end) {
    const LossGeometry& loss = g.loss;
    // An infinite log-sum makes every probability zero.
    log_sum = broadcast(std::numeric_limits<float>::infinity());
    all = own = spread = Floats{};
    for (int i = 0; i < kLanes; ++i) {
      label[i] = Labels::kIgnored;
      if (x + i >= x_end) continue;
      label[i] = loss.labels.at(n, y, x + i);
      if (label[i] == Labels::kIgnored) continue;
      any = true;
      set_lane(log_sum, i, g.log_sums[loss.pixel(n, y, x + i)]);
      const float grad = *g.scale * g.grad[n * g.grad_strides.batch + y * g.grad_strides.row +
                                           (x + i) * g.grad_strides.column];
      const float weight = label[i] == Labels::kInvalid ? std::numeric_limits<float>::quiet_NaN()
                                                        : loss.weight(label[i]);
      const float of_label = grad * (1.0f - loss.smoothing) * weight;
      float of_all = of_label;
      if (loss.smoothing > 0.0f) {
        const float of_each = grad * loss.spread();
        of_all += of_each * loss.total_weight();
        set_lane(spread, i, of_each);
      }
      set_lane(own, i, of_label);
      set_lane(all, i, of_all);
    }
  }
};

// Sums over output rows of kLanes columns, for kBackwardClasses classes: what
// their gradients give to the source row above them and to the one below.
struct RowSums {
  Floats upper[kBackwardClasses] = {};
  Floats lower[kBackwardClasses] = {};

  template <typename T>
  VSS_DEVICE void add(const LossBackwardGeometry& g, const WindowedColumns& columns, const T* map,
                      int64_t n, int k, int count, const Range& rows, int64_t x, int64_t x_end) {
    const LossGeometry& loss = g.loss;
    const Tap vertical = loss.vertical.tap(rows.begin);  // the source rows are those of all rows
    const T* first = map + vertical.first * loss.strides.row;
    const T* second = map + vertical.second * loss.strides.row;
    Floats above[kBackwardClasses] = {}, below[kBackwardClasses] = {};
    VSS_UNROLL
    for (int c = 0; c < kBackwardClasses; ++c) {
      if (c >= count) break;
      above[c] = columns.read(first + (k + c) * loss.strides.channel);
      below[c] = columns.read(second + (k + c) * loss.strides.channel);
    }
    for (int64_t y = rows.begin; y < rows.end; ++y) {
      const PixelGradients pixels(g, n, y, x, x_end);
      if (!pixels.any) continue;
      const float weight = loss.vertical.tap(y).weight, keep = 1.0f - weight;
      VSS_UNROLL
      for (int c = 0; c < kBackwardClasses; ++c) {
        if (c >= count) break;
        const Floats z = keep * above[c] + weight * below[c];
        const Floats grad = pixels.all * exponential(z - pixels.log_sum);
        upper[c] += keep * grad;
        lower[c] += weight * grad;
      }
      for (int i = 0; i < kLanes; ++i) {
        const int target = pixels.label[i] - k;
        if (target >= 0 && target < count) subtract(i, target, keep, weight, lane(pixels.own, i));
      }
      if (loss.smoothing > 0.0f) {
        VSS_UNROLL
        for (int c = 0; c < kBackwardClasses; ++c) {
          if (c >= count) break;
          const float class_weight = loss.weight(k + c);
          upper[c] -= keep * class_weight * pixels.spread;
          lower[c] -= weight * class_weight * pixels.spread;
        }
      }
    }
  }

  VSS_DEVICE void subtract(int i, int target, float keep, float weight, float own) {
    VSS_UNROLL
    for (int c = 0; c < kBackwardClasses; ++c) {  // a known c keeps the arrays in registers
      if (c != target) continue;
      set_lane(upper[c], i, lane(upper[c], i) - keep * own);
      set_lane(lower[c], i, lane(lower[c], i) - weight * own);
    }
  }
};

// What the label columns of group `i`, from column `x` on, give to the source
// row above `rows`, which completes it, and to the one below. `last`: both are
// the last row.
template <typename T>
VSS_DEVICE void give_rows(const LossBackwardGeometry& g, const TileScratch& scratch, const T* map,
                          int64_t n, int k, int count, const Range& rows, int64_t i, int64_t x,
                          int64_t x_end, bool last) {
  RowSums sums;
  if (rows.size() > 0) {
    sums.add(g,
             WindowedColumns(SourceColumns(scratch.table + i * SourceColumns::kStored),
                             g.loss.strides.column == 1 ? g.loss.horizontal.size : 0),
             map, n, k, count, rows, x, x_end);
  }
  VSS_UNROLL
  for (int c = 0; c < kBackwardClasses; ++c) {
    float* carry = scratch.carried + c * g.reach + i * kLanes;
    store(scratch.complete + c * g.reach + i * kLanes,
          load(carry) + sums.upper[c] + (last ? sums.lower[c] : Floats{}));
    store(carry, sums.lower[c]);
  }
}

// Gathers a completed row into its cells; `row` is the first class's, classes
// are `step` apart.
template <typename T>
VSS_DEVICE void gather_cells(const Block& block, const LossBackwardGeometry& g,
                             const TileScratch& scratch, int count, int cells, T* row,
                             int64_t step) {
  block.for_each(count * cells, [&](int64_t i) VSS_LAMBDA {
    const int c = static_cast<int>(i) / cells, cell = static_cast<int>(i) % cells;
    const float* values = scratch.complete + c * g.reach + static_cast<int>(scratch.firsts[cell]);
    const float* weight = scratch.weights + cell * g.fan_out;
    const int fan = static_cast<int>(scratch.fans[cell]);
    float total = 0.0f;
    for (int j = 0; j < fan; ++j) total += weight[j] * values[j];
    row[c * step + cell] = static_cast<T>(total);
  });
}

}  // namespace vss::inline VSS_MACHINE::upsample_cross_entropy
