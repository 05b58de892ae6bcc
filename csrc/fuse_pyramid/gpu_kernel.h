// fuse_pyramid on a GPU, for levels whose neighbouring columns are adjacent: the algorithm of
// kernel.h, where a thread takes kWidth neighbouring columns. What is decided for a row is decided
// once for all of them, and the first level and the result move kWidth columns at a time.
#pragma once

#include "../math/pack.h"
#include "kernel.h"

#if VSS_GPU_CODE

namespace vss::inline VSS_MACHINE::fuse_pyramid {

constexpr int kWidth = 4;
constexpr int kGpuThreads = 256;

// What an output row reads of a level, in scratch.
struct alignas(8) RowTap {
  float weight;  // of the second of two source rows
  int32_t first;
};

// What kWidth output columns read of a level, in scratch.
struct alignas(16) ColumnTaps {
  int32_t first[kWidth], second[kWidth];
  float weight[kWidth];  // of the second
};

// kRows rows of a few planes (one channel of one sample). kAligned: whole packs of columns.
template <typename T, bool kAligned>
struct GpuFuseColumns {
  Pyramid p;
  Sources<T> sources;
  T* out;
  int bands, planes, groups;  // groups of kWidth columns in a row

  // A block has two items for each thread, so that its tables serve several planes.
  VSS_INLINE int planes_of_a_block() const {
    return groups < kGpuThreads ? 2 * kGpuThreads / groups : 1;
  }
  int64_t blocks() const { return int64_t{bands} * cdiv(planes, planes_of_a_block()); }
  int64_t scratch_floats() const {
    return static_cast<int64_t>(p.others * (kRows * sizeof(RowTap) + groups * sizeof(ColumnTaps)) /
                                sizeof(float));
  }

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const int part = static_cast<int>(index) / bands;
    const int y = (static_cast<int>(index) - part * bands) * kRows;
    auto* rows = reinterpret_cast<RowTap*>(block.scratch());                 // [levels, kRows]
    auto* columns = reinterpret_cast<ColumnTaps*>(rows + p.others * kRows);  // [levels, groups]
    tabulate(block, y, rows, columns);
    block.sync();

    const int first = part * planes_of_a_block(), left = planes - first;
    const int items = (left < planes_of_a_block() ? left : planes_of_a_block()) * groups;
    for (int item = block.rank(); item < items; item += block.size()) {
      const int plane = item / groups, group = item - plane * groups;
      fuse(first + plane, y, group * kWidth, rows, columns + group);
    }
    block.sync();  // the scratch may be overwritten by the next block
  }

 private:
  VSS_DEVICE void tabulate(const Block& block, int y, RowTap* rows, ColumnTaps* columns) const {
    const int last_row = static_cast<int>(p.rows) - 1;
    for (int i = block.rank(); i < p.others * kRows; i += block.size()) {
      const Resize& vertical = p.levels[i / kRows].vertical;
      const int row = y + i % kRows < last_row ? y + i % kRows : last_row;
      const Tap tap = vertical.tap(row);
      rows[i] = {tap.weight, static_cast<int32_t>(tap.first)};
    }
    const int last_column = static_cast<int>(p.columns) - 1;
    for (int i = block.rank(); i < p.others * groups * kWidth; i += block.size()) {
      const int level = i / (groups * kWidth), column = i - level * groups * kWidth;
      const Tap tap = p.levels[level].horizontal.tap(column < last_column ? column : last_column);
      ColumnTaps& taps = columns[i / kWidth];
      taps.first[i % kWidth] = static_cast<int32_t>(tap.first);
      taps.second[i % kWidth] = static_cast<int32_t>(tap.second);
      taps.weight[i % kWidth] = tap.weight;
    }
  }

  VSS_DEVICE void fuse(int plane, int y, int x, const RowTap* rows,
                       const ColumnTaps* columns) const {
    const int n = plane / static_cast<int>(p.channels);
    const int channel = plane - n * static_cast<int>(p.channels);
    const int count = static_cast<int>(p.columns) - x;  // that are left, also more than kWidth
    const int rows_left = static_cast<int>(p.rows) - y;
    const T* from =
        sources.first + n * p.first.batch + channel * p.first.channel + y * p.first.row + x;
    Pack<kWidth> total[kRows];
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r)
      if (r < rows_left) total[r] = load_columns(from + r * p.first.row, count);

    for (int l = 0; l < p.others; ++l) {
      const Strides& strides = p.levels[l].strides;
      const T* map = sources.others[l] + n * strides.batch + channel * strides.channel;
      const int last = static_cast<int>(p.levels[l].vertical.size) - 1;
      const ColumnTaps taps = columns[l * groups];
      const auto read = [&](int row) VSS_LAMBDA {
        const T* source = map + (row < last ? row : last) * strides.row;
        Pack<kWidth> result;
        VSS_UNROLL
        for (int i = 0; i < kWidth; ++i) {
          result.at[i] = (1.0f - taps.weight[i]) * static_cast<float>(source[taps.first[i]]) +
                         taps.weight[i] * static_cast<float>(source[taps.second[i]]);
        }
        return result;
      };
      const RowTap* row_taps = rows + l * kRows;
      int position = row_taps[0].first;
      Pack<kWidth> upper = read(position), lower = read(position + 1);
      VSS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const RowTap tap = row_taps[r];
#pragma unroll 1  // mostly none or one; two where rounding skips a row
        while (position < tap.first) {
          ++position;
          upper = lower;
          lower = read(position + 1);
        }
        total[r].add(1.0f - tap.weight, upper);
        total[r].add(tap.weight, lower);
      }
    }

    T* to = out + (static_cast<int64_t>(plane) * p.rows + y) * p.columns + x;
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r)
      if (r < rows_left) store_columns(to + r * p.columns, total[r], count);
  }

  VSS_DEVICE static Pack<kWidth> load_columns(const T* from, int count) {
    if constexpr (kAligned) {
      return load_pack<kWidth>(from);
    } else {
      Pack<kWidth> pack;
      VSS_UNROLL
      for (int i = 0; i < kWidth; ++i)
        if (i < count) pack.at[i] = static_cast<float>(from[i]);
      return pack;
    }
  }

  VSS_DEVICE static void store_columns(T* to, const Pack<kWidth>& pack, int count) {
    if constexpr (kAligned) {
      store_pack(to, pack);
    } else {
      VSS_UNROLL
      for (int i = 0; i < kWidth; ++i)
        if (i < count) to[i] = static_cast<T>(pack.at[i]);
    }
  }
};

}  // namespace vss::inline VSS_MACHINE::fuse_pyramid

#endif
