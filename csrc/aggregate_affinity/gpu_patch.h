// How the published chains lie on a GPU: one thread for each coarse position. It owns the patch of
// every grid that lies there, 1x1 coarse, 2x2 middle and 4x4 fine elements, so that all sizes are
// covered without remainder and a patch's rows are single loads and stores of its width.
#pragma once

#include "planes.h"

// VSS_LOOP: the loop that follows stays one; copies of its body would only be more code.
#if defined(VSS_CUDA)
#define VSS_LOOP _Pragma("unroll 1")
#else
#define VSS_LOOP
#endif

namespace vss::inline VSS_MACHINE::aggregate_affinity {

// One grid's planes in shared memory, framed by zeros as in program.h. The last zeros of a row
// stand before the next one.
struct PatchGrid {
  int pitch, channel, origin;     // floats of a row and of a plane; where element (0, 0) lies
  float row_scale, column_scale;  // from this grid's positions to those of the next coarser grid
};

// The coarse positions' rows are rounded up to this many threads.
constexpr int kPatchColumns = 4;
constexpr int kPatchThreads = 512;  // of a block, at most: as many as registers allow

inline int patch_row_threads(int64_t width) {
  return static_cast<int>(cdiv<int64_t>(width, kPatchColumns)) * kPatchColumns;
}

// A grid with patches of `side` for `height` x `width` coarse positions. The pitch lets the threads
// of a warp, which lie on several rows, read `side` floats each without bank conflicts: going to
// the next row of patches moves on by as many banks as there are threads in a row.
inline PatchGrid make_patch_grid(int side, int64_t height, int64_t width, int border) {
  constexpr int kBanks = 32;
  const int margin = cdiv(border, side) * side;  // whole patches: rows stay aligned
  const int period = kBanks / side;
  int pitch = side * static_cast<int>(width) + margin;
  while (pitch % period != patch_row_threads(width) % period) pitch += side;
  const int rows = side * static_cast<int>(height);
  PatchGrid grid{};
  grid.pitch = pitch;
  grid.origin = margin + border * pitch;
  grid.channel = cdiv(margin + (rows + 2 * border) * pitch, 4) * 4;
  const auto scale = [side](int64_t size) {
    return static_cast<float>(size * side / 2 - 1) / static_cast<float>(size * side - 1);
  };
  if (side > 1) {
    grid.row_scale = scale(height);
    grid.column_scale = scale(width);
  }
  return grid;
}

struct PatchLayout {
  int height, width, row_threads;  // coarse positions; threads that stand for a row of them
  PatchGrid grids[kGrids];
};

// The coarse position that a thread owns. Threads without one work on the first position, and add
// nothing to sums and maps.
struct Patch {
  int row, column;
  bool live;

  VSS_DEVICE Patch(const PatchLayout& layout, int rank)
      : row(rank / layout.row_threads), column(rank % layout.row_threads) {
    live = row < layout.height && column < layout.width;
    row = live ? row : 0;
    column = live ? column : 0;
  }

  template <int kSide>
  VSS_DEVICE int offset(const PatchGrid& grid) const {
    return grid.origin + kSide * (row * grid.pitch + column);
  }
};

// A thread's patches of some channels, in registers.
template <int kSide, int kChannels>
struct Values {
  float at[kChannels][kSide][kSide];
};

// kCount neighbours that are loaded and stored at once.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T)) Vector {
  T at[kCount];
};

template <int kCount, typename T>
VSS_DEVICE Vector<T, kCount> load_vector(const T* from) {
  return *reinterpret_cast<const Vector<T, kCount>*>(from);
}

template <int kCount, typename T>
VSS_DEVICE void store_vector(T* to, const Vector<T, kCount>& x) {
  *reinterpret_cast<Vector<T, kCount>*>(to) = x;
}

// Loads the kSide elements at `from`, which are aligned, and kRadius more on each side.
template <int kSide, int kRadius>
VSS_DEVICE void load_row(const float* from, float (&row)[kSide + 2 * kRadius]) {
  constexpr int kAlong = kSide % 2 == 0 && kRadius % 2 == 0 ? 2 : 1;  // of the sides, at once
  const auto middle = load_vector<kSide>(from);
  VSS_UNROLL
  for (int x = 0; x < kSide; ++x) row[kRadius + x] = middle.at[x];
  VSS_UNROLL
  for (int x = 0; x < kRadius; x += kAlong) {
    const auto left = load_vector<kAlong>(from - kRadius + x);
    const auto right = load_vector<kAlong>(from + kSide + x);
    VSS_UNROLL
    for (int i = 0; i < kAlong; ++i) {
      row[x + i] = left.at[i];
      row[kRadius + kSide + x + i] = right.at[i];
    }
  }
}

