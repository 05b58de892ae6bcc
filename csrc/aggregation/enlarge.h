// Bilinear enlargement with align_corners=True to the next finer grid, and its transpose.
#pragma once

#include "planes.h"

namespace vss::aggregation {

// The two coarse positions that a fine one reads, and the share of the second.
struct CornerTap {
  int first, second;
  float share;

  VSS_HOST_DEVICE float weight(int index) const {
    return (index == first ? 1.0f - share : 0.0f) + (index == second ? share : 0.0f);
  }
};

VSS_HOST_DEVICE CornerTap corner_tap(int position, float scale, int size) {
  const float source = position * scale;
  const int first = smaller(static_cast<int>(source), size - 1);
  return {first, smaller(first + 1, size - 1), source - static_cast<float>(first)};
}

// A range of fine positions that holds all those that read one coarse position, and perhaps a few
// more, whose tap then gives the weight zero.
struct Readers {
  int begin, end;

  VSS_HOST_DEVICE Readers(int index, float scale, int resized) : begin(0), end(resized) {
    if (scale == 0.0f) return;
    const int first = static_cast<int>((index - 1) / scale) - 1;
    begin = first < 0 ? 0 : first;
    end = smaller(static_cast<int>((index + 1) / scale) + 2, resized);
  }
};

// Adds the enlarged coarse planes to the fine ones.
template <typename Block>
VSS_HOST_DEVICE void enlarge(const Block& block, const Grid& coarse, const Grid& fine, int channels,
                             const float* source, float* target) {
  constexpr int kLanes = Block::kLanes;
  block.for_each(channels * fine.tiles, [&](int64_t index) {
    const int c = static_cast<int>(index) / fine.tiles;
    const Tile tile = tile_at<Block>(fine, static_cast<int>(index) % fine.tiles);
    const int count = smaller(kLanes, fine.width - tile.x);
    CornerTap columns[kLanes];
    for (int i = 0; i < count; ++i)
      columns[i] = corner_tap(tile.x + i, fine.column_scale, coarse.width);
    const float* plane = source + c * coarse.channel + coarse.origin;
    float* to = target + c * fine.channel + fine.origin + tile.x;
    for (int y = tile.y; y < smaller(tile.y + kRows, fine.height); ++y) {
      const CornerTap row = corner_tap(y, fine.row_scale, coarse.height);
      const float* upper = plane + row.first * coarse.pitch;
      const float* lower = plane + row.second * coarse.pitch;
      for (int i = 0; i < count; ++i) {
        const CornerTap& tap = columns[i];
        const float left = upper[tap.first] + row.share * (lower[tap.first] - upper[tap.first]);
        const float right = upper[tap.second] + row.share * (lower[tap.second] - upper[tap.second]);
        to[y * fine.pitch + i] += left + tap.share * (right - left);
      }
    }
  });
}

// The transpose of enlarge: gathers the fine gradient per coarse position, first along columns of the
// map into `spare` (coarse height x fine pitch for each channel), then along its rows.
template <typename Block>
VSS_HOST_DEVICE void shrink(const Block& block, const Grid& coarse, const Grid& fine, int channels,
                            const float* source, float* spare, float* target) {
  constexpr int kLanes = Block::kLanes;
  clear_frames(block, coarse, channels, target);
  block.for_each(channels * coarse.height * fine.tile_columns, [&](int64_t index) {
    const int x = static_cast<int>(index) % fine.tile_columns * kLanes;
    const int row = static_cast<int>(index) / fine.tile_columns;
    const int c = row / coarse.height;
    const int y = row % coarse.height;
    const float* plane = source + c * fine.channel + fine.origin + x;
    Lanes<Block> total{};
    const Readers readers(y, fine.row_scale, fine.height);
    for (int reader = readers.begin; reader < readers.end; ++reader) {
      const float weight = corner_tap(reader, fine.row_scale, coarse.height).weight(y);
      Lanes<Block> value;
      load(plane + reader * fine.pitch, value);
      total += weight * value;
    }
    store(spare + row * fine.pitch + x, total);
  });
  block.sync();
  const int row_groups = ceil_div(channels * coarse.height, kRows);
  block.for_each(row_groups * coarse.width, [&](int64_t index) {
    const int x = static_cast<int>(index) % coarse.width;
    const int first_row = static_cast<int>(index) / coarse.width * kRows;
    float total[kRows] = {};
    const int count = smaller(kRows, channels * coarse.height - first_row);
    const Readers readers(x, fine.column_scale, fine.width);
    for (int reader = readers.begin; reader < readers.end; ++reader) {
      const float weight = corner_tap(reader, fine.column_scale, coarse.width).weight(x);
      for (int r = 0; r < count; ++r)
        total[r] += weight * spare[(first_row + r) * fine.pitch + reader];
    }
    for (int r = 0; r < count; ++r) {
      const int c = (first_row + r) / coarse.height;
      const int y = (first_row + r) % coarse.height;
      target[c * coarse.channel + coarse.origin + y * coarse.pitch + x] = total[r];
    }
  });
}

}  // namespace vss::aggregation
