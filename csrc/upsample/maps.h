// What both upsampling operators stand on: where the logits lie, and how output pixels are grouped.
//
// A block takes output rows that read the same source rows, and each of its work items takes kLanes
// neighbouring columns of them. So a source value is fetched and resized horizontally once for
// several output rows, and the vertical resize is what remains for each.
#pragma once

#include "../common/exponential.h"
#include "../common/hints.h"
#include "../common/resize.h"

namespace vss::upsample {

// Output rows that a work item keeps in registers at a time; four is the usual ratio of the sizes.
constexpr int kRows = 4;

// Strides in elements.
struct Strides {
  int64_t batch, channel, row, column;
};

struct Span {
  int64_t begin, end;
  VSS_HOST_DEVICE int64_t size() const { return end - begin; }
};

// The output rows whose first source row, `first_source(row)`, is `index`. `guess` is any row at or
// before the first of them.
template <typename F>
VSS_HOST_DEVICE Span group_rows(int64_t index, int64_t rows, int64_t guess, const F& first_source) {
  int64_t begin = guess;
  while (begin < rows && first_source(begin) < index) ++begin;
  int64_t end = begin;
  while (end < rows && first_source(end) == index) ++end;
  return {begin, end};
}

// The source positions of kLanes neighbouring columns, as offsets within a row. They fit 32 bits:
// the launchers copy logits of wilder strides.
template <int kLanes>
struct Columns {
  int32_t first[kLanes], second[kLanes];
  float share[kLanes];

  Columns() = default;

  // Lanes from `end` on repeat the column before it; what they compute is not used.
  VSS_HOST_DEVICE Columns(const Resize& horizontal, int64_t begin, int64_t end, int64_t stride) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const Tap tap = horizontal.tap(begin + lane < end ? begin + lane : end - 1);
      first[lane] = static_cast<int32_t>(tap.first * stride);
      second[lane] = static_cast<int32_t>(tap.second * stride);
      share[lane] = tap.share;
    }
  }

  // The same, kept in three floats of scratch a lane.
  static constexpr int kStored = 3 * kLanes;
  VSS_HOST_DEVICE void store(float* table) const {
    for (int lane = 0; lane < kLanes; ++lane) {
      table[lane] = std::bit_cast<float>(first[lane]);
      table[kLanes + lane] = std::bit_cast<float>(second[lane]);
      table[2 * kLanes + lane] = share[lane];
    }
  }
  VSS_HOST_DEVICE static Columns load(const float* table) {
    Columns columns;
    for (int lane = 0; lane < kLanes; ++lane) {
      columns.first[lane] = std::bit_cast<int32_t>(table[lane]);
      columns.second[lane] = std::bit_cast<int32_t>(table[kLanes + lane]);
      columns.share[lane] = table[2 * kLanes + lane];
    }
    return columns;
  }

  // One source row, resized horizontally.
  template <typename T>
  VSS_HOST_DEVICE void read(const T* row, float (&values)[kLanes]) const {
    VSS_SIMD
    for (int lane = 0; lane < kLanes; ++lane) values[lane] = read(row, lane);
  }
  template <typename T>
  VSS_HOST_DEVICE float read(const T* row, int lane) const {
    return (1.0f - share[lane]) * static_cast<float>(row[first[lane]]) +
           share[lane] * static_cast<float>(row[second[lane]]);
  }
};

}  // namespace vss::upsample
