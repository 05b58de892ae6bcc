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
#include "../math/exponential.h"
#include "../math/upsampled_rows.h"

namespace vss::inline VSS_MACHINE::upsample_cross_entropy {

// Classes that a work item handles together: they share one rescaling of the running sum.
constexpr int kForwardClasses = 4;
constexpr int kRows =
    4;  // output rows that a work item keeps in registers; the usual ratio of the sizes

enum class LabelType : int { kUInt8, kInt16, kInt32, kInt64 };

struct Labels {
  static constexpr int kIgnored = -1;
  static constexpr int kInvalid = -2;

  const void* data;
  LabelType type;
  Strides strides;
  int64_t ignore_index;
  int classes;

  VSS_INLINE int64_t value(int64_t offset) const {
    switch (type) {
      case LabelType::kUInt8: return static_cast<const uint8_t*>(data)[offset];
      case LabelType::kInt16: return static_cast<const int16_t*>(data)[offset];
      case LabelType::kInt32: return static_cast<const int32_t*>(data)[offset];
      default: return static_cast<const int64_t*>(data)[offset];
    }
  }

  // A class, kIgnored, or kInvalid for a value that is no class.
  VSS_INLINE int at(int64_t n, int64_t y, int64_t x) const {
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
  int64_t tile;  // columns of labels that a block of the forward pass takes

  VSS_INLINE float weight(int label) const {
    return class_weights == nullptr ? 1.0f : class_weights[label];
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

// Running softmax statistics of kRows rows of kLanes columns.
struct Statistics {
  Floats high[kRows], total[kRows];
  // Weighted sums of all logits in the two source rows, for label smoothing.
  Floats plain_upper = {}, plain_lower = {};

  VSS_DEVICE Statistics() {
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      high[r] = broadcast(std::numeric_limits<float>::lowest());
      total[r] = Floats{};
    }
  }

  // Takes in kClasses classes from `k` on; `upper` and `lower` point at class k's two source rows.
  template <int kClasses, typename T>
  VSS_DEVICE void add(const LossGeometry& g, const WindowedColumns& columns, const T* upper,
                      const T* lower, int k, int rows, const float (&row_weights)[kRows]) {
    Floats above[kClasses], below[kClasses];
    VSS_UNROLL
    for (int c = 0; c < kClasses; ++c) {
      above[c] = columns.read(upper + c * g.strides.channel);
      below[c] = columns.read(lower + c * g.strides.channel);
    }
    if (g.smoothing > 0.0f) {
      VSS_UNROLL
      for (int c = 0; c < kClasses; ++c) {
        const float weight = g.weight(k + c);
        plain_upper += weight * above[c];
        plain_lower += weight * below[c];
      }
    }
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) continue;
      const float weight = row_weights[r], keep = 1.0f - weight;
      Floats z[kClasses], highest = high[r];
      VSS_UNROLL
      for (int c = 0; c < kClasses; ++c) {
        z[c] = keep * above[c] + weight * below[c];
        highest = highest > z[c] ? highest : z[c];
      }
      total[r] *= exponential(high[r] - highest);
      high[r] = highest;
      VSS_UNROLL
      for (int c = 0; c < kClasses; ++c) total[r] += exponential(z[c] - highest);
    }
  }
};

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
    int k = 0;
    for (; k + kForwardClasses <= g.classes; k += kForwardClasses) {
      statistics.template add<kForwardClasses>(g, columns, upper + k * g.strides.channel,
                                               lower + k * g.strides.channel, k, count,
                                               row_weights);
    }
    for (; k < g.classes; ++k) {
      statistics.template add<1>(g, columns, upper + k * g.strides.channel,
                                 lower + k * g.strides.channel, k, count, row_weights);
    }

    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (r >= count) continue;
      const float second = row_weights[r], keep = 1.0f - second;
      for (int i = 0; i < width; ++i) {
        const int64_t pixel = g.pixel(n, begin + r, x + i);
        const float high = lane(statistics.high[r], i);
        const float log_total = std::log(lane(statistics.total[r], i));
        const float log_sum = high + log_total;
        const int label = g.labels.at(n, begin + r, x + i);
        float loss = 0.0f, weight = 0.0f;
        if (label >= 0) {
          const float above = columns.read(upper + label * g.strides.channel, i);
          const float below = columns.read(lower + label * g.strides.channel, i);
          weight = g.weight(label);
          // Taking the logit off first keeps the small losses of sure pixels exact.
          const float behind = high - (keep * above + second * below);
          loss = (1.0f - g.smoothing) * weight * (behind + log_total);
          if (g.smoothing > 0.0f) {
            const float plain =
                keep * lane(statistics.plain_upper, i) + second * lane(statistics.plain_lower, i);
            loss += g.spread() * (g.total_weight() * log_sum - plain);
          }
        } else if (label == Labels::kInvalid) {
          // Not to be overlooked where checking the labels would have to wait for the GPU.
          loss = weight = std::numeric_limits<float>::quiet_NaN();
        }
        log_sums[pixel] = log_sum;
        if (losses != nullptr) losses[pixel] = loss;
        loss_sums[i] += loss;
        weight_sums[i] += weight;
      }
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
