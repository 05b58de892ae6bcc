// The gradient of fuse_pyramid on a GPU: rows first, then columns, as in backward.h, but the
// incoming gradient is read once, for all levels.
//
// A thread owns kWidth neighbouring columns of a plane and walks down their rows. For each level it
// keeps the sums of the two level rows that the current row passes its gradient to. When the walk
// leaves the upper one, that one is complete and becomes a line in scratch. After every kRows rows
// the block sums the new lines over columns, while its next rows are on their way from memory.
//
// The cells of a line are R columns apart, so the cells of a warp would meet in every Rth bank of
// shared memory. Hence a line has an empty slot, to which no cell gives weight, after every kBanks
// columns: where R is a power of two the cells of a line then meet in no bank.
#pragma once

#include "../math/hat.h"
#include "../math/pack.h"
#include "backward.h"
#include "gpu_kernel.h"

#if VSS_GPU_CODE

namespace vss::inline VSS_MACHINE::fuse_pyramid {

constexpr int kGroup = 3;            // levels that share a reading of the incoming gradient
constexpr int kGatherThreads = 128;  // few, since they wait for each other after every kRows rows
constexpr int kBanks = 32;
constexpr int kBatch = 3;  // slots of a line that a cell reads at a time

// A level whose gradient is gathered.
struct GatheredLevel {
  Resize vertical, horizontal;
  Hat rows, columns;
  int height, width;
  float inverse_width;
  int first_line, first_cell;  // of its lines and cells among those of all levels
};

// The slots of a line that hold the readers of a cell.
struct alignas(8) Span {
  int32_t begin, end;
};

// The two level rows that a thread's current row passes its gradient to.
struct Walk {
  Pack<kWidth> upper, lower;
  float next;    // the lower one; the walk leaves the upper one where it reads from here on
  int row;       // of the level: the first that this round completes
  int complete;  // level rows of this round
};

template <typename T, bool kAligned>
struct GpuFuseBackward {
  const T* grad;
  T* results[kGroup] = {};
  GatheredLevel levels[kGroup] = {};
  int count;  // of levels
  int planes, rows, columns;
  int packs;              // of kWidth columns in a row
  int planes_of_a_block;  // whose packs have a thread each
  int bands;              // blocks that share the rows of a plane
  int pitch;              // slots of a line
  int lines = 0;          // of a plane in a round, of all levels
  int cells = 0;          // of a row, of all levels

  GpuFuseBackward(const PyramidBackward& p, int first, const T* grad, T* const* grad_levels,
                  const GpuLimits& limits)
      : grad(grad),
        count(std::min(p.levels - first, kGroup)),
        planes(static_cast<int>(p.planes)),
        rows(static_cast<int>(p.rows)),
        columns(static_cast<int>(p.columns)),
        packs(cdiv(columns, kWidth)),
        pitch(slot_of(packs * kWidth) + kBatch - 1) {
    for (int l = 0; l < count; ++l) {
      const Resize &vertical = p.vertical[first + l], &horizontal = p.horizontal[first + l];
      const int height = static_cast<int>(vertical.size), width = static_cast<int>(horizontal.size);
      levels[l] = {vertical,     horizontal, Hat(vertical), Hat(horizontal), height, width,
                   1.0f / width, lines,      cells};
      results[l] = grad_levels[first + l];
      // A round moves on by kRows * scale, and so completes at most one level row more than that;
      // two are left for the last round. The eighth is for what float32 rounds.
      lines += std::max(static_cast<int>(kRows * vertical.scale + 0.125f) + 1, 2);
      cells += width;
    }
    const int threads = static_cast<int>(std::min<int64_t>(limits.block_threads, kGatherThreads));
    planes_of_a_block = std::clamp(threads / packs, 1, std::max(planes, 1));
    // Two blocks for each multiprocessor, but of enough rows that few are read by two.
    constexpr int kBandRows = 32;
    bands =
        static_cast<int>(std::min(cdiv<int64_t>(2 * limits.multiprocessors, std::max(parts(), 1)),
                                  int64_t{cdiv(rows, kBandRows)}));
  }

  // How many blocks the planes make without bands.
  int parts() const { return cdiv(planes, planes_of_a_block); }
  int64_t blocks() const { return int64_t{parts()} * bands; }
  int threads() const { return packs * planes_of_a_block; }
  int64_t scratch_floats() const {
    return int64_t{kGroup} * kRows + 2 * cells +
           int64_t{pitch} * (count + planes_of_a_block * lines);
  }
  // Whether a thread for each pack is there, and room for the lines.
  bool fits(const GpuLimits& limits) const {
    return threads() <= std::min<int64_t>(limits.block_threads, kGpuThreads) &&
           shared_bytes<Block>(scratch_floats()) <= limits.block_shared_bytes;
  }

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const int part = static_cast<int>(index) / bands, band = static_cast<int>(index) - part * bands;
    const int first_plane = part * planes_of_a_block;
    const int own_planes = least(planes - first_plane, planes_of_a_block);
    float* row_sources = block.scratch();                                 // [levels, kRows]
    auto* spans = reinterpret_cast<Span*>(row_sources + kGroup * kRows);  // [cells]
    auto* column_sources = reinterpret_cast<float*>(spans + cells);       // [levels, pitch]
    float* sums = column_sources + count * pitch;                         // [planes, lines, pitch]

