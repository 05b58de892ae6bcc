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

#include "../machine/machine.h"
#include "../math/resize.h"
#include "../math/simd.h"

namespace vss::inline VSS_MACHINE::focal_pool {

constexpr int kPoolThreads = 256;  // the most of a GPU's block

struct PoolGeometry {
  int64_t batch, channels;
  int64_t rows, columns;  // of cells
  int64_t side;           // of a sub-window
  Resize vertical, horizontal;
  int64_t x_batch, x_row, x_column;  // strides of the map in elements; its channels are adjacent
  int64_t strip;                     // adjacent pixels of a row whose gradients one block gathers
  int64_t strips_in_row;

  VSS_INLINE int64_t cells() const { return batch * rows * columns; }
  VSS_INLINE int64_t strips() const { return batch * vertical.size * strips_in_row; }
};

// The source positions [begin, end) that the sub-window of one cell reads in one dimension.
VSS_INLINE Range patch_range(const Resize& resize, int64_t cell, int64_t side) {
  return {resize.tap(cell * side).first, resize.tap(cell * side + side - 1).second + 1};
}

// The cells [begin, end) whose patch may hold one source position in one dimension.
VSS_INLINE Range cell_range(const Resize& resize, int64_t index, int64_t side) {
  return {resize.reader_begin(index) / side, cdiv(resize.reader_end(index), side)};
}

// The coefficient of pixel (y, x) in a cell.
template <typename T>
VSS_INLINE float coefficient(const PoolGeometry& g, const T* weight, int64_t cell_row,
                             int64_t cell_column, int64_t y, int64_t x) {
  float total = 0;
  for (int64_t i = 0; i < g.side; ++i) {
    const float row = g.vertical.tap(cell_row * g.side + i).weight_of(y);
    if (row == 0.0f) continue;
    for (int64_t j = 0; j < g.side; ++j) {
      const float column = g.horizontal.tap(cell_column * g.side + j).weight_of(x);
      total += row * column * static_cast<float>(weight[i * g.side + j]);
    }
  }
  return total;
}

// Runs f(n, first, count) over groups of adjacent channels of each of `number` vectors; a full
// group has a count that the compiler knows.
template <typename F>
VSS_INLINE void for_channel_groups(const Block& block, int64_t number, int64_t channels,
                                   const F& f) {
  const int64_t groups = cdiv<int64_t>(channels, kLanes);
  block.for_each(number * groups, [&](int64_t item) VSS_LAMBDA {
    const int64_t n = number == 1 ? 0 : item / groups;
    const int64_t first = (item - n * groups) * kLanes;
    if (first + kLanes <= channels) {
      f(n, first, kLanes);
    } else {
      f(n, first, static_cast<int>(channels - first));
    }
  });
}

// The patch of one cell, and where it begins in the map.
struct Patch {
  int64_t cell_row, cell_column;
  Range ys, xs;
  int64_t corner;
};

VSS_INLINE Patch patch_of(const PoolGeometry& g, int64_t index) {
  const int64_t cell_column = index % g.columns;
  const int64_t cell_row = index / g.columns % g.rows;
  const int64_t b = index / (g.columns * g.rows);
  const Range ys = patch_range(g.vertical, cell_row, g.side);
  const Range xs = patch_range(g.horizontal, cell_column, g.side);
  const int64_t corner = b * g.x_batch + ys.begin * g.x_row + xs.begin * g.x_column;
  return {cell_row, cell_column, ys, xs, corner};
}

// One cell of the result. Scratch: one float per pixel of the largest patch.
template <typename T>
struct PoolCell {
  PoolGeometry g;
  const T *x, *weight, *bias;
  T* out;

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const Patch patch = patch_of(g, index);
    const Range ys = patch.ys, xs = patch.xs;

    const T* corner = x + patch.corner;

    float* coefficients = block.scratch();  // [ys, xs]
    block.for_each(ys.size() * xs.size(), [&](int64_t i) {
      coefficients[i] = coefficient(g, weight, patch.cell_row, patch.cell_column,
                                    ys.begin + i / xs.size(), xs.begin + i % xs.size());
    });
    block.sync();

    for_channel_groups(block, 1, g.channels, [&](int64_t, int64_t first, int count) VSS_LAMBDA {
      Floats total = broadcast(static_cast<float>(*bias));
      for (int64_t r = 0; r < ys.size(); ++r) {
        for (int64_t c = 0; c < xs.size(); ++c) {
          const float weight = coefficients[r * xs.size() + c];
          total += weight * load(corner + r * g.x_row + c * g.x_column + first, count);
        }
      }
      store(out + index * g.channels + first, total, count);
    });
    block.sync();  // the scratch may be overwritten by the next cell
  }
};

