// depthwise_gelu: a 3x3 convolution of each channel by itself, bias and GELU, in one pass.
//
// Maps are (batch, rows, columns, channels) with adjacent channels. A block takes a tile of the map
// and a slab of neighbouring channels; a work item walks along a strip of a few rows, for kLanes
// channels. Every column that it loads counts for three columns of the result, whose unfinished
// sums stay in registers, and every value for three rows.
//
// Zeros around the map are added like any other value, so a result does not depend on where tiles
// and strips begin.
#pragma once

#include "../machine/machine.h"
#include "../math/gelu.h"
#include "../math/simd.h"

namespace vss::inline VSS_MACHINE::depthwise_gelu {

constexpr int kSide = 3;
constexpr int kTaps = kSide * kSide;
constexpr int kParameters = kTaps + 1;  // of a channel: its weights, row by row, then its bias

// Rows, columns and channels that one block takes.
struct TileSize {
  int rows, columns, channels;
};

struct Geometry {
  int64_t batch;
  int rows, columns, channels;
  int64_t x_batch, x_row, x_column;                   // strides of x
  int64_t weight_channel, weight_row, weight_column;  // strides of the weights
  int64_t bias_channel;                               // stride of the bias
  TileSize tile;

  VSS_INLINE int vertical_tiles() const { return cdiv(rows, tile.rows); }
  VSS_INLINE int horizontal_tiles() const { return cdiv(columns, tile.columns); }
  VSS_INLINE int slabs() const { return cdiv(channels, tile.channels); }
  VSS_INLINE int64_t tiles() const {
    return batch * vertical_tiles() * static_cast<int64_t>(horizontal_tiles());
  }
  VSS_INLINE int64_t blocks() const { return tiles() * slabs(); }
  // Channels of a slab in scratch, where only whole vectors are loaded and stored.
  VSS_INLINE int pitch() const { return static_cast<int>(whole_lanes(tile.channels)); }
};

// What one block takes.
struct Tile {
  int64_t number;  // counted without slabs
  int64_t sample;
  int row, column, channel;
  TileSize size;

  VSS_INLINE Tile(const Geometry& g, int64_t index) {
    channel = static_cast<int>(index % g.slabs()) * g.tile.channels;
    number = index / g.slabs();
    const int64_t band = number / g.horizontal_tiles();
    column = static_cast<int>(number % g.horizontal_tiles()) * g.tile.columns;
    row = static_cast<int>(band % g.vertical_tiles()) * g.tile.rows;
    sample = band / g.vertical_tiles();
    size = {least(g.rows - row, g.tile.rows), least(g.columns - column, g.tile.columns),
            least(g.channels - channel, g.tile.channels)};
  }

  VSS_INLINE bool owns_row(int y) const { return y >= row && y < row + size.rows; }
  VSS_INLINE bool owns_column(int x) const { return x >= column && x < column + size.columns; }

  VSS_INLINE static int least(int a, int b) { return a < b ? a : b; }
};

// Runs f(strip, channel, count) for every strip of kRows of `rows` rows and group of channels.
template <int kRows, typename F>
VSS_DEVICE void for_strips(const Block& block, int rows, int channels, const F& f) {
  const int groups = cdiv(channels, kLanes);
  block.for_each(cdiv(rows, kRows) * groups, [&](int64_t item) VSS_LAMBDA {
    const int strip = static_cast<int>(item) / groups;
    run_group(static_cast<int>(item) - strip * groups, channels,
              [&](int channel, int count) VSS_LAMBDA { f(strip, channel, count); });
  });
}

// The parameters of a slab's channels, in scratch: [parameter, channel].
template <typename T>
VSS_DEVICE void store_parameters(const Block& block, const Geometry& g, const Tile& tile,
                                 const T* weight, const T* bias, float* parameters) {
  block.for_each(tile.size.channels, [&](int64_t c) VSS_LAMBDA {
    const T* first = weight + (tile.channel + c) * g.weight_channel;
    float* to = parameters + c;
    VSS_UNROLL
    for (int n = 0; n < kTaps; ++n)
      to[n * g.pitch()] =
          static_cast<float>(first[n / kSide * g.weight_row + n % kSide * g.weight_column]);
    to[kTaps * g.pitch()] = static_cast<float>(bias[(tile.channel + c) * g.bias_channel]);
  });
}

// The parameters of kLanes channels, in registers.
struct Parameters {
  Floats weights[kSide][kSide], bias;

  VSS_DEVICE Parameters(const float* stored, int pitch) {
    VSS_UNROLL
    for (int n = 0; n < kTaps; ++n) weights[n / kSide][n % kSide] = load(stored + n * pitch);
    bias = load(stored + kTaps * pitch);
  }
};

// A sample's map, from the first channel of a group on.
template <typename T>
struct Map {
  const T* data;
  int64_t row, column;  // strides
  int rows, columns;
  int count;  // channels of the group