    Span owned[kGroup] = {};  // rows of each level
    Span read = {rows, 0};    // rows that these read, and perhaps a few more
    VSS_UNROLL
    for (int l = 0; l < kGroup; ++l) {
      if (l >= count) break;
      owned[l] = {row_of(levels[l], band), row_of(levels[l], band + 1)};
      if (owned[l].begin == owned[l].end) continue;
      const Resize& vertical = levels[l].vertical;
      read.begin = least(read.begin, static_cast<int>(vertical.reader_begin(owned[l].begin)));
      read.end = most(read.end, static_cast<int>(vertical.reader_end(owned[l].end - 1)));
    }
    tabulate_columns(block, spans, column_sources);
    tabulate_rows(block, band, read.begin, read.end, row_sources);
    const int plane = block.rank() / packs, x = (block.rank() - plane * packs) * kWidth;
    const int width = plane < own_planes ? columns - x : 0;  // that are left, also more than kWidth
    const T* from = grad + int64_t{first_plane + plane} * rows * columns + x;
    float* lines_of_thread = sums + plane * lines * pitch + slot_of(x);
    Incoming incoming;
    incoming.load(from, columns, width, read.begin, read.end);
    block.sync();

    Walk walks[kGroup];
    VSS_UNROLL
    for (int l = 0; l < kGroup; ++l) {
      walks[l].row = static_cast<int>(row_sources[l * kRows]);
      walks[l].next = static_cast<float>(walks[l].row + 1);
    }
    // The last round has no rows; it completes what is left.
#pragma unroll 1
    for (int y = read.begin; y < read.end + kRows; y += kRows) {
      walk(incoming, row_sources, width > 0, lines_of_thread, walks);
      block.sync();
      incoming.load(from, columns, width, y + kRows, read.end);
      tabulate_rows(block, band, y + kRows, read.end, row_sources);
      VSS_UNROLL
      for (int l = 0; l < kGroup; ++l) {
        if (l >= count) break;
        Walk& walked = walks[l];
        const int end = walked.row + walked.complete;
        const Span wanted = {most(walked.row, owned[l].begin), least(end, owned[l].end)};
        const float* line = sums + (levels[l].first_line + wanted.begin - walked.row) * pitch;
        T* to =
            results[l] + (int64_t{first_plane} * levels[l].height + wanted.begin) * levels[l].width;
        sum_columns(block, levels[l], own_planes, wanted.end - wanted.begin,
                    spans + levels[l].first_cell, column_sources + l * pitch, line, to);
        walked.row = end;
      }
      block.sync();
    }
  }

 private:
  // kRows rows of a thread's columns, as they are stored until they are needed: a conversion would
  // wait for them.
  struct Incoming {
    Stored<T, kWidth> rows[kRows];

