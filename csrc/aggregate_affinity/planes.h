// Work on single planes: tiles, halos of zeros, and the way from and to maps in global memory.
#pragma once

#include "../math/simd.h"
#include "program.h"

namespace vss::inline VSS_MACHINE::aggregate_affinity {

// The first row and column of kRows rows of kLanes columns. Rows and columns beyond the grid
// take part in the arithmetic but are never stored other than as zeros.
struct Tile {
  int y, x;
};

VSS_DEVICE Tile tile_at(const Grid& g, int index) {
  return {index / g.tile_columns * kRows, index % g.tile_columns * kLanes};
}

VSS_DEVICE int smaller(int a, int b) { return a < b ? a : b; }

// Zeroes everything around the planes of a new tensor.
VSS_DEVICE void clear_halos(const Block& block, const Grid& g, int channels, float* planes) {
  const int gap = g.pitch - g.width;
  for (int c = 0; c < channels; ++c) {
    float* plane = planes + c * g.channel;
    block.for_each(g.origin, [&](int64_t i) {
      plane[i] = 0;
      plane[g.channel - 1 - i] = 0;
    });
    block.for_each(g.height * gap, [&](int64_t index) {
      const int i = static_cast<int>(index);
      plane[g.origin + i / gap * g.pitch + g.width + i % gap] = 0;
    });
  }
}

// Calls f(data) with the elements as their own type.
template <typename F>
VSS_DEVICE void with_type(Kind kind, void* data, const F& f) {
  if (kind == Kind::float16) return f(static_cast<c10::Half*>(data));
  if (kind == Kind::bfloat16) return f(static_cast<c10::BFloat16*>(data));
  f(static_cast<float*>(data));
}

#if !VSS_GPU_CODE
// Copies a row of a map to or from float32, a register at a time.
template <typename From, typename To>
void copy_row(const From* from, int count, To* to) {
  int x = 0;
  for (; x + kLanes <= count; x += kLanes) store(to + x, load(from + x));
  if (x < count) store(to + x, load(from + x, count - x), count - x);
}
#endif

// Runs f(plane offset, map element, columns) for every row of every tile.
template <typename F>
VSS_DEVICE void for_tile_rows(const Block& block, const Grid& g, const F& f) {
  block.for_each(g.tiles, [&](int64_t index) {
    const Tile tile = tile_at(g, static_cast<int>(index));
    for (int r = 0; r < kRows && tile.y + r < g.height; ++r)
      f(tile.y + r, tile.x, smaller(kLanes, g.width - tile.x));
  });
}

VSS_DEVICE void load_map(const Block& block, const Grid& g, const Maps& maps, int64_t map,
                         float* plane) {
  clear_halos(block, g, 1, plane);
  with_type(maps.kind, maps.data, [&](const auto* data) {
    const auto* source = data + map * maps.map_stride;
#if !VSS_GPU_CODE
    for (int y = 0; y < g.height; ++y)
      copy_row(source + y * maps.row_stride, g.width, plane + g.origin + y * g.pitch);
#else
    for_tile_rows(block, g, [&](int y, int x, int count) {
      const auto* from = source + y * maps.row_stride + x;
      float* to = plane + g.origin + y * g.pitch + x;
      for (int i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
      for (int i = count; i < kLanes; ++i) to[i] = 0;
    });
#endif
  });
}

VSS_DEVICE void store_map(const Block& block, const Grid& g, const Maps& maps, int64_t map,
                          const float* plane) {
  with_type(maps.kind, maps.data, [&](auto* data) {
    auto* target = data + map * maps.map_stride;
#if !VSS_GPU_CODE
    for (int y = 0; y < g.height; ++y)
      copy_row(plane + g.origin + y * g.pitch, g.width, target + y * maps.row_stride);
#else
    for_tile_rows(block, g, [&](int y, int x, int count) {
      const float* from = plane + g.origin + y * g.pitch + x;
      auto* to = target + y * maps.row_stride + x;
      for (int i = 0; i < count; ++i) to[i] = from[i];
    });
#endif
  });
}

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
