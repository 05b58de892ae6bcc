// focal_pool on a GPU: the algorithm of kernel.h, for maps that 32 bits can index.
//
// A thread takes kCount neighbouring channels, so that a warp reads whole lines of memory. A block
// divides the pixels of a cell's patch among groups of threads and adds up their parts. The
// coefficients are made one dimension after the other: first the rows' taps are summed, then the
// columns'.
#pragma once

#include "../math/block_reduce.h"
#include "../math/hat.h"
#include "../math/pack.h"
#include "kernel.h"

#if VSS_GPU_CODE

namespace vss::inline VSS_MACHINE::focal_pool {

// One dimension of the resize: `size` source positions, `cells` of `side` resized ones each.
struct Axis {
  Hat hat;
  int size, cells, side;
  float inverse;  // resized positions for each source position

  Axis() = default;
  Axis(const Resize& resize, int64_t cells, int64_t side)
      : hat(resize),
        size(static_cast<int>(resize.size)),
        cells(static_cast<int>(cells)),
        side(static_cast<int>(side)),
        inverse(1.0f / resize.scale) {}

  VSS_DEVICE float source(int position) const { return hat.source(position); }

  // How much of resized position `position` comes from source position `index`.
  VSS_DEVICE float weight(int position, int index) const {
    return Hat::weight(source(position), index);
  }
};

struct Span {
  int begin, end;
  VSS_DEVICE int size() const { return end - begin; }
};

// The source positions that a cell reads.
VSS_DEVICE Span patch_span(const Axis& axis, int cell) {
  return {static_cast<int>(axis.source(cell * axis.side)),
          static_cast<int>(ceilf(axis.source(cell * axis.side + axis.side - 1))) + 1};
}

// The cells that read one of the source positions [first, last]. A division may round, so the
// outermost resized positions are sought from just outside.
VSS_DEVICE Span cell_span(const Axis& axis, int first, int last) {
  const int positions = axis.cells * axis.side;
  const float below = static_cast<float>(first - 1), above = static_cast<float>(last + 1);
  int begin = static_cast<int>((below + 0.5f) * axis.inverse - 0.5f) - 1;
  begin = begin < 0 ? 0 : begin;
  while (begin < positions && axis.source(begin) <= below) ++begin;
  int end = static_cast<int>((above + 0.5f) * axis.inverse - 0.5f) + 2;
  end = end > positions ? positions : end;
  while (end > begin && axis.source(end - 1) >= above) --end;
  return {begin / axis.side, (end + axis.side - 1) / axis.side};
}

struct GpuGeometry {
  Axis vertical, horizontal;
  int channels;
  int64_t x_batch;
  int x_row, x_column;
  int strip, strips_in_row;
  int cell_count, strip_count;

  explicit GpuGeometry(const PoolGeometry& g)
      : vertical(g.vertical, g.rows, g.side),
        horizontal(g.horizontal, g.columns, g.side),
        channels(static_cast<int>(g.channels)),
        x_batch(g.x_batch),
        x_row(static_cast<int>(g.x_row)),
        x_column(static_cast<int>(g.x_column)),
        strip(static_cast<int>(g.strip)),
        strips_in_row(static_cast<int>(g.strips_in_row)),
        cell_count(static_cast<int>(g.cells())),
        strip_count(static_cast<int>(g.strips())) {}

  VSS_DEVICE int side() const { return vertical.side; }
  VSS_DEVICE int weights() const { return side() * side(); }
};

// A pixel of a cell's patch, in scratch: its coefficient or scalar product, and where it is.
struct PatchPixel {
  float value;
  int32_t offset;
};

struct GpuPatch {
  int row, column;  // of the cell
  Span ys, xs;
  int64_t corner;

  VSS_DEVICE GpuPatch(const GpuGeometry& g, int index) {
    const int line = index / g.horizontal.cells, batch = line / g.vertical.cells;
    row = line - batch * g.vertical.cells;
    column = index - line * g.horizontal.cells;
    ys = patch_span(g.vertical, row);
    xs = patch_span(g.horizontal, column);
    corner = batch * g.x_batch + static_cast<int64_t>(ys.begin) * g.x_row +
             static_cast<int64_t>(xs.begin) * g.x_column;
  }
  VSS_DEVICE int pixels() const { return ys.size() * xs.size(); }
};

// One row of weights for source row `y`: the weights of a sub-window, summed over its rows.
template <typename T>
VSS_DEVICE float sum_of_rows(const Axis& vertical, const T* weight, int cell, int y, int j) {
  float total = 0;
  for (int i = 0; i < vertical.side; ++i) {
    total += vertical.weight(cell * vertical.side + i, y) *
             static_cast<float>(weight[i * vertical.side + j]);
  }
  return total;
}

// The coefficient of source column `x`, from such a row of weights.
VSS_DEVICE float sum_of_columns(const Axis& horizontal, const float* weights, int cell, int x) {
  float total = 0;
  for (int j = 0; j < horizontal.side; ++j)
    total += horizontal.weight(cell * horizontal.side + j, x) * weights[j];
  return total;
}

// One cell of the result. Scratch: kParts floats, then patch_scratch().
template <typename T, int kCount>
struct GpuPoolCell {
  static constexpr int kParts = kPoolThreads * kCount;  // floats that the groups of threads add up
  static constexpr int kBatch = 4;                      // pixels on their way from memory at a time

