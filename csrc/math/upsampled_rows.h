// What the kernels that resize maps stand on: where the maps lie, how output rows are grouped, and
// a source row resized horizontally for kLanes neighbouring output columns.
//
// A work item takes output rows that read the same source rows. So a source value is fetched and
// resized horizontally once for several output rows, and the vertical resize is what remains for
// each.
#pragma once

#include "resize.h"
#include "simd.h"

namespace vss::inline VSS_MACHINE {

// Strides in elements.
struct Strides {
  int64_t batch, channel, row, column;
};

// The output rows whose first source row, `first_source(row)`, is `index`. `guess` is any row at or
// before the first of them.
template <typename F>
VSS_DEVICE Range group_rows(int64_t index, int64_t rows, int64_t guess, const F& first_source) {
  int64_t begin = guess;
  while (begin < rows && first_source(begin) < index) ++begin;
  int64_t end = begin;
  while (end < rows && first_source(end) == index) ++end;
  return {begin, end};
}

// The source positions of kLanes neighbouring output columns, as offsets within a row. They fit 32
// bits: hosts copy maps of wilder strides.
struct SourceColumns {
  static constexpr int kStored = 3 * kLanes;  // floats of a table entry

  Ints first, second;
  Floats weight;  // of the second

  // Lanes from `end` on repeat the column before it; what they compute is not used.
  VSS_DEVICE SourceColumns(const Resize& horizontal, int64_t begin, int64_t end, int64_t stride) {
    for (int i = 0; i < kLanes; ++i) {
      const Tap tap = horizontal.tap(begin + i < end ? begin + i : end - 1);
      set_lane(first, i, static_cast<int32_t>(tap.first * stride));
      set_lane(second, i, static_cast<int32_t>(tap.second * stride));
      set_lane(weight, i, tap.weight);
    }
  }

  // The same, kept in kStored floats of scratch.
  VSS_DEVICE explicit SourceColumns(const float* table)
      : first(__builtin_bit_cast(Ints, load(table))),
        second(__builtin_bit_cast(Ints, load(table + kLanes))),
        weight(load(table + 2 * kLanes)) {}
  VSS_DEVICE void save(float* table) const {
    store(table, __builtin_bit_cast(Floats, first));
    store(table + kLanes, __builtin_bit_cast(Floats, second));
    store(table + 2 * kLanes, weight);
  }

  // One source row, resized horizontally.
  template <typename T>
  VSS_DEVICE Floats read(const T* row) const {
    return (1.0f - weight) * gather(row, first) + weight * gather(row, second);
  }
};

// The few source columns that kLanes neighbouring output columns of an enlarged row read. On a CPU
// fetching lane by lane costs more than all else, so where a register holds them they are loaded at
// once and permuted.
class RowWindow {
 public:
  // `first` and `last` are the outermost source columns, `size` that of a row of adjacent columns,
  // or zero where columns are not adjacent.
  VSS_DEVICE RowWindow(int32_t first, int32_t last, int64_t size) {
    if constexpr (kGpu) return;
    width_ = size < kLanes ? static_cast<int>(size) : kLanes;
    const int32_t latest = static_cast<int32_t>(size) - width_;
    begin_ = first < latest ? first : latest;
    fits_ = size > 0 && last - begin_ < kLanes;
  }

  VSS_DEVICE bool fits() const { return !kGpu && fits_; }
  template <typename T>
  VSS_DEVICE Floats load_row(const T* row) const {
    return load(row + begin_, width_);
  }
  VSS_DEVICE Floats read(Floats window, Ints columns) const {
#if VSS_GPU_CODE
    return window;
#else
    return permute(window, columns - begin_);
#endif
  }

 private:
  int32_t begin_ = 0;
  int width_ = 0;
  bool fits_ = false;
};

// Source columns that are read through a window where that is possible.
class WindowedColumns {
 public:
  // `size` as for RowWindow.
  VSS_DEVICE WindowedColumns(const SourceColumns& columns, int64_t size)
      : columns_(columns),
        window_(lane(columns.first, 0), lane(columns.second, kLanes - 1), size) {}

  // One source row, resized horizontally.
  template <typename T>
  VSS_DEVICE Floats read(const T* row) const {
    if (!window_.fits()) return columns_.read(row);
    const Floats window = window_.load_row(row), weight = columns_.weight;
    return (1.0f - weight) * window_.read(window, columns_.first) +
           weight * window_.read(window, columns_.second);
  }
  // The same of another row for each lane: `rows` of them, `stride` apart, from `row` on.
  template <typename T>
  VSS_DEVICE Floats read_each(const T* row, Ints rows, int64_t stride) const {
    // Neighbours mostly ask for the same one.
    if (!any_of(rows != lane(rows, 0))) return read(row + lane(rows, 0) * stride);
    float first[kLanes], second[kLanes];
    VSS_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      const T* own = row + lane(rows, i) * stride;
      first[i] = static_cast<float>(own[lane(columns_.first, i)]);
      second[i] = static_cast<float>(own[lane(columns_.second, i)]);
    }
    return (1.0f - columns_.weight) * load(first) + columns_.weight * load(second);
  }

 private:
  SourceColumns columns_;
  RowWindow window_;
};

// From here on for the hosts.

inline Strides strides_of(const at::Tensor& map) {
  return {map.stride(0), map.stride(1), map.stride(2), map.stride(3)};
}

// Kernels index a row of logits with 32 bits; a layout with longer steps is copied once.
inline at::Tensor checked_logits(const char* op, const at::Tensor& logits) {
  check_dims(op, "logits", logits, 4);
  TORCH_CHECK_VALUE(logits.size(1) > 0 && logits.size(2) > 0 && logits.size(3) > 0, op,
                    ": logits must have at least one class, row and column, got ", logits.sizes());
  TORCH_CHECK_VALUE(logits.size(1) <= std::numeric_limits<int>::max() / 2, op,
                    ": too many classes, ", logits.size(1));
  const bool narrow = logits.size(3) * logits.stride(3) <= std::numeric_limits<int32_t>::max();
  return narrow ? logits : logits.contiguous();
}

// The width of equal tiles, none wider than `limit`, in whole lanes.
inline int64_t tile_width(int64_t columns, int64_t limit, int64_t lanes) {
  const int64_t tiles = cdiv(columns, limit);
  return cdiv(cdiv(columns, tiles), lanes) * lanes;
}

}  // namespace vss::inline VSS_MACHINE
