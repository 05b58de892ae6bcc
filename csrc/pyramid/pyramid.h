// fuse_pyramid: the sum of a pyramid's levels at the size of the first, in one pass.
//
// A work item takes kRows output rows of one column, or of kLanes neighbouring ones, and keeps their
// sums in registers. Level by level it walks down its rows: a level's source row is resized
// horizontally once for all output rows that read it, and the vertical resize is what remains
// for each. No resized level exists in memory.
//
// There are two programs, for the two layouts that matter: neighbouring columns adjacent in memory
// (N, C, H, W), and neighbouring channels (N, H, W, C); the second one turns its tile in scratch.
#pragma once

#include "../common/resize.h"
#include "columns.h"

namespace vss::pyramid {

constexpr int kMaxLevels = 8;
constexpr int kRows = 8;  // output rows that a work item keeps in registers

// Strides in elements.
struct Strides {
  int64_t batch, channel, row, column;
};

// A level as it is resized to the first.
struct Level {
  Resize vertical, horizontal;
  Strides strides;
};

struct Pyramid {
  int64_t batch, channels, rows, columns;  // of the first level, and so of the result
  Strides first;
  int others;  // levels beside the first
  Level levels[kMaxLevels - 1];
  int tile_channels, tile_columns;  // what a block takes, besides kRows rows

  VSS_HOST_DEVICE int64_t bands() const { return ceil_div<int64_t>(rows, kRows); }
  VSS_HOST_DEVICE int64_t tiles() const { return ceil_div<int64_t>(columns, tile_columns); }
  VSS_HOST_DEVICE int64_t groups() const { return ceil_div<int64_t>(channels, tile_channels); }
  VSS_HOST_DEVICE int64_t blocks() const { return batch * groups() * bands() * tiles(); }

  // The scratch: taps of the rows, taps of the columns, then the tile that is turned.
  VSS_HOST_DEVICE int row_taps() const { return others * kRows * 3; }
  VSS_HOST_DEVICE int column_taps(int lanes) const { return others * 3 * table_width(lanes); }
  VSS_HOST_DEVICE int table_width(int lanes) const {
    return tile_columns > lanes ? tile_columns : lanes;
  }
  // Odd, so that a column of the tile does not lie in one bank of shared memory.
  VSS_HOST_DEVICE int pitch() const { return tile_columns + 1; }
  int64_t scratch_floats(int lanes, bool turned) const {
    return row_taps() + column_taps(lanes) + (turned ? kRows * tile_channels * pitch() : 0);
  }
};

// Where the levels' values are: the first's, then the others'.
template <typename T>
struct Sources {
  const T* first;
  const T* others[kMaxLevels - 1];
};

// The part of the result that one block computes.
struct Tile {
  int64_t n, channel, y, x;
  int channels, rows, columns;

  VSS_HOST_DEVICE Tile(const Pyramid& p, int64_t index) {
    x = index % p.tiles() * p.tile_columns;
    index /= p.tiles();
    y = index % p.bands() * kRows;
    index /= p.bands();
    channel = index % p.groups() * p.tile_channels;
    n = index / p.groups();
    columns = least(p.columns - x, p.tile_columns);
    rows = least(p.rows - y, kRows);
    channels = least(p.channels - channel, p.tile_channels);
  }

