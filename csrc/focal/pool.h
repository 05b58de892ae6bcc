// focal_pool: bilinear resize to whole sub-windows, then one learned weighted sum over each.
//
// Both steps are linear in the map, so a cell is a weighted sum of a small patch of the *input*:
//
//   out[cell] = bias + sum over patch of coefficient[y, x] * input[y, x]
//   coefficient[y, x] = sum_ij weight[i, j] * row_tap(i -> y) * column_tap(j -> x)
//
// The resized map never exists. The gradient of the input gathers, per pixel, from the cells whose
// patch holds it (no atomics); the gradient of the weight needs only the scalar products of the
// cell's gradient with the patch's pixels.
#pragma once

#include "../common/hints.h"
#include "../common/resize.h"

namespace vss::focal {

struct PoolGeometry {
  int64_t batch, channels;
  int64_t rows, columns;  // of cells
  int64_t side;           // of a sub-window
  Resize vertical, horizontal;
  int64_t x_batch, x_row, x_column;  // strides of the map in elements; its channels are adjacent
  int64_t strip;          // adjacent pixels of a row whose gradients one block gathers
  int64_t strips_in_row;

  VSS_HOST_DEVICE int64_t cells() const { return batch * rows * columns; }
  VSS_HOST_DEVICE int64_t strips() const { return batch * vertical.size * strips_in_row; }
};

// The source positions [begin, end) that the sub-window of one cell reads in one dimension.
struct Span {
  int64_t begin, end;
  VSS_HOST_DEVICE int64_t size() const { return end - begin; }
};

VSS_HOST_DEVICE Span patch_span(const Resize& resize, int64_t cell, int64_t side) {
  return {resize.tap(cell * side).first, resize.tap(cell * side + side - 1).second + 1};
}

// The cells [begin, end) whose patch may hold one source position in one dimension.
VSS_HOST_DEVICE Span cell_span(const Resize& resize, int64_t index, int64_t side) {
  return {resize.reader_begin(index) / side, ceil_div(resize.reader_end(index), side)};
}

// The coefficient of pixel (y, x) in a cell.
template <typename T>
VSS_HOST_DEVICE float coefficient(const PoolGeometry& g, const T* weight, int64_t cell_row,
                                  int64_t cell_column, int64_t y, int64_t x) {
  float total = 0;
  for (int64_t i = 0; i < g.side; ++i) {
    const float row = g.vertical.tap(cell_row * g.side + i).weight(y);
    if (row == 0.0f) continue;
    for (int64_t j = 0; j < g.side; ++j) {
      const float column = g.horizontal.tap(cell_column * g.side + j).weight(x);
      total += row * column * static_cast<float>(weight[i * g.side + j]);
    }
  }
  return total;
}

// Runs f(n, first, count) over groups of adjacent channels of each of `number` vectors; a full group
// has a count that the compiler knows, which is what lets it use wide registers.
template <typename Block, typename F>
VSS_HOST_DEVICE void for_channel_groups(const Block& block, int64_t number, int64_t channels,
                                        const F& f) {
  constexpr int kLanes = Block::kLanes;
  const int64_t groups = ceil_div<int64_t>(channels, kLanes);
  block.for_each(number * groups, [&](int64_t item) VSS_INLINE {
    const int64_t n = number == 1 ? 0 : item / groups;
    const int64_t first = (item - n * groups) * kLanes;
    if (first + kLanes <= channels) {
      f(n, first, kLanes);
    } else {
      f(n, first, static_cast<int>(channels - first));
    }
  });
}

// One cell of the result. Scratch: one float per pixel of the largest patch.
template <typename T, typename Block>
VSS_HOST_DEVICE void pool_cell(const Block& block, const PoolGeometry& g, const T* x, const T* weight,
                               const T* bias, T* out, int64_t index) {
  const int64_t cell_column = index % g.columns;
  const int64_t cell_row = index / g.columns % g.rows;
  const int64_t b = index / (g.columns * g.rows);
  const Span ys = patch_span(g.vertical, cell_row, g.side);
  const Span xs = patch_span(g.horizontal, cell_column, g.side);

  float* coefficients = block.scratch();  // [ys, xs]
  block.for_each(ys.size() * xs.size(), [&](int64_t i) {
    coefficients[i] = coefficient(g, weight, cell_row, cell_column, ys.begin + i / xs.size(),
                                  xs.begin + i % xs.size());
  });
  block.sync();

  const T* corner = x + b * g.x_batch + ys.begin * g.x_row + xs.begin * g.x_column;
  for_channel_groups(block, 1, g.channels, [&](int64_t, int64_t first, int count) VSS_INLINE {
    float total[Block::kLanes];
    for (int lane = 0; lane < count; ++lane) total[lane] = static_cast<float>(*bias);
    for (int64_t r = 0; r < ys.size(); ++r) {
      for (int64_t c = 0; c < xs.size(); ++c) {
        const float share = coefficients[r * xs.size() + c];
        const T* pixel = corner + r * g.x_row + c * g.x_column + first;
        VSS_SIMD
        for (int lane = 0; lane < count; ++lane)
          total[lane] += share * static_cast<float>(pixel[lane]);
      }
    }
    T* cell = out + index * g.channels + first;
    for (int lane = 0; lane < count; ++lane) cell[lane] = static_cast<T>(total[lane]);
  });
  block.sync();  // the scratch may be overwritten by the next cell
}

// The gradients of a strip of adjacent pixels. Scratch: one float for each pixel and cell.
template <typename T, typename Block>
VSS_HOST_DEVICE void pool_strip_backward(const Block& block, const PoolGeometry& g, const T* grad,
                                         const T* weight, T* grad_x, int64_t index) {
  const int64_t x = index % g.strips_in_row * g.strip;
  const int64_t y = index / g.strips_in_row % g.vertical.size;
  const int64_t b = index / (g.strips_in_row * g.vertical.size);
  const int64_t left = g.horizontal.size - x;
  const int64_t pixels = left < g.strip ? left : g.strip;
  const Span cell_rows = cell_span(g.vertical, y, g.side);
  const Span cell_columns = {cell_span(g.horizontal, x, g.side).begin,
                             cell_span(g.horizontal, x + pixels - 1, g.side).end};
  const int64_t cells = cell_rows.size() * cell_columns.size();

  float* coefficients = block.scratch();  // [pixels, cell_rows, cell_columns]
  block.for_each(pixels * cells, [&](int64_t i) {
    const int64_t cell = i % cells;
    coefficients[i] =
        coefficient(g, weight, cell_rows.begin + cell / cell_columns.size(),
                    cell_columns.begin + cell % cell_columns.size(), y, x + i / cells);
  });
  block.sync();

  T* strip = grad_x + ((b * g.vertical.size + y) * g.horizontal.size + x) * g.channels;
  for_channel_groups(block, pixels, g.channels, [&](int64_t n, int64_t first, int count) VSS_INLINE {
    float total[Block::kLanes] = {};
    for (int64_t r = 0; r < cell_rows.size(); ++r) {
      for (int64_t c = 0; c < cell_columns.size(); ++c) {
        const float share = coefficients[n * cells + r * cell_columns.size() + c];
        if (share == 0.0f) continue;  // not a reader after all
        const int64_t cell =
            (b * g.rows + cell_rows.begin + r) * g.columns + cell_columns.begin + c;
        const T* source = grad + cell * g.channels + first;
        VSS_SIMD
        for (int lane = 0; lane < count; ++lane)
          total[lane] += share * static_cast<float>(source[lane]);
      }
    }
    T* pixel = strip + n * g.channels + first;
    for (int lane = 0; lane < count; ++lane) pixel[lane] = static_cast<T>(total[lane]);
  });
  block.sync();  // the scratch may be overwritten by the next strip
}

// One cell's part of the gradients of weight and bias: side * side values, then the bias's. The
// launcher sums the parts of all cells. Scratch: one float per pixel of the largest patch.
template <typename T, typename Block>
VSS_HOST_DEVICE void pool_weight_backward(const Block& block, const PoolGeometry& g, const T* grad,
                                          const T* x, float* parts, int64_t index) {
  const int64_t cell_column = index % g.columns;
  const int64_t cell_row = index / g.columns % g.rows;
  const int64_t b = index / (g.columns * g.rows);
  const Span ys = patch_span(g.vertical, cell_row, g.side);
  const Span xs = patch_span(g.horizontal, cell_column, g.side);
  const T* cell = grad + index * g.channels;
  const T* corner = x + b * g.x_batch + ys.begin * g.x_row + xs.begin * g.x_column;

  constexpr int kPartials = 16;  // independent sums, which need not wait for each other
  float* products = block.scratch();  // [ys, xs]: gradient . pixel
  block.for_each(ys.size() * xs.size(), [&](int64_t i) {
    const T* pixel = corner + i / xs.size() * g.x_row + i % xs.size() * g.x_column;
    float partial[kPartials] = {};
    int64_t c = 0;
    for (; c + kPartials <= g.channels; c += kPartials) {
      VSS_UNROLL
      for (int n = 0; n < kPartials; ++n)
        partial[n] += static_cast<float>(cell[c + n]) * static_cast<float>(pixel[c + n]);
    }
    VSS_UNROLL
    for (int n = 0; n < kPartials; ++n)  // a known n keeps the array in registers
      if (c + n < g.channels)
        partial[n] += static_cast<float>(cell[c + n]) * static_cast<float>(pixel[c + n]);
    float total = 0;
    VSS_UNROLL
    for (int n = 0; n < kPartials; ++n) total += partial[n];
    products[i] = total;
  });
  block.sync();

  float* part = parts + index * (g.side * g.side + 1);
  block.for_each(g.side * g.side, [&](int64_t i) {
    const Tap row = g.vertical.tap(cell_row * g.side + i / g.side);
    const Tap column = g.horizontal.tap(cell_column * g.side + i % g.side);
    const float* first = products + (row.first - ys.begin) * xs.size() - xs.begin;
    const float* second = products + (row.second - ys.begin) * xs.size() - xs.begin;
    const float upper = (1 - column.share) * first[column.first] + column.share * first[column.second];
    const float lower =
        (1 - column.share) * second[column.first] + column.share * second[column.second];
    part[i] = (1 - row.share) * upper + row.share * lower;
  });
  const float total = block.sum(g.channels, [&](int64_t c) { return static_cast<float>(cell[c]); });
  block.for_each(1, [&](int64_t) { part[g.side * g.side] = total; });
  block.sync();
}

}  // namespace vss::focal