    VSS_DEVICE void load(const T* from, int pitch, int width, int y, int end) {
      VSS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        rows[r] = {};
        if (y + r >= end || width <= 0) continue;
        const T* row = from + (y + r) * pitch;
        if constexpr (kAligned) {
          rows[r] = *reinterpret_cast<const Stored<T, kWidth>*>(row);
        } else {
          VSS_UNROLL
          for (int i = 0; i < kWidth; ++i)
            if (i < width) rows[r].at[i] = row[i];
        }
      }
    }
  };

  VSS_INLINE static int least(int a, int b) { return a < b ? a : b; }
  VSS_INLINE static int most(int a, int b) { return a > b ? a : b; }
  VSS_INLINE static int slot_of(int column) { return column + column / kBanks; }
  // The first row of a level that belongs to a band.
  VSS_INLINE int row_of(const GatheredLevel& level, int band) const {
    return level.height * band / bands;
  }

  // Where the slots of a line read each level, and which of them read each cell.
  VSS_DEVICE void tabulate_columns(const Block& block, Span* spans, float* sources) const {
    constexpr float kNowhere = -2.0f;
#pragma unroll 1
    for (int l = 0; l < count; ++l) {
      const GatheredLevel& level = levels[l];
      const Hat hat = level.columns;
      for (int slot = block.rank(); slot < pitch; slot += block.size()) {
        const int group = slot / (kBanks + 1), bank = slot - group * (kBanks + 1);
        const int column = slot - group;
        sources[l * pitch + slot] =
            bank < kBanks && column < columns ? hat.source(column) : kNowhere;
      }
      for (int cell = block.rank(); cell < level.width; cell += block.size()) {
        int begin = static_cast<int>(level.horizontal.reader_begin(cell));
        int end = static_cast<int>(level.horizontal.reader_end(cell));
#pragma unroll 1
        while (begin < end && Hat::weight(hat.source(begin), cell) == 0.0f) ++begin;
#pragma unroll 1
        while (begin < end && Hat::weight(hat.source(end - 1), cell) == 0.0f) --end;
        spans[level.first_cell + cell] = {slot_of(begin), slot_of(end - 1) + 1};
      }
    }
  }

  // Where the kRows rows from y on read each level. Behind the last one the walk reads where the
  // next band begins, so that it completes what belongs to this one.
  VSS_DEVICE void tabulate_rows(const Block& block, int band, int y, int end,
                                float* sources) const {
#pragma unroll 1  // one for a thread
    for (int i = block.rank(); i < kGroup * kRows; i += block.size()) {
      const GatheredLevel& level = levels[i / kRows];
      sources[i] = y < end ? level.rows.source(least(y + i % kRows, end - 1))
                           : static_cast<float>(row_of(level, band + 1));
    }
  }

  // Takes kRows rows of the gradient to the sums, and lines that are complete to scratch.
  VSS_DEVICE void walk(const Incoming& incoming, const float* row_sources, bool is_owner,
                       float* line, Walk (&walks)[kGroup]) const {
    VSS_UNROLL
    for (int l = 0; l < kGroup; ++l) walks[l].complete = 0;
    VSS_UNROLL
    for (int first = 0; first < kRows; first += kWidth) {
      Pack<kWidth> sources[kGroup];
      VSS_UNROLL
      for (int l = 0; l < kGroup; ++l)
        sources[l] = load_pack<kWidth>(row_sources + l * kRows + first);
      VSS_UNROLL
      for (int r = 0; r < kWidth; ++r) {
        const Pack<kWidth> row = unpack(incoming.rows[first + r]);
        VSS_UNROLL
        for (int l = 0; l < kGroup; ++l) {
          Walk& level = walks[l];
          const float source = sources[l].at[r];
#pragma unroll 1  // mostly none or one; two where rounding skips a row
          while (source >= level.next) {
            if (is_owner) {
              float* to = line + (levels[l].first_line + level.complete) * pitch;
              VSS_UNROLL
              for (int i = 0; i < kWidth; ++i) to[i] = level.upper.at[i];  // not aligned
            }
            level.upper = level.lower;
            level.lower = {};
            level.next += 1.0f;
            ++level.complete;
          }
          const float weight = level.next - source;
          level.upper.add(weight, row);
          level.lower.add(1.0f - weight, row);
        }
      }
    }
  }

  // Sums the lines of level rows to cells.
  VSS_DEVICE void sum_columns(const Block& block, const GatheredLevel& level, int own_planes,
                              int complete, const Span* spans, const float* sources,
                              const float* line, T* to) const {
#pragma unroll 1
    while (complete > 0) {
      const int now = complete >= 4 ? 4 : complete >= 2 ? 2 : 1;
      if (now == 4) {
        sum_lines<4>(block, level, own_planes, spans, sources, line, to);
      } else if (now == 2) {
        sum_lines<2>(block, level, own_planes, spans, sources, line, to);
      } else {
        sum_lines<1>(block, level, own_planes, spans, sources, line, to);
      }
      complete -= now;
      line += now * pitch;
      to += now * level.width;
    }
  }

  // A thread sums a cell of kCount neighbouring lines of a plane, since they have the same weights.
  template <int kCount>
  VSS_DEVICE void sum_lines(const Block& block, const GatheredLevel& level, int own_planes,
                            const Span* spans, const float* sources, const float* line,
                            T* to) const {
#pragma unroll 1
    for (int item = block.rank(); item < own_planes * level.width; item += block.size()) {
      // item / width, where half an item is more than what float32 rounds
      const int plane = static_cast<int>((static_cast<float>(item) + 0.5f) * level.inverse_width);
      const int cell = item - plane * level.width;
      const float center = static_cast<float>(cell);
      const Span span = spans[cell];
      const float* source = sources + span.begin;
      const float* from[kCount];
      float totals[kCount] = {};
      VSS_UNROLL
      for (int n = 0; n < kCount; ++n) from[n] = line + (plane * lines + n) * pitch + span.begin;
#pragma unroll 1
      for (int slot = span.begin; slot < span.end; slot += kBatch) {
        VSS_UNROLL
        for (int i = 0; i < kBatch; ++i) {
          const float weight = 1.0f - std::fabs(source[i] - center);
          VSS_UNROLL
          for (int n = 0; n < kCount; ++n) {
            // Slots that are empty or behind the last reader may hold anything.
            if (weight > 0.0f) totals[n] += weight * from[n][i];
          }
        }
        source += kBatch;
        VSS_UNROLL
        for (int n = 0; n < kCount; ++n) from[n] += kBatch;
      }
      T* result = to + plane * level.height * level.width + cell;
      VSS_UNROLL
      for (int n = 0; n < kCount; ++n) result[n * level.width] = static_cast<T>(totals[n]);
    }
  }
};

}  // namespace vss::inline VSS_MACHINE::fuse_pyramid

#endif
