// A source row of a level, resized horizontally, for kLanes neighbouring columns of the result.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "../common/block.h"
#include "../common/hints.h"

namespace vss::pyramid {

// Source positions are kept in scratch, among floats.
VSS_HOST_DEVICE int32_t position(float stored) { return std::bit_cast<int32_t>(stored); }

// The source columns of kLanes neighbouring columns of the result.
template <int kLanes>
struct Columns {
  int32_t first[kLanes], second[kLanes];
  float share[kLanes];

  VSS_HOST_DEVICE Columns(const float* taps, int table_width, int64_t) {
    for (int lane = 0; lane < kLanes; ++lane) {
      first[lane] = position(taps[lane]);
      second[lane] = position(taps[table_width + lane]);
      share[lane] = taps[2 * table_width + lane];
    }
  }

  // One source row, resized horizontally.
  template <typename T>
  VSS_HOST_DEVICE void read(const T* row, float (&values)[kLanes]) const {
    VSS_SIMD
    for (int lane = 0; lane < kLanes; ++lane)
      values[lane] = (1.0f - share[lane]) * static_cast<float>(row[first[lane]]) +
                     share[lane] * static_cast<float>(row[second[lane]]);
  }
};

#if !defined(__CUDACC__)
// The same on the CPU, where fetching lane by lane costs more than all else: as a level is no larger than
// the result, the lanes read a window of few source columns, which is loaded at once and permuted.
template <>
struct Columns<CpuBlock::kLanes> {
  static constexpr int kLanes = CpuBlock::kLanes;
  using Floats = float __attribute__((vector_size(kLanes * sizeof(float))));
  using Indices = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));

  Indices first, second;  // within the window
  Floats share;
  int32_t begin;
  int width;  // of the window; the level may have fewer columns than there are lanes

  VSS_HOST_DEVICE Columns(const float* taps, int table_width, int64_t size) {
    std::memcpy(&first, taps, sizeof(first));
    std::memcpy(&second, taps + table_width, sizeof(second));
    std::memcpy(&share, taps + 2 * table_width, sizeof(share));
    width = size < kLanes ? static_cast<int>(size) : kLanes;
    const int32_t last = static_cast<int32_t>(size) - width;
    begin = first[0] < last ? first[0] : last;
    first -= begin;
    second -= begin;
  }

  template <typename T>
  VSS_HOST_DEVICE void read(const T* row, float (&values)[kLanes]) const {
    if (second[kLanes - 1] >= kLanes) {  // nearly as many columns as the result has
      for (int lane = 0; lane < kLanes; ++lane)
        values[lane] = (1.0f - share[lane]) * static_cast<float>(row[begin + first[lane]]) +
                       share[lane] * static_cast<float>(row[begin + second[lane]]);
      return;
    }
    Floats window;
    if (width == kLanes) {
      load(row, kLanes, window);
    } else {
      load(row, width, window);
    }
    const Floats result = (1.0f - share) * __builtin_shuffle(window, first) +
                          share * __builtin_shuffle(window, second);
    std::memcpy(values, &result, sizeof(result));
  }

 private:
  template <typename T>
  VSS_HOST_DEVICE void load(const T* row, int count, Floats& window) const {
    float values[kLanes] = {};
    for (int lane = 0; lane < count; ++lane) values[lane] = static_cast<float>(row[begin + lane]);
    std::memcpy(&window, values, sizeof(window));
  }
};
#endif

}  // namespace vss::pyramid