 private:
  VSS_HOST_DEVICE static int least(int64_t a, int b) { return a < b ? static_cast<int>(a) : b; }
};

// Taps are kept in scratch as first position, second position and share.
VSS_HOST_DEVICE void store_tap(const Tap& tap, float* first, int step) {
  first[0] = std::bit_cast<float>(static_cast<int32_t>(tap.first));
  first[step] = std::bit_cast<float>(static_cast<int32_t>(tap.second));
  first[2 * step] = tap.share;
}

template <typename Block>
VSS_HOST_DEVICE void tabulate_taps(const Block& block, const Pyramid& p, const Tile& tile) {
  constexpr int kLanes = Block::kLanes;
  float* row_taps = block.scratch();
  float* column_taps = row_taps + p.row_taps();
  const int table_width = p.table_width(kLanes);
  // A tile narrower than the lanes repeats its last column.
  const int width = tile.columns > kLanes ? tile.columns : kLanes;
  for (int l = 0; l < p.others; ++l) {
    block.for_each(kRows, [&](int64_t r) VSS_INLINE {
      const int64_t y = tile.y + (r < tile.rows ? r : tile.rows - 1);
      store_tap(p.levels[l].vertical.tap(y), row_taps + (l * kRows + r) * 3, 1);
    });
    block.for_each(width, [&](int64_t i) VSS_INLINE {
      const int64_t x = tile.x + (i < tile.columns ? i : tile.columns - 1);
      store_tap(p.levels[l].horizontal.tap(x), column_taps + l * 3 * table_width + i, table_width);
    });
  }
  block.sync();
}

// Adds one level to the sums. `read` yields a source row, resized to the item's columns.
template <int kLanes, typename Read>
VSS_HOST_DEVICE void add_level(const float* row_taps, int rows, const Read& read,
                               float (&total)[kRows][kLanes]) {
  float above[kLanes] = {}, below[kLanes] = {};
  int32_t above_row = -1, below_row = -1;
  VSS_UNROLL
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    const int32_t first = position(row_taps[3 * r]), second = position(row_taps[3 * r + 1]);
    const float share = row_taps[3 * r + 2];
    if (first != above_row) {
      if (first == below_row) {
        for (int lane = 0; lane < kLanes; ++lane) above[lane] = below[lane];
      } else {
        read(first, above);
      }
      above_row = first;
    }
    if (second != below_row) {
      if (second == above_row) {
        for (int lane = 0; lane < kLanes; ++lane) below[lane] = above[lane];
      } else {
        read(second, below);
      }
      below_row = second;
    }
    VSS_SIMD
    for (int lane = 0; lane < kLanes; ++lane)
      total[r][lane] += (1.0f - share) * above[lane] + share * below[lane];
  }
}

// Runs f(begin, count) for one group of kLanes in [0, size). The last overlaps the one before it, so
// that all are full and the compiler knows their count, unless there are fewer elements than lanes.
template <int kLanes, typename F>
VSS_HOST_DEVICE void run_group(int group, int size, const F& f) {
  if (size >= kLanes) {
    f(group * kLanes < size - kLanes ? group * kLanes : size - kLanes, kLanes);
  } else {
    f(0, size);
  }
}

// One tile of the result, of levels whose neighbouring columns are adjacent.
template <typename T, typename Block>
VSS_HOST_DEVICE void fuse_columns(const Block& block, const Pyramid& p, const Sources<T>& sources,
                                  T* out, int64_t index) {
  constexpr int kLanes = Block::kLanes;
  const Tile tile(p, index);
  tabulate_taps(block, p, tile);
  const float* row_taps = block.scratch();
  const float* column_taps = row_taps + p.row_taps();
  const int table_width = p.table_width(kLanes);
  const int groups = ceil_div(tile.columns, kLanes);
  block.for_each(groups * tile.channels, [&](int64_t item) VSS_INLINE {
    const int64_t channel = tile.channel + static_cast<int>(item) / groups;
    run_group<kLanes>(static_cast<int>(item) % groups, tile.columns, [&](int x, int count) VSS_INLINE {
      float total[kRows][kLanes] = {};
      const T* pixel = sources.first + tile.n * p.first.batch + channel * p.first.channel +
                       tile.y * p.first.row + tile.x + x;
      VSS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (r >= tile.rows) break;
        for (int lane = 0; lane < count; ++lane)
          total[r][lane] = static_cast<float>(pixel[r * p.first.row + lane]);
      }
      for (int l = 0; l < p.others; ++l) {
        const Strides& strides = p.levels[l].strides;
        const T* map = sources.others[l] + tile.n * strides.batch + channel * strides.channel;
        const float* taps = column_taps + l * 3 * table_width + x;
        const Columns<kLanes> columns(taps, table_width, p.levels[l].horizontal.size);
        const auto read = [&](int32_t y, float(&values)[kLanes]) VSS_INLINE {
          columns.read(map + y * strides.row, values);
        };
        add_level<kLanes>(row_taps + l * kRows * 3, tile.rows, read, total);
      }
      T* result = out + ((tile.n * p.channels + channel) * p.rows + tile.y) * p.columns + tile.x + x;
      VSS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (r >= tile.rows) break;
        for (int lane = 0; lane < count; ++lane)
          result[r * p.columns + lane] = static_cast<T>(total[r][lane]);
      }
    });
  });
  block.sync();  // the scratch may be overwritten by the next tile
}

