// The backward pass of upsample_cross_entropy; cross_entropy.h has the formulas.
//
//      source rows        output rows        kept for every output column, for each class
//   y0 ──────────────┬──  row               upper += (1 - t) dz      complete: gather into cells of y0
//                    │    row   dz, once
//   y0 + 1 ──────────┴──  row               lower += t dz            carried to the next pair of rows
#pragma once

#include "cross_entropy.h"

namespace vss::upsample {

// Classes that a work item handles together: they share one read of the labels.
constexpr int kBackwardClasses = 8;

// The output positions that read any of the source positions [first, last].
VSS_HOST_DEVICE Span readers(const Resize& resize, int64_t first, int64_t last) {
  int64_t begin = resize.reader_begin(first);
  int64_t end = resize.reader_end(last);
  while (begin < end && resize.tap(begin).second < first) ++begin;
  while (begin < end && resize.tap(end - 1).first > last) --end;
  return {begin, end};
}

struct LossBackwardGeometry {
  LossGeometry loss;
  Strides grad_strides;  // of the gradient of the losses, all zero where they were reduced
  const float *grad, *scale, *log_sums;
  int64_t tile, band;  // columns and rows of logits that a block owns
  int64_t reach;       // most label columns that read a tile, in whole lanes
  int64_t fan_out;     // most label columns that read one column of logits

  VSS_HOST_DEVICE int64_t class_groups() const {
    return ceil_div<int64_t>(loss.classes, kBackwardClasses);
  }
  VSS_HOST_DEVICE int64_t tiles() const { return ceil_div(loss.horizontal.size, tile); }
  VSS_HOST_DEVICE int64_t bands() const { return ceil_div(loss.vertical.size, band); }
  VSS_HOST_DEVICE int64_t blocks() const {
    return loss.batch * class_groups() * bands() * tiles();
  }
  // Floats of scratch: for each label column two sums a class and its source positions; for each
  // column of logits the shares of its readers, and which they are.
  VSS_HOST_DEVICE int64_t scratch_floats() const {
    return (2 * kBackwardClasses + 3) * reach + (fan_out + 2) * tile;
  }
};

// What the losses of kLanes pixels say about their gradients: dloss/dz_k = all exp(z_k - log_sum) -
// own [k = label] - spread w_k.
template <int kLanes>
struct PixelGradients {
  float log_sum[kLanes], all[kLanes], own[kLanes], spread[kLanes];
  int label[kLanes];
  bool any = false;  // whether there is a pixel that is not ignored

  VSS_HOST_DEVICE PixelGradients(const LossBackwardGeometry& g, int64_t n, int64_t y, int64_t x,
                                 int64_t x_end) {
    const LossGeometry& loss = g.loss;
    for (int lane = 0; lane < kLanes; ++lane) {
      // An infinite log-sum makes every probability zero.
      log_sum[lane] = std::numeric_limits<float>::infinity();
      all[lane] = own[lane] = spread[lane] = 0.0f;
      label[lane] = Labels::kIgnored;
      if (x + lane >= x_end) continue;
      label[lane] = loss.labels.at(n, y, x + lane);
      if (label[lane] == Labels::kIgnored) continue;
      any = true;
      log_sum[lane] = g.log_sums[loss.pixel(n, y, x + lane)];
      const float grad = *g.scale * g.grad[n * g.grad_strides.batch + y * g.grad_strides.row +
                                           (x + lane) * g.grad_strides.column];
      const float weight = label[lane] == Labels::kInvalid
                               ? std::numeric_limits<float>::quiet_NaN()
                               : loss.weight(label[lane]);
      own[lane] = grad * (1.0f - loss.smoothing) * weight;
      all[lane] = own[lane];
      if (loss.smoothing > 0.0f) {
        spread[lane] = grad * loss.spread();
        all[lane] += spread[lane] * loss.total_weight();
      }
    }
  }
};

// Sums over output rows of kLanes columns, for kBackwardClasses classes: what their gradients give to
// the source row above them and to the one below.
template <int kLanes>
struct RowSums {
  float upper[kBackwardClasses][kLanes] = {};
  float lower[kBackwardClasses][kLanes] = {};

