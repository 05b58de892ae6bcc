// Bilinear upsampling with align_corners=True to the next finer grid, and its adjoint.
#pragma once

#include "planes.h"

namespace vss::inline VSS_MACHINE::aggregate_affinity {

// The two coarse positions that a fine one reads, and the weight of the second.
struct CornerTap {
  int first, second;
  float weight;  // of the second

  VSS_DEVICE float weight_of(int index) const {
    return (index == first ? 1.0f - weight : 0.0f) + (index == second ? weight : 0.0f);
  }
};

VSS_DEVICE CornerTap corner_tap(int position, float scale, int size) {
  const float source = position * scale;
  const int first = smaller(static_cast<int>(source), size - 1);
  return {first, smaller(first + 1, size - 1), source - static_cast<float>(first)};
}

// A range of fine positions that holds all those that read one coarse position, and perhaps a few
// more, whose tap then gives the weight zero.
struct FinePositions {
  int begin, end;

  VSS_DEVICE FinePositions(int index, float scale, int resized) : begin(0), end(resized) {
    if (scale == 0.0f) return;
    const int first = static_cast<int>((index - 1) / scale) - 1;
    begin = first < 0 ? 0 : first;
    end = smaller(static_cast<int>((index + 1) / scale) + 2, resized);
  }
};

#if !VSS_GPU_CODE

// The taps of kLanes neighbouring fine columns. What they read fits into one register: two fine
// columns lie within one coarse column's width.
struct CornerColumns {
  int begin;  // the first coarse column
  Ints first, second;
  Floats weight;

  VSS_INLINE CornerColumns(int x, float scale, int size, int resized) {
    Ints position = lane_numbers() + x;
    position = position < resized ? position : Ints{} + (resized - 1);
    const Floats source = __builtin_convertvector(position, Floats) * scale;
    const Ints truncated = __builtin_convertvector(source, Ints), last = Ints{} + (size - 1);
    first = truncated < last ? truncated : last;
    second = first + 1 < last ? first + 1 : last;
    weight = source - __builtin_convertvector(first, Floats);
    begin = lane(first, 0);
    first -= begin;
    second -= begin;
  }
};

// Adds the upsampled coarse planes to the fine ones. Planes are framed by enough zeros for whole
// registers.
VSS_INLINE void upsample(const Block&, const Grid& coarse, const Grid& fine, int channels,
                         const float* source, float* target) {
  for (int x = 0; x < fine.width; x += kLanes) {
    const CornerColumns columns(x, fine.column_scale, coarse.width, fine.width);
    for (int c = 0; c < channels; ++c) {
      const float* plane = source + c * coarse.channel + coarse.origin + columns.begin;
      float* to = target + c * fine.channel + fine.origin + x;
      for (int y = 0; y < fine.height; ++y, to += fine.pitch) {
        const CornerTap row = corner_tap(y, fine.row_scale, coarse.height);
        const Floats upper = load(plane + row.first * coarse.pitch);
        const Floats lower = load(plane + row.second * coarse.pitch);
        const Floats read = upper + row.weight * (lower - upper);
        const Floats left = permute(read, columns.first), right = permute(read, columns.second);
        const Floats added = left + columns.weight * (right - left);
        store(to, load(to) + keep_first(added, fine.width - x));
      }
    }
  }
}

#else

// Adds the upsampled coarse planes to the fine ones.
VSS_DEVICE void upsample(const Block& block, const Grid& coarse, const Grid& fine, int channels,
                         const float* source, float* target) {
  block.for_each(channels * fine.tiles, [&](int64_t index) {
    const int c = static_cast<int>(index) / fine.tiles;
    const Tile tile = tile_at(fine, static_cast<int>(index) % fine.tiles);
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
        const float left = upper[tap.first] + row.weight * (lower[tap.first] - upper[tap.first]);
        const float right =
            upper[tap.second] + row.weight * (lower[tap.second] - upper[tap.second]);
        to[y * fine.pitch + i] += left + tap.weight * (right - left);
      }
    }
  });
}

#endif

// The adjoint of upsample: gathers the fine gradient per coarse position, first along columns of
// the map into `workspace` (coarse height x fine pitch for each channel), then along its rows.
VSS_DEVICE void upsample_adjoint(const Block& block, const Grid& coarse, const Grid& fine,
                                 int channels, const float* source, float* workspace,
                                 float* target) {
  clear_halos(block, coarse, channels, target);
  block.for_each(channels * coarse.height * fine.tile_columns, [&](int64_t index) {
    const int x = static_cast<int>(index) % fine.tile_columns * kLanes;
    const int row = static_cast<int>(index) / fine.tile_columns;
    const int c = row / coarse.height;
    const int y = row % coarse.height;
    const float* plane = source + c * fine.channel + fine.origin + x;
    Floats total{};
    const FinePositions positions(y, fine.row_scale, fine.height);
    for (int position = positions.begin; position < positions.end; ++position) {
      const float weight = corner_tap(position, fine.row_scale, coarse.height).weight_of(y);
      total += weight * load(plane + position * fine.pitch);
    }
    store(workspace + row * fine.pitch + x, total);
  });
  block.sync();
  const int row_groups = cdiv(channels * coarse.height, kRows);
  block.for_each(row_groups * coarse.width, [&](int64_t index) {
    const int x = static_cast<int>(index) % coarse.width;
    const int first_row = static_cast<int>(index) / coarse.width * kRows;
    float total[kRows] = {};
    const int count = smaller(kRows, channels * coarse.height - first_row);
    const FinePositions positions(x, fine.column_scale, fine.width);
    for (int position = positions.begin; position < positions.end; ++position) {
      const float weight = corner_tap(position, fine.column_scale, coarse.width).weight_of(x);
      for (int r = 0; r < count; ++r)
        total[r] += weight * workspace[(first_row + r) * fine.pitch + position];
    }
    for (int r = 0; r < count; ++r) {
      const int c = (first_row + r) / coarse.height;
      const int y = (first_row + r) % coarse.height;
      target[c * coarse.channel + coarse.origin + y * coarse.pitch + x] = total[r];
    }
  });
}

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
