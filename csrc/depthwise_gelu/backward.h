// The gradients of depthwise_gelu, of which the forward pass saves nothing but its input.
//
// A block computes the convolution of its tile and of one pixel around it again, and from it, in
// scratch, the gradient of the convolution's result. Its correlation with the weights is the
// gradient of the tile, and its products with the tile's pixels, shifted by each tap, are the
// tile's part of the gradient of that tap: each pixel has one owner. A second kernel adds the parts
// up in a fixed order. Who needs the result of the forward pass again gets it on the way.
#pragma once

#include "kernel.h"

namespace vss::inline VSS_MACHINE::depthwise_gelu {

template <typename T, bool kGivesResult>
struct ConvolveTileBackward {
  static constexpr int kRows = kGpu ? 2 : 3;            // of a strip of the convolution
  static constexpr int kCorrelatedRows = kGpu ? 2 : 1;  // of a strip of the correlation

  Geometry g;
  const T *grad, *x, *weight, *bias;
  T* grad_x;     // nullptr: not wanted
  T* result;     // of the forward pass, if kGivesResult
  float* parts;  // [tile, parameter, channel]; nullptr: not wanted

  VSS_INLINE static int inner_floats(const Geometry& g) {
    return (g.tile.rows + 2) * (g.tile.columns + 2) * g.pitch();
  }
  static int64_t scratch_floats(const Geometry& g) {
    return inner_floats(g) + (1 + cdiv(g.tile.rows, kCorrelatedRows)) * kParameters * g.pitch();
  }

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const Tile tile(g, index);
    const int pitch = g.pitch();
    float* inner = block.scratch();  // gradient of the convolution: [row, column, channel]
    float* stored = inner + inner_floats(g);
    float* strip_sums = stored + kParameters * pitch;  // [strip, parameter, channel]
    store_parameters(block, g, tile, weight, bias, stored);
    block.sync();
    store_inner(block, tile, stored, inner);
    block.sync();
    correlate(block, tile, stored, inner, strip_sums);
    block.sync();
    if (parts != nullptr) {
      block.for_each(kParameters * tile.size.channels, [&](int64_t i) VSS_LAMBDA {
        const int n = static_cast<int>(i) / tile.size.channels;
        const int c = static_cast<int>(i) - n * tile.size.channels;
        float total = 0;
        for (int strip = 0; strip < cdiv(tile.size.rows, kCorrelatedRows); ++strip)
          total += strip_sums[(strip * kParameters + n) * pitch + c];
        parts[(tile.number * kParameters + n) * g.channels + tile.channel + c] = total;
      });
      block.sync();
    }
  }

 private:
  VSS_DEVICE Map<T> map_from(const Tile& tile, int channel, int count) const {
    return {x + tile.sample * g.x_batch + tile.channel + channel,
            g.x_row,
            g.x_column,
            g.rows,
            g.columns,
            count};
  }

  // Where a pixel of the incoming gradient, and of the gradient of x, is.
  VSS_DEVICE int64_t pixel_at(const Tile& tile, int y, int x, int channel) const {
    return ((tile.sample * g.rows + y) * g.columns + x) * g.channels + tile.channel + channel;
  }

  // Zero outside the map.
  VSS_DEVICE void store_inner(const Block& block, const Tile& tile, const float* stored,
                              float* inner) const {
    const int pitch = g.pitch(), halo_row = (g.tile.columns + 2) * pitch;
    const Range ys = halo_within(tile.row, tile.size.rows, g.rows);
    const Range xs = halo_within(tile.column, tile.size.columns, g.columns);
    const auto place = [&](int y, int x) {
      return inner + (y - tile.row + 1) * halo_row + (x - tile.column + 1) * pitch;
    };
    clear_border(block, tile, inner);
    for_strips<kRows>(
        block, static_cast<int>(ys.size()), tile.size.channels,
        [&](int strip, int channel, int count) VSS_LAMBDA {
          const int y = static_cast<int>(ys.begin) + strip * kRows;
          const int rows = Tile::least(static_cast<int>(ys.end) - y, kRows);
          float* to = place(y, 0) + channel;
          const int64_t row = static_cast<int64_t>(g.columns) * g.channels;
          const int64_t first = pixel_at(tile, y, 0, channel);
          convolve_strip<kRows>(
              map_from(tile, channel, count), Parameters(stored + channel, pitch), y,
              static_cast<int>(xs.begin), static_cast<int>(xs.end),
              [&](int x, const Floats(&sums)[kRows]) VSS_LAMBDA {
                const int64_t offset = first + static_cast<int64_t>(x) * g.channels;
                const T* pixel = grad + offset;
                const bool owns_column = tile.owns_column(x);
                VSS_UNROLL
                for (int r = 0; r < kRows; ++r) {
                  if (r >= rows) break;
                  fetch(pixel + r * row + kFetchColumns * static_cast<int64_t>(g.channels));
                  const NormalTail tail(sums[r]);
                  store(to + r * halo_row + x * pitch,
                        load(pixel + r * row, count) * gelu_derivative(sums[r], tail));
                  if constexpr (kGivesResult) {
                    if (owns_column && tile.owns_row(y + r))
                      store(result + offset + r * row, gelu(sums[r], tail), count);
                  }
                }
              });
        });
  }

  // The tile with one position more on either side, as far as there are any.
  VSS_INLINE static Range halo_within(int begin, int size, int limit) {
    return {begin > 0 ? begin - 1 : 0, Tile::least(begin + size + 1, limit)};
  }