  template <typename T>
  VSS_HOST_DEVICE void add(const LossBackwardGeometry& g, const Columns<kLanes>& columns,
                           const T* map, int64_t n, int k, int count, const Span& rows, int64_t x,
                           int64_t x_end) {
    const LossGeometry& loss = g.loss;
    const Tap vertical = loss.vertical.tap(rows.begin);  // the source rows are those of all rows
    const T* first = map + vertical.first * loss.strides.row;
    const T* second = map + vertical.second * loss.strides.row;
    float above[kBackwardClasses][kLanes], below[kBackwardClasses][kLanes];
    VSS_UNROLL
    for (int c = 0; c < kBackwardClasses; ++c) {
      if (c >= count) break;
      columns.read(first + (k + c) * loss.strides.channel, above[c]);
      columns.read(second + (k + c) * loss.strides.channel, below[c]);
    }
    for (int64_t y = rows.begin; y < rows.end; ++y) {
      const PixelGradients<kLanes> pixels(g, n, y, x, x_end);
      if (!pixels.any) continue;
      const float share = loss.vertical.tap(y).share, keep = 1.0f - share;
      VSS_UNROLL
      for (int c = 0; c < kBackwardClasses; ++c) {
        if (c >= count) break;
        VSS_SIMD
        for (int lane = 0; lane < kLanes; ++lane) {
          const float z = keep * above[c][lane] + share * below[c][lane];
          const float grad = pixels.all[lane] * exponential(z - pixels.log_sum[lane]);
          upper[c][lane] += keep * grad;
          lower[c][lane] += share * grad;
        }
      }
      for (int lane = 0; lane < kLanes; ++lane) {
        const int target = pixels.label[lane] - k;
        if (target >= 0 && target < count) subtract(lane, target, keep, share, pixels.own[lane]);
      }
      if (loss.smoothing > 0.0f) {
        VSS_UNROLL
        for (int c = 0; c < kBackwardClasses; ++c) {
          if (c >= count) break;
          const float weight = loss.weight(k + c);
          for (int lane = 0; lane < kLanes; ++lane) {
            upper[c][lane] -= keep * weight * pixels.spread[lane];
            lower[c][lane] -= share * weight * pixels.spread[lane];
          }
        }
      }
    }
  }