  GpuGeometry g;
  const T *x, *weight, *bias;
  T* out;

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const GpuPatch patch(g, static_cast<int>(index));
    const int side = g.side(), columns = patch.xs.size(), pixels = patch.pixels();
    float* parts = block.scratch();  // [groups, channels]; first, since packs must be aligned
    auto* table = reinterpret_cast<PatchPixel*>(parts + kParts);
    float* rows = parts + kParts + 2 * pixels;  // [ys, side]
    for (int i = block.rank(); i < patch.ys.size() * side; i += block.size()) {
      const int y = i / side;
      rows[i] = sum_of_rows(g.vertical, weight, patch.row, patch.ys.begin + y, i - y * side);
    }
    block.sync();
    for (int i = block.rank(); i < pixels; i += block.size()) {
      const int y = i / columns, x = i - y * columns;
      table[i] = {sum_of_columns(g.horizontal, rows + y * side, patch.column, patch.xs.begin + x),
                  y * g.x_row + x * g.x_column};
    }
    block.sync();

    const int packs = g.channels / kCount;
    const int groups = packs < block.size() ? block.size() / packs : 1;
    const float offset = static_cast<float>(*bias);
    T* cell = out + index * g.channels;
    for (int item = block.rank(); item < packs * groups; item += block.size()) {
      const int group = item / packs, channel = (item - group * packs) * kCount;
      const Pack<kCount> total =
          sum_pixels(table, pixels, group, groups, x + patch.corner + channel);
      if (groups == 1) {
        finish(cell + channel, total, offset);
      } else {
        store_pack(parts + group * g.channels + channel, total);
      }
    }
    if (groups > 1) {
      block.sync();
      for (int item = block.rank(); item < packs; item += block.size()) {
        const int channel = item * kCount;
        Pack<kCount> total = {};
        for (int group = 0; group < groups; ++group)
          total.add(1.0f, load_pack<kCount>(parts + group * g.channels + channel));
        finish(cell + channel, total, offset);
      }
    }
    block.sync();  // the scratch may be overwritten by the next cell
  }

 private:
  // Every `groups`-th pixel of the patch, times its coefficient.
  VSS_DEVICE static Pack<kCount> sum_pixels(const PatchPixel* table, int pixels, int group,
                                            int groups, const T* from) {
    Pack<kCount> total = {};
    for (int begin = group; begin < pixels; begin += kBatch * groups) {
      Pack<kCount> values[kBatch];
      float coefficients[kBatch];
      VSS_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        const int pixel = begin + i * groups;
        coefficients[i] = 0.0f;
        if (pixel >= pixels) continue;
        coefficients[i] = table[pixel].value;
        values[i] = load_pack<kCount>(from + table[pixel].offset);
      }
      VSS_UNROLL
      for (int i = 0; i < kBatch; ++i) total.add(coefficients[i], values[i]);
    }
    return total;
  }

  VSS_DEVICE static void finish(T* to, Pack<kCount> total, float offset) {
    VSS_UNROLL
    for (int i = 0; i < kCount; ++i) total.at[i] += offset;
    store_pack(to, total);
  }
};

// The gradients: of the map by strips of adjacent pixels of a row, and each cell's part of those of
// weight and bias. One launch has blocks for both. Scratch: strip_scratch() or patch_scratch().
template <typename T, int kCount>
struct GpuPoolBackward {
  static constexpr int kBatch = 4;  // pixels whose scalar products a warp computes at a time