// One tile of the result, of levels whose neighbouring channels are adjacent.
template <typename T, typename Block>
VSS_HOST_DEVICE void fuse_channels(const Block& block, const Pyramid& p, const Sources<T>& sources,
                                   T* out, int64_t index) {
  constexpr int kLanes = Block::kLanes;
  const Tile tile(p, index);
  tabulate_taps(block, p, tile);
  const float* row_taps = block.scratch();
  const float* column_taps = row_taps + p.row_taps();
  const int table_width = p.table_width(kLanes), pitch = p.pitch();
  float* turned = block.scratch() + p.row_taps() + p.column_taps(kLanes);  // [row, channel, column]
  const int groups = ceil_div(tile.channels, kLanes);
  block.for_each(groups * tile.columns, [&](int64_t item) VSS_INLINE {
    const int x = static_cast<int>(item) / groups;
    run_group<kLanes>(static_cast<int>(item) % groups, tile.channels, [&](int c, int count) VSS_INLINE {
      float total[kRows][kLanes] = {};
      const T* pixel = sources.first + tile.n * p.first.batch + tile.y * p.first.row +
                       (tile.x + x) * p.first.column + tile.channel + c;
      VSS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (r >= tile.rows) break;
        for (int lane = 0; lane < count; ++lane)
          total[r][lane] = static_cast<float>(pixel[r * p.first.row + lane]);
      }
      for (int l = 0; l < p.others; ++l) {
        const Strides& strides = p.levels[l].strides;
        const float* taps = column_taps + l * 3 * table_width + x;
        const T* map = sources.others[l] + tile.n * strides.batch + tile.channel + c;
        const T* first = map + position(taps[0]) * strides.column;
        const T* second = map + position(taps[table_width]) * strides.column;
        const float share = taps[2 * table_width];
        const auto read = [&](int32_t y, float(&values)[kLanes]) VSS_INLINE {
          const int64_t row = y * strides.row;
          VSS_SIMD
          for (int lane = 0; lane < count; ++lane)
            values[lane] = (1.0f - share) * static_cast<float>(first[row + lane]) +
                           share * static_cast<float>(second[row + lane]);
          for (int lane = count; lane < kLanes; ++lane) values[lane] = 0.0f;
        };
        add_level<kLanes>(row_taps + l * kRows * 3, tile.rows, read, total);
      }
      VSS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (r >= tile.rows) break;
        float* to = turned + (r * p.tile_channels + c) * pitch + x;
        for (int lane = 0; lane < count; ++lane) to[lane * pitch] = total[r][lane];
      }
    });
  });
  block.sync();

  const int column_groups = ceil_div(tile.columns, kLanes);
  block.for_each(tile.rows * tile.channels * column_groups, [&](int64_t item) VSS_INLINE {
    const int line = static_cast<int>(item) / column_groups;
    const int c = line / tile.rows, r = line % tile.rows;
    const float* from = turned + (r * p.tile_channels + c) * pitch;
    T* to = out + ((tile.n * p.channels + tile.channel + c) * p.rows + tile.y + r) * p.columns + tile.x;
    run_group<kLanes>(static_cast<int>(item) % column_groups, tile.columns,
                      [&](int x, int count) VSS_INLINE {
                        for (int lane = 0; lane < count; ++lane)
                          to[x + lane] = static_cast<T>(from[x + lane]);
                      });
  });
  block.sync();
}

}  // namespace vss::pyramid