template <int kSide, int kChannels>
VSS_DEVICE void store_values(const Patch& patch, const PatchGrid& grid,
                             const Values<kSide, kChannels>& values, float* planes) {
  if (!patch.live) return;
  VSS_UNROLL
  for (int c = 0; c < kChannels; ++c) {
    VSS_UNROLL
    for (int y = 0; y < kSide; ++y) {
      Vector<float, kSide> row;
      VSS_UNROLL
      for (int x = 0; x < kSide; ++x) row.at[x] = values.at[c][y][x];
      store_vector(planes + c * grid.channel + patch.offset<kSide>(grid) + y * grid.pitch, row);
    }
  }
}

// A patch of a map in global memory, whose rows must be aligned to whole patches.
template <int kSide>
VSS_DEVICE Values<kSide, 1> load_patch(const Patch& patch, const Maps& maps, int64_t map) {
  Values<kSide, 1> values;
  with_type(maps.kind, maps.data, [&](const auto* data) {
    const auto* from =
        data + map * maps.map_stride + patch.row * kSide * maps.row_stride + patch.column * kSide;
    VSS_UNROLL
    for (int y = 0; y < kSide; ++y) {
      const auto row = load_vector<kSide>(from + y * maps.row_stride);
      VSS_UNROLL
      for (int x = 0; x < kSide; ++x) values.at[0][y][x] = static_cast<float>(row.at[x]);
    }
  });
  return values;
}

template <int kSide>
VSS_DEVICE void store_patch(const Patch& patch, const Maps& maps, int64_t map,
                            const Values<kSide, 1>& values) {
  if (!patch.live) return;
  with_type(maps.kind, maps.data, [&](auto* data) {
    using T = std::remove_pointer_t<decltype(data)>;
    auto* to =
        data + map * maps.map_stride + patch.row * kSide * maps.row_stride + patch.column * kSide;
    VSS_UNROLL
    for (int y = 0; y < kSide; ++y) {
      Vector<T, kSide> row;
      VSS_UNROLL
      for (int x = 0; x < kSide; ++x) row.at[x] = static_cast<T>(values.at[0][y][x]);
      store_vector(to + y * maps.row_stride, row);
    }
  });
}

// Zeroes a whole number of vectors.
VSS_DEVICE void clear(const Block& block, float* begin, int floats) {
  VSS_LOOP
  for (int i = 4 * block.rank(); i < floats; i += 4 * block.size())
    store_vector(begin + i, Vector<float, 4>{});
}

// Makes the compiler work out anew what follows from `value`, rather than keep it in a register
// through all layers.
VSS_DEVICE int forget(int value) {
#if defined(VSS_CUDA)
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// Sums over the block: each warp leaves its own of sum n at `sums + place(n) * kMaxWarps + its
// number`. What no warp writes must be zero.
template <int kCount, typename Place>
VSS_DEVICE void leave_sums(const Block& block, float* partial, float* sums, const Place& place) {
  constexpr int kWarp = Block::kWarp;
  constexpr int kGroup = next_power_of_two(kCount);
  static_assert(kGroup <= kWarp);
  sum_over_warp<kGroup>(block, partial);
  const int rank = forget(block.rank());
  const int lane = rank % kWarp, n = lane / (kWarp / kGroup);
  if (lane % (kWarp / kGroup) == 0 && n < kCount)
    sums[place(n) * kMaxWarps + rank / kWarp] = partial[0];
}

template <int kCount>
VSS_DEVICE void leave_sums(const Block& block, float* partial, float* sums) {
  leave_sums<kCount>(block, partial, sums, [](int n) { return n; });
}

// After a barrier, every thread gets the sums.
template <int kCount>
VSS_DEVICE void take_sums(const Block& block, const float* sums, float (&total)[kCount]) {
  VSS_UNROLL
  for (int n = 0; n < kCount; ++n)
    total[n] = sums[n * kMaxWarps + block.rank() % kMaxWarps];  // each lane takes one warp's
  VSS_UNROLL
  for (int offset = kMaxWarps / 2; offset > 0; offset /= 2) {
    float other[kCount];
    VSS_UNROLL
    for (int n = 0; n < kCount; ++n) other[n] = total[n];
    block.exchange(other, offset);
    VSS_UNROLL
    for (int n = 0; n < kCount; ++n) total[n] += other[n];
  }
}

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