  GpuGeometry g;
  const T *grad, *x, *weight;
  T* grad_x;
  float* parts;  // [weights and bias, cells]
  int cells;     // blocks that take one; the others take strips

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    if (index < cells) {
      of_weights(block, static_cast<int>(index));
    } else {
      of_strip(block, static_cast<int>(index) - cells);
    }
    block.sync();  // the scratch may be overwritten by the next block
  }

 private:
  VSS_DEVICE void of_strip(const Block& block, int index) const {
    const int line = index / g.strips_in_row, batch = line / g.vertical.size;
    const int x = (index - line * g.strips_in_row) * g.strip, y = line - batch * g.vertical.size;
    const int left = g.horizontal.size - x, side = g.side();
    const int pixels = left < g.strip ? left : g.strip;
    const Span rows = cell_span(g.vertical, y, y);
    const Span columns = cell_span(g.horizontal, x, x + pixels - 1);
    const int cells = rows.size() * columns.size();
    float* coefficients = block.scratch();               // [pixels, rows, columns]
    float* row_weights = coefficients + pixels * cells;  // [rows, side]
    for (int i = block.rank(); i < rows.size() * side; i += block.size()) {
      const int row = i / side;
      row_weights[i] = sum_of_rows(g.vertical, weight, rows.begin + row, y, i - row * side);
    }
    block.sync();
    for (int i = block.rank(); i < pixels * cells; i += block.size()) {
      const int line = i / columns.size(), pixel = line / rows.size();
      coefficients[i] =
          sum_of_columns(g.horizontal, row_weights + (line - pixel * rows.size()) * side,
                         columns.begin + i - line * columns.size(), x + pixel);
    }
    block.sync();

    const int packs = g.channels / kCount;
    T* strip = grad_x + (static_cast<int64_t>(line) * g.horizontal.size + x) * g.channels;
    const int64_t first_cell =
        (batch * g.vertical.cells + rows.begin) * g.horizontal.cells + columns.begin;
    for (int item = block.rank(); item < pixels * packs; item += block.size()) {
      const int pixel = item / packs, channel = (item - pixel * packs) * kCount;
      const float* coefficient = coefficients + pixel * cells;
      const T* from = grad + first_cell * g.channels + channel;
      Pack<kCount> total = {};
      for (int row = 0; row < rows.size(); ++row) {
        for (int column = 0; column < columns.size(); ++column) {
          const float factor = *coefficient++;
          if (factor == 0.0f) continue;  // the cell does not read this pixel
          total.add(factor, load_pack<kCount>(from + column * g.channels));
        }
        from += g.horizontal.cells * g.channels;
      }
      store_pack(strip + item * kCount, total);
    }
  }

  VSS_DEVICE void of_weights(const Block& block, int index) const {
    constexpr int kWarp = Block::kWarp;
    const GpuPatch patch(g, index);
    const int columns = patch.xs.size(), pixels = patch.pixels();
    const int lane = block.rank() % kWarp, warp = block.rank() / kWarp;
    const int warps = block.size() / kWarp;
    const T* cell = grad + static_cast<int64_t>(index) * g.channels;
    float* products = block.scratch();  // [ys, xs]: gradient . pixel
    for (int begin = warp * kBatch; begin < pixels; begin += warps * kBatch) {
      const T* from[kBatch];
      VSS_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        const int pixel = begin + i < pixels ? begin + i : pixels - 1, y = pixel / columns;
        from[i] = x + patch.corner + y * g.x_row + (pixel - y * columns) * g.x_column;
      }
      float sums[kBatch] = {};
      for (int channel = lane * kCount; channel < g.channels; channel += kWarp * kCount) {
        const Pack<kCount> gradient = load_pack<kCount>(cell + channel);
        Pack<kCount> values[kBatch];
        VSS_UNROLL
        for (int i = 0; i < kBatch; ++i) values[i] = load_pack<kCount>(from[i] + channel);
        VSS_UNROLL
        for (int i = 0; i < kBatch; ++i) {
          VSS_UNROLL
          for (int c = 0; c < kCount; ++c) sums[i] += gradient.at[c] * values[i].at[c];
        }
      }
      sum_over_warp<kBatch>(block, sums);
      constexpr int kLanesOfASum = kWarp / kBatch;
      const int pixel = begin + lane / kLanesOfASum;
      if (lane % kLanesOfASum == 0 && pixel < pixels) products[pixel] = sums[0];
    }
    const float total =
        block.sum(g.channels, [&](int64_t c) { return static_cast<float>(cell[c]); });
    // The sum has waited for all threads: the products are complete.
    for (int i = block.rank(); i <= g.weights(); i += block.size()) {
      const float part = i < g.weights() ? resized_product(patch, products, i) : total;
      parts[static_cast<int64_t>(i) * g.cell_count + index] = part;
    }
  }

  // The scalar product of the gradient with position `i` of the sub-window.
  VSS_DEVICE float resized_product(const GpuPatch& patch, const float* products, int i) const {
    const int row = i / g.side(), column = i - row * g.side();
    const float y = g.vertical.source(patch.row * g.side() + row);
    const float x = g.horizontal.source(patch.column * g.side() + column);
    const int top = static_cast<int>(y), left = static_cast<int>(x);
    const int bottom = top + 1 < patch.ys.end ? top + 1 : top;
    const int right = left + 1 < patch.xs.end ? left + 1 : left;
    const float below = y - static_cast<float>(top), beside = x - static_cast<float>(left);
    const float* upper = products + (top - patch.ys.begin) * patch.xs.size() - patch.xs.begin;
    const float* lower = products + (bottom - patch.ys.begin) * patch.xs.size() - patch.xs.begin;
    return (1 - below) * ((1 - beside) * upper[left] + beside * upper[right]) +
           below * ((1 - beside) * lower[left] + beside * lower[right]);
  }
};

// The gradients of weight and bias: one block sums the parts of all cells for each of them.
template <typename T>
struct GpuPoolSums {
  const float* parts;  // [weights and bias, cells]
  int cells, weights;
  T *grad_weight, *grad_bias;

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const float* part = parts + index * cells;
    const float total = block.sum(cells, [&](int64_t i) { return part[i]; });
    if (block.rank() == 0) {
      (index < weights ? grad_weight + index : grad_bias)[0] = static_cast<T>(total);
    }
  }
};

}  // namespace vss::inline VSS_MACHINE::focal_pool

#endif