  VSS_DEVICE bool has_row(int y) const { return y >= 0 && y < rows; }
  VSS_DEVICE bool has_column(int x) const { return x >= 0 && x < columns; }
};

// Asks for the cache line of a pixel to come. A CPU does not guess it: pixels are far apart.
template <typename T>
VSS_DEVICE void fetch(const T* pixel) {
  if constexpr (!kGpu) __builtin_prefetch(pixel);
}
constexpr int kFetchColumns = 12;  // how far ahead

// Convolves kRows rows from `y` on and calls use(x, sums) for the columns [begin, end). Rows and
// columns may lie outside the map, where it is zero; kWithin says that the rows do not.
template <int kRows, bool kWithin, typename T, typename F>
VSS_DEVICE void convolve_rows(const Map<T>& map, const Parameters& parameters, int y, int begin,
                              int end, const F& use) {
  const T* pixel = map.data + (y - 1) * map.row + (begin - 1) * map.column;
  bool within[kRows + 2];
  VSS_UNROLL
  for (int r = 0; r < kRows + 2; ++r) within[r] = kWithin || map.has_row(y - 1 + r);
  Floats last[kRows] = {}, next[kRows] = {};  // sums of column x - 1, which lacks x, and of x
  Floats whole[kRows];
  int x = begin - 1;
  const auto add_column = [&]() VSS_LAMBDA {
    Floats value[kRows + 2] = {};
    if (map.has_column(x)) {
      VSS_UNROLL
      for (int r = 0; r < kRows + 2; ++r)
        if (within[r]) value[r] = load(pixel + r * map.row, map.count);
      VSS_UNROLL
      for (int r = 2; r < kRows + 2; ++r)  // the strip above has read the others
        if (within[r]) fetch(pixel + r * map.row + kFetchColumns * map.column);
    }
    pixel += map.column;
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      Floats after = parameters.bias;
      VSS_UNROLL
      for (int i = 0; i < kSide; ++i) {
        last[r] += parameters.weights[i][2] * value[r + i];
        next[r] += parameters.weights[i][1] * value[r + i];
        after += parameters.weights[i][0] * value[r + i];
      }
      whole[r] = last[r];
      last[r] = next[r];
      next[r] = after;
    }
  };
  for (; x <= begin; ++x) add_column();
  for (; x <= end; ++x) {
    add_column();
    use(x - 1, whole);
  }
}

template <int kRows, typename T, typename F>
VSS_DEVICE void convolve_strip(const Map<T>& map, const Parameters& parameters, int y, int begin,
                               int end, const F& use) {
  if (!kGpu && y > 0 && y + kRows < map.rows) {
    convolve_rows<kRows, true>(map, parameters, y, begin, end, use);
  } else {
    convolve_rows<kRows, false>(map, parameters, y, begin, end, use);
  }
}

// One tile of the result.
template <typename T>
struct ConvolveTile {
  static constexpr int kRows = kGpu ? 4 : 3;  // of a strip

  Geometry g;
  const T *x, *weight, *bias;
  T* out;

  static int64_t scratch_floats(const Geometry& g) { return kParameters * g.pitch(); }

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const Tile tile(g, index);
    float* stored = block.scratch();
    store_parameters(block, g, tile, weight, bias, stored);
    block.sync();

    for_strips<kRows>(
        block, tile.size.rows, tile.size.channels,
        [&](int strip, int channel, int count) VSS_LAMBDA {
          const int first = tile.channel + channel;
          const Map<T> map = {
              x + tile.sample * g.x_batch + first, g.x_row, g.x_column, g.rows, g.columns, count};
          const int y = tile.row + strip * kRows;
          const int rows = Tile::least(tile.size.rows - strip * kRows, kRows);
          const int64_t row = static_cast<int64_t>(g.columns) * g.channels;
          T* to = out + (tile.sample * g.rows + y) * row + first;
          convolve_strip<kRows>(map, Parameters(stored + channel, g.pitch()), y, tile.column,
                                tile.column + tile.size.columns,
                                [&](int column, const Floats(&sums)[kRows]) VSS_LAMBDA {
                                  T* pixel = to + static_cast<int64_t>(column) * g.channels;
                                  VSS_UNROLL
                                  for (int r = 0; r < kRows; ++r)
                                    if (r < rows) store(pixel + r * row, gelu(sums[r]), count);
                                });
        });
    block.sync();  // the scratch may be overwritten by the next tile
  }
};

}  // namespace vss::inline VSS_MACHINE::depthwise_gelu
