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

#include <cmath>
#include <limits>

#include "maps.h"

namespace vss::upsample {

// Classes that a work item handles together: they share one rescaling of the running sum.
constexpr int kForwardClasses = 4;

enum class LabelType : int { kUInt8, kInt16, kInt32, kInt64 };

struct Labels {
  static constexpr int kIgnored = -1;
  static constexpr int kInvalid = -2;

  const void* data;
  LabelType type;
  Strides strides;
  int64_t ignore_index;
  int classes;

  VSS_HOST_DEVICE int64_t value(int64_t offset) const {
    switch (type) {
      case LabelType::kUInt8:
        return static_cast<const uint8_t*>(data)[offset];
      case LabelType::kInt16:
        return static_cast<const int16_t*>(data)[offset];
      case LabelType::kInt32:
        return static_cast<const int32_t*>(data)[offset];
      default:
        return static_cast<const int64_t*>(data)[offset];
    }
  }

  // A class, kIgnored, or kInvalid for a value that is no class.
  VSS_HOST_DEVICE int at(int64_t n, int64_t y, int64_t x) const {
    const int64_t label = value(n * strides.batch + y * strides.row + x * strides.column);
    if (label == ignore_index) return kIgnored;
    return label >= 0 && label < classes ? static_cast<int>(label) : kInvalid;
  }
};

struct LossGeometry {
  int64_t batch;
  int classes;
  Resize vertical, horizontal;
  Strides strides;  // of the logits
  Labels labels;
  const float* class_weights;  // null for all ones
  const float* weight_total;   // their sum, where it is needed
  float smoothing;
  int64_t tile;                // columns of labels that a block of the forward pass takes

  VSS_HOST_DEVICE float weight(int label) const {
    return class_weights == nullptr ? 1.0f : class_weights[label];
  }
  VSS_HOST_DEVICE float total_weight() const {
    return class_weights == nullptr ? static_cast<float>(classes) : *weight_total;
  }
  VSS_HOST_DEVICE float spread() const { return smoothing / classes; }
  // Offset in a contiguous (N, H, W) tensor.
  VSS_HOST_DEVICE int64_t pixel(int64_t n, int64_t y, int64_t x) const {
    return (n * vertical.resized + y) * horizontal.resized + x;
  }
  // Output rows share source rows where there are more of them; else each is a group of its own.
  VSS_HOST_DEVICE bool rows_share() const { return vertical.resized > vertical.size; }
  VSS_HOST_DEVICE int64_t groups() const {
    return rows_share() ? vertical.size : vertical.resized;
  }
  VSS_HOST_DEVICE int64_t tiles() const { return ceil_div(horizontal.resized, tile); }
  VSS_HOST_DEVICE int64_t blocks() const { return batch * groups() * tiles(); }
};

// Running softmax statistics of kRows rows of kLanes columns.
template <int kLanes>
struct Statistics {
  float high[kRows][kLanes], total[kRows][kLanes];
  // Weighted sums of all logits in the two source rows, for label smoothing.
  float plain_upper[kLanes], plain_lower[kLanes];

  VSS_HOST_DEVICE Statistics() {
    for (int lane = 0; lane < kLanes; ++lane) {
      plain_upper[lane] = plain_lower[lane] = 0.0f;
      VSS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        high[r][lane] = std::numeric_limits<float>::lowest();
        total[r][lane] = 0.0f;
      }
    }
  }

