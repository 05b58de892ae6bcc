// fuse_pyramid: the sum of a pyramid's levels at the size of the first, in one pass.
//
// A work item takes kRows output rows of one column, or of kLanes neighbouring ones, and keeps
// their sums in registers. Level by level it walks down its rows: a level's source row is resized
// horizontally once for all output rows that read it, and the vertical resize is what remains
// for each. No resized level exists in memory.
//
// There are two programs, for the two layouts that matter: neighbouring columns adjacent in memory
// (N, C, H, W), and neighbouring channels (N, H, W, C); the second one transposes its tile in
// scratch.
#pragma once

#include "../machine/machine.h"
#include "../math/upsampled_rows.h"

namespace vss::inline VSS_MACHINE::fuse_pyramid {

constexpr int kMaxLevels = 8;
constexpr int kRows = 8;  // output rows that a work item keeps in registers

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

  VSS_INLINE int64_t bands() const { return cdiv<int64_t>(rows, kRows); }
  VSS_INLINE int64_t tiles() const { return cdiv<int64_t>(columns, tile_columns); }
  VSS_INLINE int64_t groups() const { return cdiv<int64_t>(channels, tile_channels); }
  VSS_INLINE int64_t blocks() const { return batch * groups() * bands() * tiles(); }

  // The scratch: taps of the rows, source columns of each group of lanes, then a tile to transpose.
  VSS_INLINE int row_taps() const { return others * kRows * 3; }
  VSS_INLINE int column_groups() const { return cdiv(tile_columns, kLanes); }
  VSS_INLINE int column_taps() const { return others * column_groups() * SourceColumns::kStored; }
  // Odd, so that a column of the tile does not lie in one bank of shared memory.
  VSS_INLINE int pitch() const { return tile_columns + 1; }
  int64_t scratch_floats(bool channels_adjacent) const {
    return row_taps() + column_taps() + (channels_adjacent ? kRows * tile_channels * pitch() : 0);
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

  VSS_INLINE Tile(const Pyramid& p, int64_t index) {
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
  VSS_INLINE static int least(int64_t a, int b) { return a < b ? static_cast<int>(a) : b; }
};

VSS_INLINE int32_t position(float stored) { return std::bit_cast<int32_t>(stored); }

// For each level and row of a tile first source row, second source row and weight of the second.
VSS_DEVICE void store_row_taps(const Block& block, const Pyramid& p, const Tile& tile) {
  float* taps = block.scratch();
  block.for_each(p.others * kRows, [&](int64_t i) VSS_LAMBDA {
    const int r = static_cast<int>(i) % kRows, l = static_cast<int>(i) / kRows;
    const Tap tap = p.levels[l].vertical.tap(tile.y + (r < tile.rows ? r : tile.rows - 1));
    taps[3 * i] = std::bit_cast<float>(static_cast<int32_t>(tap.first));
    taps[3 * i + 1] = std::bit_cast<float>(static_cast<int32_t>(tap.second));
    taps[3 * i + 2] = tap.weight;
  });
}

// Adds one level to the sums. `read` yields a source row, resized to the item's columns.
template <typename Read>
VSS_DEVICE void add_level(const float* row_taps, int rows, const Read& read,
                          Floats (&total)[kRows]) {
  Floats above{}, below{};
  int32_t above_row = -1, below_row = -1;
  VSS_UNROLL
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    const int32_t first = position(row_taps[3 * r]), second = position(row_taps[3 * r + 1]);
    const float weight = row_taps[3 * r + 2];
    if (first != above_row) {
      above = first == below_row ? below : read(first);
      above_row = first;
    }
    if (second != below_row) {
      below = second == above_row ? above : read(second);
      below_row = second;
    }
    total[r] += (1.0f - weight) * above + weight * below;
  }
}

// Starts the sums with the first level's rows.
template <typename T>
VSS_DEVICE void load_rows(const T* pixel, int64_t stride, int rows, int count,
                          Floats (&total)[kRows]) {
  VSS_UNROLL
  for (int r = 0; r < kRows; ++r) {
    total[r] = Floats{};
    if (r < rows) total[r] = load(pixel + r * stride, count);
  }
}

// One tile of the result, of levels whose neighbouring columns are adjacent.
template <typename T>
struct FuseColumns {
  Pyramid p;
  Sources<T> sources;
  T* out;

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const Tile tile(p, index);
    const int groups = cdiv(tile.columns, kLanes);
    const float* row_taps = block.scratch();
    float* column_taps = block.scratch() + p.row_taps();
    store_row_taps(block, p, tile);
    block.for_each(p.others * groups, [&](int64_t i) VSS_LAMBDA {
      const int l = static_cast<int>(i) / groups, group = static_cast<int>(i) % groups;
      run_group(group, tile.columns, [&](int x, int) VSS_LAMBDA {
        SourceColumns(p.levels[l].horizontal, tile.x + x, tile.x + tile.columns, 1)
            .save(column_taps + (l * p.column_groups() + group) * SourceColumns::kStored);
      });
    });
    block.sync();