// The gradients of a strip of adjacent pixels. Scratch: one float for each pixel and cell.
template <typename T>
struct PoolStripBackward {
  PoolGeometry g;
  const T *grad, *weight;
  T* grad_x;

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const int64_t x = index % g.strips_in_row * g.strip;
    const int64_t y = index / g.strips_in_row % g.vertical.size;
    const int64_t b = index / (g.strips_in_row * g.vertical.size);
    const int64_t left = g.horizontal.size - x;
    const int64_t pixels = left < g.strip ? left : g.strip;
    const Range cell_rows = cell_range(g.vertical, y, g.side);
    const Range cell_columns = {cell_range(g.horizontal, x, g.side).begin,
                                cell_range(g.horizontal, x + pixels - 1, g.side).end};
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
    for_channel_groups(
        block, pixels, g.channels, [&](int64_t n, int64_t first, int count) VSS_LAMBDA {
          Floats total{};
          for (int64_t r = 0; r < cell_rows.size(); ++r) {
            for (int64_t c = 0; c < cell_columns.size(); ++c) {
              const float weight = coefficients[n * cells + r * cell_columns.size() + c];
              if (weight == 0.0f) continue;  // the cell does not read this pixel after all
              const int64_t cell =
                  (b * g.rows + cell_rows.begin + r) * g.columns + cell_columns.begin + c;
              total += weight * load(grad + cell * g.channels + first, count);
            }
          }
          store(strip + n * g.channels + first, total, count);
        });
    block.sync();  // the scratch may be overwritten by the next strip
  }
};

// One cell's part of the gradients of weight and bias: side * side values, then the bias's;
// host.cpp sums the parts of all cells. Scratch: one float per pixel of the largest patch.
template <typename T>
struct PoolWeightBackward {
  PoolGeometry g;
  const T *grad, *x;
  float* parts;

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const Patch patch = patch_of(g, index);
    const Range ys = patch.ys, xs = patch.xs;
    const T* cell = grad + index * g.channels;
    const T* corner = x + patch.corner;

    float* products = block.scratch();  // [ys, xs]: gradient . pixel
    block.for_each(ys.size() * xs.size(), [&](int64_t i) {
      products[i] = dot(cell, corner + i / xs.size() * g.x_row + i % xs.size() * g.x_column);
    });
    block.sync();

    float* part = parts + index * (g.side * g.side + 1);
    block.for_each(g.side * g.side, [&](int64_t i) {
      const Tap row = g.vertical.tap(patch.cell_row * g.side + i / g.side);
      const Tap column = g.horizontal.tap(patch.cell_column * g.side + i % g.side);
      const float* first = products + (row.first - ys.begin) * xs.size() - xs.begin;
      const float* second = products + (row.second - ys.begin) * xs.size() - xs.begin;
      const float upper =
          (1 - column.weight) * first[column.first] + column.weight * first[column.second];
      const float lower =
          (1 - column.weight) * second[column.first] + column.weight * second[column.second];
      part[i] = (1 - row.weight) * upper + row.weight * lower;
    });
    const float total =
        block.sum(g.channels, [&](int64_t c) { return static_cast<float>(cell[c]); });
    block.for_each(1, [&](int64_t) { part[g.side * g.side] = total; });
    block.sync();
  }

  // The scalar product of two vectors of channels, as 16 independent sums that need not wait for
  // each other. On a GPU one thread has them all.
  VSS_DEVICE float dot(const T* a, const T* b) const {
    constexpr int kPartials = 16, kVectors = kPartials / kLanes;
    Floats partial[kVectors] = {};
    int64_t c = 0;
    for (; c + kPartials <= g.channels; c += kPartials) {
      VSS_UNROLL
      for (int n = 0; n < kVectors; ++n)
        partial[n] += load(a + c + n * kLanes) * load(b + c + n * kLanes);
    }
    VSS_UNROLL
    for (int n = 0; n < kVectors; ++n) {  // a known n keeps the array in registers
      const int left = static_cast<int>(g.channels - c) - n * kLanes;
      const int count = left < kLanes ? left : kLanes;
      if (left > 0) partial[n] += load(a + c + n * kLanes, count) * load(b + c + n * kLanes, count);
    }
    float total = 0;
    VSS_UNROLL
    for (int n = 0; n < kVectors; ++n) {
      for (int i = 0; i < kLanes; ++i) total += lane(partial[n], i);
    }
    return total;
  }
};

}  // namespace vss::inline VSS_MACHINE::focal_pool