  // Takes in kClasses classes from `k` on; `upper` and `lower` point at class k's two source rows.
  template <int kClasses, typename T>
  VSS_HOST_DEVICE void add(const LossGeometry& g, const Columns<kLanes>& columns, const T* upper,
                           const T* lower, int k, int rows, const float (&shares)[kRows]) {
    float above[kClasses][kLanes], below[kClasses][kLanes];
    VSS_UNROLL
    for (int c = 0; c < kClasses; ++c) {
      columns.read(upper + c * g.strides.channel, above[c]);
      columns.read(lower + c * g.strides.channel, below[c]);
    }
    if (g.smoothing > 0.0f) {
      VSS_UNROLL
      for (int c = 0; c < kClasses; ++c) {
        const float weight = g.weight(k + c);
        for (int lane = 0; lane < kLanes; ++lane) {
          plain_upper[lane] += weight * above[c][lane];
          plain_lower[lane] += weight * below[c][lane];
        }
      }
    }
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) continue;
      const float share = shares[r], keep = 1.0f - share;
      float z[kClasses][kLanes], highest[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) highest[lane] = high[r][lane];
      VSS_UNROLL
      for (int c = 0; c < kClasses; ++c) {
        VSS_SIMD
        for (int lane = 0; lane < kLanes; ++lane) {
          z[c][lane] = keep * above[c][lane] + share * below[c][lane];
          highest[lane] = highest[lane] > z[c][lane] ? highest[lane] : z[c][lane];
        }
      }
      VSS_SIMD
      for (int lane = 0; lane < kLanes; ++lane) {
        total[r][lane] *= exponential(high[r][lane] - highest[lane]);
        high[r][lane] = highest[lane];
      }
      VSS_UNROLL
      for (int c = 0; c < kClasses; ++c) {
        VSS_SIMD
        for (int lane = 0; lane < kLanes; ++lane)
          total[r][lane] += exponential(z[c][lane] - highest[lane]);
      }
    }
  }
};

// Losses of kLanes columns from `x` on in the rows of one group. Writes L, adds up losses and
// weights, and writes the losses unless `losses` is null.
template <int kLanes, typename T>
VSS_HOST_DEVICE void loss_columns(const LossGeometry& g, const T* map, int64_t n, const Span& rows,
                                  int64_t x, int64_t x_end, float* losses, float* log_sums,
                                  float* loss_sums, float* weight_sums) {
  const Tap vertical = g.vertical.tap(rows.begin);  // first and second are those of all rows
  const T* upper = map + vertical.first * g.strides.row;
  const T* lower = map + vertical.second * g.strides.row;
  const Columns<kLanes> columns(g.horizontal, x, x_end, g.strides.column);
  const int width = static_cast<int>(x_end - x < kLanes ? x_end - x : kLanes);
  for (int64_t begin = rows.begin; begin < rows.end; begin += kRows) {
    const int count = static_cast<int>(rows.end - begin < kRows ? rows.end - begin : kRows);
    float shares[kRows];
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r)
      shares[r] = g.vertical.tap(begin + (r < count ? r : 0)).share;

    Statistics<kLanes> statistics;
    int k = 0;
    for (; k + kForwardClasses <= g.classes; k += kForwardClasses) {
      statistics.template add<kForwardClasses>(g, columns, upper + k * g.strides.channel,
                                               lower + k * g.strides.channel, k, count, shares);
    }
    for (; k < g.classes; ++k) {
      statistics.template add<1>(g, columns, upper + k * g.strides.channel,
                                 lower + k * g.strides.channel, k, count, shares);
    }

    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (r >= count) continue;
      const float share = shares[r], keep = 1.0f - share;
      for (int lane = 0; lane < kLanes; ++lane) {  // a known bound keeps the arrays in registers
        if (lane >= width) break;
        const int64_t pixel = g.pixel(n, begin + r, x + lane);
        const float high = statistics.high[r][lane];
        const float log_total = std::log(statistics.total[r][lane]);
        const float log_sum = high + log_total;
        const int label = g.labels.at(n, begin + r, x + lane);
        float loss = 0.0f, weight = 0.0f;
        if (label >= 0) {
          const float above = columns.read(upper + label * g.strides.channel, lane);
          const float below = columns.read(lower + label * g.strides.channel, lane);
          weight = g.weight(label);
          // Taking the logit off first keeps the small losses of sure pixels exact.
          const float behind = high - (keep * above + share * below);
          loss = (1.0f - g.smoothing) * weight * (behind + log_total);
          if (g.smoothing > 0.0f) {
            const float plain =
                keep * statistics.plain_upper[lane] + share * statistics.plain_lower[lane];
            loss += g.spread() * (g.total_weight() * log_sum - plain);
          }
        } else if (label == Labels::kInvalid) {
          // Not to be overlooked where checking the labels would have to wait for the GPU.
          loss = weight = std::numeric_limits<float>::quiet_NaN();
        }
        log_sums[pixel] = log_sum;
        if (losses != nullptr) losses[pixel] = loss;
        loss_sums[lane] += loss;
        weight_sums[lane] += weight;
      }
    }
  }
}

