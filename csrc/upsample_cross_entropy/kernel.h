// upsample_cross_entropy: cross-entropy of logits at the labels' size, which exist nowhere.
//
// With z the upsampled logits of a pixel, y its label, w the class weights and e the smoothing:
//
//   loss = (1 - e) w_y (L - z_y) + e/K sum_k w_k (L - z_k),   L = log sum_k exp(z_k)
//   dloss/dz_k = a exp(z_k - L) - b [k = y] - e/K w_k,  b = (1 - e) w_y,  a = b + e/K sum_k w_k
//
// The forward pass streams over the classes with a running maximum and sum, and keeps L. The
// backward pass computes z again. It owns source cells, not pixels, and gathers: each of its blocks
// walks down the source rows of its band, sums dloss/dz over the output rows between two of them,
// once for the upper and once for the lower, and then over the columns that read each cell. Both
// sums have one order, whatever the tiling.
#pragma once

#include "../machine/machine.h"
#include "../math/logarithm.h"
#include "statistics.h"

namespace vss::inline VSS_MACHINE::upsample_cross_entropy {

// Losses of kLanes columns from `x` on in the rows of one group. Writes L, adds up losses and
// weights, and writes the losses unless `losses` is null.
template <typename T>
VSS_DEVICE void loss_columns(const LossGeometry& g, const T* map, int64_t n, const Range& rows,
                             int64_t x, int64_t x_end, float* losses, float* log_sums,
                             float* loss_sums, float* weight_sums) {
  const Tap vertical = g.vertical.tap(rows.begin);  // first and second are those of all rows
  const T* upper = map + vertical.first * g.strides.row;
  const T* lower = map + vertical.second * g.strides.row;
  const WindowedColumns columns(SourceColumns(g.horizontal, x, x_end, g.strides.column),
                                g.strides.column == 1 ? g.horizontal.size : 0);
  const int width = static_cast<int>(x_end - x < kLanes ? x_end - x : kLanes);
  for (int64_t begin = rows.begin; begin < rows.end; begin += kRows) {
    const int count = static_cast<int>(rows.end - begin < kRows ? rows.end - begin : kRows);
    float row_weights[kRows];
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r)
      row_weights[r] = g.vertical.tap(begin + (r < count ? r : 0)).weight;

    Statistics statistics;
    statistics.add_classes(g, columns, upper, lower, count, row_weights);

    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (r >= count) continue;
      const float second = row_weights[r], keep = 1.0f - second;
      const Floats high = statistics.high[r], log_total = logarithm(statistics.total[r]);
      const Floats log_sum = high + log_total;
      const Ints label = g.labels.read(n, begin + r, x, x_end);
      const auto is_class = label >= 0;
      Floats loss = {}, weight = {};
      if (any_of(is_class)) {
        const Ints known = is_class ? label : Ints{};
        const Floats above = columns.read_each(upper, known, g.strides.channel);
        const Floats below = columns.read_each(lower, known, g.strides.channel);
        weight = is_class ? g.weights(known) : Floats{};
        // Taking the logit off first keeps the small losses of sure pixels exact.
        const Floats behind = high - (keep * above + second * below);
        loss = (1.0f - g.smoothing) * weight * (behind + log_total);
        if (g.smoothing > 0.0f) {
          const Floats plain = keep * statistics.plain_upper + second * statistics.plain_lower;
          loss += g.spread() * (g.total_weight() * log_sum - plain);
        }
        // An ignored pixel counts nothing even where its logits are not finite.
        loss = is_class ? loss : Floats{};
      }
      const auto is_invalid = label == Labels::kInvalid;
      if (any_of(is_invalid)) {
        // Not to be overlooked where checking the labels would have to wait for the GPU.
        const Floats nan = broadcast(std::numeric_limits<float>::quiet_NaN());
        loss = is_invalid ? nan : loss;
        weight = is_invalid ? nan : weight;
      }
      const int64_t pixel = g.pixel(n, begin + r, x);
      store(log_sums + pixel, log_sum, width);
      if (losses != nullptr) store(losses + pixel, loss, width);
      store(loss_sums, load(loss_sums, width) + loss, width);
      store(weight_sums, load(weight_sums, width) + weight, width);
    }
  }
}

// One tile of one group of rows. `losses` (N, H, W) or `parts` (blocks, 2) is null: the sums of the
// tile's losses and weights are wanted only where the losses are not. Scratch: 2 * tile floats.
template <typename T>
struct LossTile {
  LossGeometry g;
  const T* logits;
  float *losses, *log_sums, *parts;

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const int64_t x_begin = index % g.tiles() * g.tile;
    const int64_t x_end =
        x_begin + g.tile < g.horizontal.resized ? x_begin + g.tile : g.horizontal.resized;
    const int64_t group = index / g.tiles() % g.groups();
    const int64_t n = index / (g.tiles() * g.groups());
    Range rows = {group, group + 1};
    if (g.rows_share()) {
      rows = group_rows(group, g.vertical.resized, g.vertical.reader_begin(group),
                        [&](int64_t row) VSS_LAMBDA { return g.vertical.tap(row).first; });
    }
    const int64_t width = x_end - x_begin;

    float* loss_sums = block.scratch();
    float* weight_sums = loss_sums + width;
    block.for_each(2 * width, [&](int64_t i) VSS_LAMBDA { loss_sums[i] = 0.0f; });
    block.sync();
    if (rows.size() > 0) {
      block.for_each(cdiv<int64_t>(width, kLanes), [&](int64_t i) VSS_LAMBDA {
        loss_columns(g, logits + n * g.strides.batch, n, rows, x_begin + i * kLanes, x_end, losses,
                     log_sums, loss_sums + i * kLanes, weight_sums + i * kLanes);
      });
    }
    block.sync();
    if (parts != nullptr) {
      const float loss = block.sum(width, [&](int64_t i) VSS_LAMBDA { return loss_sums[i]; });
      const float weight = block.sum(width, [&](int64_t i) VSS_LAMBDA { return weight_sums[i]; });
      block.for_each(1, [&](int64_t) {
        parts[2 * index] = loss;
        parts[2 * index + 1] = weight;
      });
    }
    block.sync();  // the scratch may be overwritten by the next tile
  }
};

enum class Reduction : int { kMeanAll, kMean, kSum, kNone };

// Adds up the tiles' parts, as one block. `scale` is what a pixel's loss counts in the result.
struct ReduceLoss {
  Reduction reduction;
  int64_t pixels, count;
  const float* parts;
  float *result, *scale;

  VSS_DEVICE void operator()(const Block& block, int64_t) const {
    const float loss = block.sum(count, [&](int64_t i) VSS_LAMBDA { return parts[2 * i]; });
    const float weight = block.sum(count, [&](int64_t i) VSS_LAMBDA { return parts[2 * i + 1]; });
    float divisor = 1.0f;
    if (reduction == Reduction::kMeanAll) divisor = static_cast<float>(pixels > 0 ? pixels : 1);
    if (reduction == Reduction::kMean) divisor = weight;
    block.for_each(1, [&](int64_t) {
      *result = loss / divisor;
      *scale = 1.0f / divisor;
    });
  }
};

}  // namespace vss::inline VSS_MACHINE::upsample_cross_entropy