  VSS_HOST_DEVICE void subtract(int lane, int target, float keep, float share, float own) {
    VSS_UNROLL
    for (int c = 0; c < kBackwardClasses; ++c) {  // a known c keeps the arrays in registers
      if (c != target) continue;
      upper[c][lane] -= keep * own;
      lower[c][lane] -= share * own;
    }
  }
};

// The gradients of one tile of one band of kBackwardClasses classes.
template <typename T, typename Block>
VSS_HOST_DEVICE void loss_tile_backward(const Block& block, const LossBackwardGeometry& g,
                                        const T* logits, T* grad_logits, int64_t index) {
  constexpr int kLanes = Block::kLanes;
  const LossGeometry& loss = g.loss;
  const int64_t tile = index % g.tiles();
  const int64_t band = index / g.tiles() % g.bands();
  const int64_t class_group = index / (g.tiles() * g.bands()) % g.class_groups();
  const int64_t n = index / (g.tiles() * g.bands() * g.class_groups());
  const int k = static_cast<int>(class_group) * kBackwardClasses;
  const int count = loss.classes - k < kBackwardClasses ? loss.classes - k : kBackwardClasses;
  const int64_t cell_begin = tile * g.tile;
  const int64_t cell_end =
      cell_begin + g.tile < loss.horizontal.size ? cell_begin + g.tile : loss.horizontal.size;
  const int cells = static_cast<int>(cell_end - cell_begin);
  const Span xs = readers(loss.horizontal, cell_begin, cell_end - 1);
  const int64_t lane_groups = ceil_div<int64_t>(xs.size(), kLanes);
  const int64_t reach = g.reach;

  float* complete = block.scratch();                     // [kBackwardClasses, reach]
  float* carried = complete + kBackwardClasses * reach;  // [kBackwardClasses, reach]
  float* table = carried + kBackwardClasses * reach;     // the source positions of the columns
  float* shares = table + 3 * reach;                     // [cells, fan_out]
  float* firsts = shares + g.fan_out * g.tile;           // [cells]: the first reader, from xs.begin
  float* fans = firsts + g.tile;                         // [cells]: how many readers
  block.for_each(lane_groups, [&](int64_t i) VSS_INLINE {
    Columns<kLanes>(loss.horizontal, xs.begin + i * kLanes, xs.end, loss.strides.column)
        .store(table + i * Columns<kLanes>::kStored);
    for (int64_t j = i * kLanes; j < (i + 1) * kLanes; ++j)
      for (int c = 0; c < kBackwardClasses; ++c) carried[c * reach + j] = 0.0f;
  });
  block.for_each(cells, [&](int64_t i) VSS_INLINE {
    const Span fan = readers(loss.horizontal, cell_begin + i, cell_begin + i);
    for (int64_t j = 0; j < fan.size(); ++j)
      shares[i * g.fan_out + j] = loss.horizontal.tap(fan.begin + j).weight(cell_begin + i);
    firsts[i] = static_cast<float>(fan.begin - xs.begin);
    fans[i] = static_cast<float>(fan.size());
  });
  block.sync();

  const int64_t y_begin = band * g.band;
  const int64_t y_end =
      y_begin + g.band < loss.vertical.size ? y_begin + g.band : loss.vertical.size;
  // The pair of rows above the band gives to its first row.
  const int64_t y_first = y_begin > 0 ? y_begin - 1 : 0;
  Span rows = {0, loss.vertical.reader_begin(y_first)};
  const Resize& vertical = loss.vertical;
  while (rows.end < vertical.resized && vertical.tap(rows.end).first < y_first) ++rows.end;
  for (int64_t y = y_first; y < y_end; ++y) {
    rows.begin = rows.end;
    while (rows.end < vertical.resized && vertical.tap(rows.end).first == y) ++rows.end;
    const bool last = y == vertical.size - 1;  // then both taps are this row

    block.for_each(lane_groups, [&](int64_t i) VSS_INLINE {
      RowSums<kLanes> sums;
      if (rows.size() > 0) {
        sums.add(g, Columns<kLanes>::load(table + i * Columns<kLanes>::kStored),
                 logits + n * loss.strides.batch, n, k, count, rows, xs.begin + i * kLanes, xs.end);
      }
      VSS_UNROLL
      for (int c = 0; c < kBackwardClasses; ++c) {
        float* done = complete + c * reach + i * kLanes;
        float* carry = carried + c * reach + i * kLanes;
        for (int lane = 0; lane < kLanes; ++lane) {
          done[lane] = carry[lane] + sums.upper[c][lane] + (last ? sums.lower[c][lane] : 0.0f);
          carry[lane] = sums.lower[c][lane];
        }
      }
    });
    if (y < y_begin) continue;
    block.sync();
    block.for_each(count * cells, [&](int64_t i) VSS_INLINE {
      const int c = static_cast<int>(i) / cells, cell = static_cast<int>(i) % cells;
      const float* values = complete + c * reach + static_cast<int>(firsts[cell]);
      const float* share = shares + cell * g.fan_out;
      const int fan = static_cast<int>(fans[cell]);
      float total = 0.0f;
      for (int j = 0; j < fan; ++j) total += share[j] * values[j];
      const int64_t row = ((n * loss.classes + k + c) * loss.vertical.size + y);
      grad_logits[row * loss.horizontal.size + cell_begin + cell] = static_cast<T>(total);
    });
    block.sync();
  }
}

}  // namespace vss::upsample