// One tile of one group of rows. `losses` (N, H, W) or `parts` (blocks, 2) is null: the sums of the
// tile's losses and weights are wanted only where the losses are not. Scratch: 2 * tile floats.
template <typename T, typename Block>
VSS_HOST_DEVICE void loss_tile(const Block& block, const LossGeometry& g, const T* logits,
                               float* losses, float* log_sums, float* parts, int64_t index) {
  const int64_t x_begin = index % g.tiles() * g.tile;
  const int64_t x_end =
      x_begin + g.tile < g.horizontal.resized ? x_begin + g.tile : g.horizontal.resized;
  const int64_t group = index / g.tiles() % g.groups();
  const int64_t n = index / (g.tiles() * g.groups());
  Span rows = {group, group + 1};
  if (g.rows_share()) {
    rows = group_rows(group, g.vertical.resized, g.vertical.reader_begin(group),
                      [&](int64_t row) VSS_INLINE { return g.vertical.tap(row).first; });
  }
  const int64_t width = x_end - x_begin;

  float* loss_sums = block.scratch();
  float* weight_sums = loss_sums + width;
  block.for_each(2 * width, [&](int64_t i) VSS_INLINE { loss_sums[i] = 0.0f; });
  block.sync();
  constexpr int kLanes = Block::kLanes;
  if (rows.size() > 0) {
    block.for_each(ceil_div<int64_t>(width, kLanes), [&](int64_t i) VSS_INLINE {
      loss_columns<kLanes>(g, logits + n * g.strides.batch, n, rows, x_begin + i * kLanes, x_end,
                           losses, log_sums, loss_sums + i * kLanes, weight_sums + i * kLanes);
    });
  }
  block.sync();
  if (parts != nullptr) {
    const float loss = block.sum(width, [&](int64_t i) VSS_INLINE { return loss_sums[i]; });
    const float weight = block.sum(width, [&](int64_t i) VSS_INLINE { return weight_sums[i]; });
    block.for_each(1, [&](int64_t) {
      parts[2 * index] = loss;
      parts[2 * index + 1] = weight;
    });
  }
  block.sync();  // the scratch may be overwritten by the next tile
}

enum class Reduction : int { kMeanAll, kMean, kSum, kNone };

// Adds up the tiles' parts. `scale` is what a pixel's loss counts in the result.
template <typename Block>
VSS_HOST_DEVICE void reduce_loss(const Block& block, Reduction reduction, int64_t pixels,
                                 const float* parts, int64_t count, float* result, float* scale) {
  const float loss = block.sum(count, [&](int64_t i) VSS_INLINE { return parts[2 * i]; });
  const float weight = block.sum(count, [&](int64_t i) VSS_INLINE { return parts[2 * i + 1]; });
  float divisor = 1.0f;
  if (reduction == Reduction::kMeanAll) divisor = static_cast<float>(pixels > 0 ? pixels : 1);
  if (reduction == Reduction::kMean) divisor = weight;
  block.for_each(1, [&](int64_t) {
    *result = loss / divisor;
    *scale = 1.0f / divisor;
  });
}

}  // namespace vss::upsample