  // Zeroes the positions around the tile that lie outside the map.
  VSS_DEVICE void clear_border(const Block& block, const Tile& tile, float* inner) const {
    const int pitch = g.pitch(), halo_row = (g.tile.columns + 2) * pitch;
    const int columns = tile.size.columns + 2, rows = tile.size.rows;
    block.for_each((2 * columns + 2 * rows) * cdiv(pitch, kLanes), [&](int64_t item) VSS_LAMBDA {
      const int groups = cdiv(pitch, kLanes), n = static_cast<int>(item) / groups;
      const bool beside = n >= 2 * columns;  // not above or below
      const int side = n - 2 * columns;
      const int y = beside ? side / 2 : (n < columns ? -1 : rows);
      const int x = beside ? (side % 2 == 0 ? -1 : columns - 2) : n % columns - 1;
      if (tile.row + y < 0 || tile.row + y >= g.rows || tile.column + x < 0 ||
          tile.column + x >= g.columns)
        store(inner + (y + 1) * halo_row + (x + 1) * pitch +
                  (static_cast<int>(item) - n * groups) * kLanes,
              Floats{});
    });
  }

  VSS_DEVICE void correlate(const Block& block, const Tile& tile, const float* stored,
                            const float* inner, float* strip_sums) const {
    const int pitch = g.pitch(), halo_row = (g.tile.columns + 2) * pitch;
    for_strips<kCorrelatedRows>(
        block, tile.size.rows, tile.size.channels,
        [&](int strip, int channel, int count) VSS_LAMBDA {
          const Map<T> map = map_from(tile, channel, count);
          const Parameters parameters(stored + channel, pitch);
          const int rows = Tile::least(tile.size.rows - strip * kCorrelatedRows, kCorrelatedRows);
          const int y = tile.row + strip * kCorrelatedRows;
          const int64_t row = static_cast<int64_t>(g.columns) * g.channels;
          const float* from = inner + strip * kCorrelatedRows * halo_row + channel;
          Floats window[kCorrelatedRows + 2][kSide] = {};
          const auto load_column = [&](int column, int place) VSS_LAMBDA {
            VSS_UNROLL
            for (int r = 0; r < kCorrelatedRows + 2; ++r)  // every strip has one row at least
              if (r < kSide || r < rows + 2)
                window[r][place] = load(from + r * halo_row + column * pitch);
          };
          load_column(0, 1);
          load_column(1, 2);
          Floats sums[kSide][kSide] = {}, bias_sum{};
          const T* pixel = map.data + y * map.row + tile.column * map.column;
          int64_t offset = pixel_at(tile, y, tile.column, channel);
          for (int column = 0; column < tile.size.columns;
               ++column, pixel += map.column, offset += g.channels) {
            VSS_UNROLL
            for (int r = 0; r < kCorrelatedRows + 2; ++r) {
              window[r][0] = window[r][1];
              window[r][1] = window[r][2];
            }
            load_column(column + 2, 2);
            VSS_UNROLL
            for (int r = 0; r < kCorrelatedRows; ++r) {
              if (r >= rows) break;
              fetch(pixel + r * map.row + kFetchColumns * map.column);
              const Floats value = load(pixel + r * map.row, count);
              Floats total{};
              VSS_UNROLL
              for (int i = 0; i < kSide; ++i) {
                VSS_UNROLL
                for (int j = 0; j < kSide; ++j) {
                  // The result's pixel that reads this one through tap (i, j).
                  const Floats reader = window[r + 2 - i][2 - j];
                  total += parameters.weights[i][j] * reader;
                  sums[i][j] += value * reader;
                }
              }
              bias_sum += window[r + 1][1];
              if (grad_x != nullptr) store(grad_x + offset + r * row, total, count);
            }
          }
          float* to = strip_sums + strip * kParameters * pitch + channel;
          VSS_UNROLL
          for (int n = 0; n < kTaps; ++n) store(to + n * pitch, sums[n / kSide][n % kSide]);
          store(to + kTaps * pitch, bias_sum);
        });
  }
};

// Adds up the parts of a slab's gradients of one parameter. A block has kRuns runs of threads on a
// GPU, each of which adds up every so manieth part.
template <typename T>
struct SumParts {
  static constexpr int kChannels = 32;
  static constexpr int kRuns = kGpu ? 16 : 1;
  static constexpr int64_t kScratchFloats = kRuns * kChannels;

  const float* parts;  // [tile, parameter, channel]
  int64_t tiles;
  int channels;
  T *grad_weight, *grad_bias;  // [channel, tap] and [channel]; nullptr: not wanted

  VSS_INLINE int slabs() const { return cdiv(channels, kChannels); }

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const int n = static_cast<int>(index / slabs());
    if ((n == kTaps ? grad_bias : grad_weight) == nullptr) return;
    const int first = static_cast<int>(index % slabs()) * kChannels;
    const int count = Tile::least(channels - first, kChannels);
    float* sums = block.scratch();  // [run, channel]
    const int groups = cdiv(count, kLanes);
    block.for_each(kRuns * groups, [&](int64_t item) VSS_LAMBDA {
      const int run = static_cast<int>(item) / groups;
      run_group(static_cast<int>(item) - run * groups, count, [&](int c, int lanes) VSS_LAMBDA {
        Floats total{};
        for (int64_t tile = run; tile < tiles; tile += kRuns)
          total += load(parts + (tile * kParameters + n) * channels + first + c, lanes);
        store(sums + run * kChannels + c, total, lanes);
      });
    });
    block.sync();
    block.for_each(count, [&](int64_t c) VSS_LAMBDA {
      float total = 0;
      for (int run = 0; run < kRuns; ++run) total += sums[run * kChannels + c];
      T* to = n == kTaps ? grad_bias + first + c : grad_weight + (first + c) * kTaps + n;
      *to = static_cast<T>(total);
    });
    block.sync();
  }
};

}  // namespace vss::inline VSS_MACHINE::depthwise_gelu
