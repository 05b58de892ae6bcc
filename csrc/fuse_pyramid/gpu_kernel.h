// fuse_pyramid on a GPU, for levels whose neighbouring columns are adjacent: the algorithms of
// kernel.h and backward.h, where a thread takes kWidth neighbouring columns. What is decided for a
// row is decided once for all of them, and the first level, the result and the incoming gradient
// move kWidth columns at a time.
#pragma once

#include "../math/hat.h"
#include "../math/pack.h"
#include "backward.h"
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

// Runs (see backward.h) with 32-bit positions.
class GpuRuns {
 public:
  VSS_DEVICE GpuRuns(const Resize& resize, float* scratch)
      : hat_(resize),
        resized_(static_cast<int>(resize.resized)),
        size_(static_cast<int>(resize.size)),
        weights_(scratch),
        begins_(reinterpret_cast<int32_t*>(scratch + resized_)) {}

  // Call sync() afterwards.
  VSS_DEVICE void tabulate(const Block& block) const {
    for (int i = block.rank(); i < resized_; i += block.size()) {
      const float source = hat_.source(i);
      const int first = static_cast<int>(source);
      const int before = i > 0 ? static_cast<int>(hat_.source(i - 1)) : -1;
      const int end = i == resized_ - 1 ? size_ : first;
      weights_[i] = source - static_cast<float>(first);
#pragma unroll 1
      for (int cell = before + 1; cell <= end; ++cell) begins_[cell] = cell <= first ? i : i + 1;
    }
  }

  // Calls add(position, weight) for every output position that reads `cell`, in order.
  template <typename F>
  VSS_DEVICE void for_outputs(int cell, const F& add) const {
    constexpr int kBatch = 4;  // on their way from memory at a time
    const int own = begins_[cell], end = begins_[cell + 1];
#pragma unroll 1
    for (int begin = cell > 0 ? begins_[cell - 1] : own; begin < end; begin += kBatch) {
      VSS_UNROLL
      for (int i = 0; i < kBatch; ++i) {
        const int position = begin + i;
        if (position >= end) continue;
        const float weight = weights_[position];
        add(position, position < own ? weight : 1.0f - weight);
      }
    }
  }

 private:
  Hat hat_;
  int resized_, size_;
  float* weights_;
  int32_t* begins_;  // of each cell's run, and the end of the last
};

// FuseBackward of kCount neighbouring columns at a time, with 32-bit indices.
template <typename T, int kCount>
struct GpuFuseBackward {
  PyramidBackward p;
  const T* grad;
  T* grad_levels[kMaxLevels];

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const int bands = static_cast<int>(p.bands), chunk = static_cast<int>(p.chunk);
    const int64_t plane = index / bands;
    const int band = static_cast<int>(index - plane * bands);
    const T* incoming = grad + plane * p.rows * p.columns;
    float* row_sums = block.scratch();  // [chunk, columns]; first, since packs must be aligned
    float* tables = row_sums + p.chunk * p.columns;
    for (int l = 0; l < p.levels; ++l) {
      const GpuRuns row_runs(p.vertical[l], tables);
      const GpuRuns column_runs(p.horizontal[l], tables + 2 * p.rows + 1);
      row_runs.tabulate(block);
      column_runs.tabulate(block);
      block.sync();
      const int64_t rows = p.vertical[l].size;
      const int cells = static_cast<int>(p.horizontal[l].size);
      const int end = static_cast<int>(rows * (band + 1) / bands);
      for (int begin = static_cast<int>(rows * band / bands); begin < end; begin += chunk) {
        const int count = end - begin < chunk ? end - begin : chunk;
        sum_rows(block, row_runs, begin, count, incoming, row_sums);
        block.sync();
        sum_columns(block, column_runs, count, cells, row_sums,
                    grad_levels[l] + (plane * rows + begin) * cells);
        block.sync();
      }
    }
  }

 private:
  VSS_DEVICE void sum_rows(const Block& block, const GpuRuns& runs, int begin, int count,
                           const T* incoming, float* row_sums) const {
    const int columns = static_cast<int>(p.columns), packs = columns / kCount;
    for (int item = block.rank(); item < count * packs; item += block.size()) {
      const int row = item / packs;
      const T* from = incoming + (item - row * packs) * kCount;
      Pack<kCount> total = {};
      runs.for_outputs(begin + row, [&](int y, float weight) VSS_LAMBDA {
        total.add(weight, load_pack<kCount>(from + int64_t{y} * columns));
      });
      store_pack(row_sums + item * kCount, total);
    }
  }

  VSS_DEVICE void sum_columns(const Block& block, const GpuRuns& runs, int count, int cells,
                              const float* row_sums, T* result) const {
    for (int item = block.rank(); item < count * cells; item += block.size()) {
      const int row = item / cells;
      const float* from = row_sums + row * static_cast<int>(p.columns);
      float total = 0;
      runs.for_outputs(item - row * cells,
                       [&](int x, float weight) VSS_LAMBDA { total += weight * from[x]; });
      result[item] = static_cast<T>(total);
    }
  }
};

}  // namespace vss::inline VSS_MACHINE::fuse_pyramid

#endif