    block.for_each(groups * tile.channels, [&](int64_t item) VSS_LAMBDA {
      const int64_t channel = tile.channel + static_cast<int>(item) / groups;
      const int group = static_cast<int>(item) % groups;
      run_group(group, tile.columns, [&](int x, int count) VSS_LAMBDA {
        Floats total[kRows];
        load_rows(sources.first + tile.n * p.first.batch + channel * p.first.channel +
                      tile.y * p.first.row + tile.x + x,
                  p.first.row, tile.rows, count, total);
        for (int l = 0; l < p.others; ++l) {
          const Strides& strides = p.levels[l].strides;
          const T* map = sources.others[l] + tile.n * strides.batch + channel * strides.channel;
          const WindowedColumns columns(
              SourceColumns(column_taps + (l * p.column_groups() + group) * SourceColumns::kStored),
              p.levels[l].horizontal.size);
          add_level(
              row_taps + l * kRows * 3, tile.rows,
              [&](int32_t y) VSS_LAMBDA { return columns.read(map + y * strides.row); }, total);
        }
        T* to = out + ((tile.n * p.channels + channel) * p.rows + tile.y) * p.columns + tile.x + x;
        VSS_UNROLL
        for (int r = 0; r < kRows; ++r)
          if (r < tile.rows) store(to + r * p.columns, total[r], count);
      });
    });
    block.sync();  // the scratch may be overwritten by the next tile
  }
};

// One tile of the result, of levels whose neighbouring channels are adjacent.
template <typename T>
struct FuseChannels {
  Pyramid p;
  Sources<T> sources;
  T* out;

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const Tile tile(p, index);
    const int pitch = p.pitch();
    const float* row_taps = block.scratch();
    float* column_taps = block.scratch() + p.row_taps();
    float* transposed = column_taps + p.column_taps();  // [row, channel, column]
    store_row_taps(block, p, tile);
    block.for_each(p.others * tile.columns, [&](int64_t i) VSS_LAMBDA {
      const int l = static_cast<int>(i) / tile.columns, x = static_cast<int>(i) % tile.columns;
      const Tap tap = p.levels[l].horizontal.tap(tile.x + x);
      float* taps = column_taps + (l * p.tile_columns + x) * 3;
      taps[0] = std::bit_cast<float>(static_cast<int32_t>(tap.first));
      taps[1] = std::bit_cast<float>(static_cast<int32_t>(tap.second));
      taps[2] = tap.weight;
    });
    block.sync();

    const int groups = cdiv(tile.channels, kLanes);
    block.for_each(groups * tile.columns, [&](int64_t item) VSS_LAMBDA {
      const int x = static_cast<int>(item) / groups;
      run_group(static_cast<int>(item) % groups, tile.channels, [&](int c, int count) VSS_LAMBDA {
        Floats total[kRows];
        load_rows(sources.first + tile.n * p.first.batch + tile.y * p.first.row +
                      (tile.x + x) * p.first.column + tile.channel + c,
                  p.first.row, tile.rows, count, total);
        for (int l = 0; l < p.others; ++l) {
          const Strides& strides = p.levels[l].strides;
          const float* taps = column_taps + (l * p.tile_columns + x) * 3;
          const T* map = sources.others[l] + tile.n * strides.batch + tile.channel + c;
          const T* first = map + position(taps[0]) * strides.column;
          const T* second = map + position(taps[1]) * strides.column;
          const float weight = taps[2];
          const auto read = [&](int32_t y) VSS_LAMBDA {
            const int64_t row = y * strides.row;
            return (1.0f - weight) * load(first + row, count) + weight * load(second + row, count);
          };
          add_level(row_taps + l * kRows * 3, tile.rows, read, total);
        }
        VSS_UNROLL
        for (int r = 0; r < kRows; ++r) {
          if (r >= tile.rows) break;
          float* to = transposed + (r * p.tile_channels + c) * pitch + x;
          for (int i = 0; i < count; ++i) to[i * pitch] = lane(total[r], i);
        }
      });
    });
    block.sync();

    const int column_groups = cdiv(tile.columns, kLanes);
    block.for_each(tile.rows * tile.channels * column_groups, [&](int64_t item) VSS_LAMBDA {
      const int line = static_cast<int>(item) / column_groups;
      const int c = line / tile.rows, r = line % tile.rows;
      const float* from = transposed + (r * p.tile_channels + c) * pitch;
      T* to = out + ((tile.n * p.channels + tile.channel + c) * p.rows + tile.y + r) * p.columns +
              tile.x;
      run_group(static_cast<int>(item) % column_groups, tile.columns,
                [&](int x, int count) VSS_LAMBDA { store(to + x, load(from + x, count), count); });
    });
    block.sync();
  }
};

}  // namespace vss::inline VSS_MACHINE::fuse_pyramid
