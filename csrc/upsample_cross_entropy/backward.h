// The backward pass of upsample_cross_entropy; kernel.h has the formulas.
//
//      source rows        output rows        kept for every output column, for each class
//   y0 ──────────────┬──  row               upper += (1 - t) dz      complete: gather into cells of
//   y0
//                    │    row   dz, once
//   y0 + 1 ──────────┴──  row               lower += t dz            carried to the next pair of
//   rows
#pragma once

#include "kernel.h"

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
  Strides grad_strides;  // of the gradient of the losses, all zero where they were reduced
  const float *grad, *scale, *log_sums;
  int64_t tile, band;  // columns and rows of logits that a block owns
  int64_t reach;       // most label columns that read a tile, in whole lanes
  int64_t fan_out;     // most label columns that read one column of logits

  VSS_INLINE int64_t class_groups() const { return cdiv<int64_t>(loss.classes, kBackwardClasses); }
  VSS_INLINE int64_t tiles() const { return cdiv(loss.horizontal.size, tile); }
  VSS_INLINE int64_t bands() const { return cdiv(loss.vertical.size, band); }
  VSS_INLINE int64_t blocks() const { return loss.batch * class_groups() * bands() * tiles(); }
  // Floats of scratch: for each label column two sums a class and its source positions; for each
  // column of logits the weights of the label columns that read it, and which they are.
  VSS_INLINE int64_t scratch_floats() const {
    return (2 * kBackwardClasses + 3) * reach + (fan_out + 2) * tile;
  }
};

// What the losses of kLanes pixels say about their gradients: dloss/dz_k = all exp(z_k - log_sum) -
// own [k = label] - spread w_k.
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

// Sums over output rows of kLanes columns, for kBackwardClasses classes: what their gradients give
// to the source row above them and to the one below.
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

// The gradients of one tile of one band of kBackwardClasses classes.
template <typename T>
struct LossTileBackward {
  LossBackwardGeometry g;
  const T* logits;
  T* grad_logits;

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
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
    const Range xs = positions_reading(loss.horizontal, cell_begin, cell_end - 1);
    const int64_t lane_groups = cdiv<int64_t>(xs.size(), kLanes);
    const int64_t reach = g.reach;

    float* complete = block.scratch();                     // [kBackwardClasses, reach]
    float* carried = complete + kBackwardClasses * reach;  // [kBackwardClasses, reach]
    float* table = carried + kBackwardClasses * reach;     // the source positions of the columns
    float* weights = table + 3 * reach;                    // [cells, fan_out]
    float* firsts = weights + g.fan_out * g.tile;  // [cells]: first label column, from xs.begin
    float* fans = firsts + g.tile;                 // [cells]: how many label columns
    block.for_each(lane_groups, [&](int64_t i) VSS_LAMBDA {
      SourceColumns(loss.horizontal, xs.begin + i * kLanes, xs.end, loss.strides.column)
          .save(table + i * SourceColumns::kStored);
      for (int c = 0; c < kBackwardClasses; ++c) store(carried + c * reach + i * kLanes, Floats{});
    });
    block.for_each(cells, [&](int64_t i) VSS_LAMBDA {
      const Range fan = positions_reading(loss.horizontal, cell_begin + i, cell_begin + i);
      for (int64_t j = 0; j < fan.size(); ++j)
        weights[i * g.fan_out + j] = loss.horizontal.tap(fan.begin + j).weight_of(cell_begin + i);
      firsts[i] = static_cast<float>(fan.begin - xs.begin);
      fans[i] = static_cast<float>(fan.size());
    });
    block.sync();

    const int64_t y_begin = band * g.band;
    const int64_t y_end =
        y_begin + g.band < loss.vertical.size ? y_begin + g.band : loss.vertical.size;
    // The pair of rows above the band gives to its first row.
    const int64_t y_first = y_begin > 0 ? y_begin - 1 : 0;
    Range rows = {0, loss.vertical.reader_begin(y_first)};
    const Resize& vertical = loss.vertical;
    while (rows.end < vertical.resized && vertical.tap(rows.end).first < y_first) ++rows.end;
    for (int64_t y = y_first; y < y_end; ++y) {
      rows.begin = rows.end;
      while (rows.end < vertical.resized && vertical.tap(rows.end).first == y) ++rows.end;
      const bool last = y == vertical.size - 1;  // then both taps are this row

      block.for_each(lane_groups, [&](int64_t i) VSS_LAMBDA {
        RowSums sums;
        if (rows.size() > 0) {
          sums.add(g,
                   WindowedColumns(SourceColumns(table + i * SourceColumns::kStored),
                                   loss.strides.column == 1 ? loss.horizontal.size : 0),
                   logits + n * loss.strides.batch, n, k, count, rows, xs.begin + i * kLanes,
                   xs.end);
        }
        VSS_UNROLL
        for (int c = 0; c < kBackwardClasses; ++c) {
          float* carry = carried + c * reach + i * kLanes;
          store(complete + c * reach + i * kLanes,
                load(carry) + sums.upper[c] + (last ? sums.lower[c] : Floats{}));
          store(carry, sums.lower[c]);
        }
      });
      if (y < y_begin) continue;
      block.sync();
      block.for_each(count * cells, [&](int64_t i) VSS_LAMBDA {
        const int c = static_cast<int>(i) / cells, cell = static_cast<int>(i) % cells;
        const float* values = complete + c * reach + static_cast<int>(firsts[cell]);
        const float* weight = weights + cell * g.fan_out;
        const int fan = static_cast<int>(fans[cell]);
        float total = 0.0f;
        for (int j = 0; j < fan; ++j) total += weight[j] * values[j];
        const int64_t row = ((n * loss.classes + k + c) * loss.vertical.size + y);
        grad_logits[row * loss.horizontal.size + cell_begin + cell] = static_cast<T>(total);
      });
      block.sync();
    }
  }
};

}  // namespace vss::inline VSS_MACHINE::upsample_cross_entropy
