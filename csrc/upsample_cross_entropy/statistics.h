// The running maximum and sum that give a pixel's log-sum; on a CPU all classes of a few rows at
// once go past a loop that keeps logits in memory, on a GPU a few go past in registers.
#pragma once

#include "../math/exponential.h"
#include "geometry.h"

namespace vss::inline VSS_MACHINE::upsample_cross_entropy {

// Classes that a work item handles together: they share one rescaling of the running sum.
constexpr int kForwardClasses = kGpu ? 4 : 16;

// Running softmax statistics of kRows rows of kLanes columns.
struct Statistics {
  Floats high[kRows], total[kRows];
  // Weighted sums of all logits in the two source rows, for label smoothing.
  Floats plain_upper = {}, plain_lower = {};

  VSS_DEVICE Statistics() {
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      high[r] = broadcast(std::numeric_limits<float>::lowest());
      total[r] = Floats{};
    }
  }

  // Takes in all classes of the first `rows` rows; `upper` and `lower` point at the two source rows
  // of the first class.
  template <typename T>
  VSS_DEVICE void add_classes(const LossGeometry& g, const WindowedColumns& columns, const T* upper,
                              const T* lower, int rows, const float (&row_weights)[kRows]) {
    const int64_t step = g.strides.channel;
    int k = 0;
#if VSS_GPU_CODE
    for (; k + kForwardClasses <= g.classes; k += kForwardClasses)
      add<kForwardClasses>(g, columns, upper + k * step, lower + k * step, k, rows, row_weights);
    for (; k < g.classes; ++k)
      add<1>(g, columns, upper + k * step, lower + k * step, k, rows, row_weights);
#else
    for (; k < g.classes; k += kForwardClasses)
      add(g, columns, upper + k * step, lower + k * step, k, rows, row_weights);
#endif
  }

 private:
  VSS_DEVICE void add_plain(float weight, Floats above, Floats below) {
    plain_upper += weight * above;
    plain_lower += weight * below;
  }

  // Takes in some classes from `k` on; `upper` and `lower` point at class k's two source rows.
#if VSS_GPU_CODE
  template <int kClasses, typename T>
  VSS_DEVICE void add(const LossGeometry& g, const WindowedColumns& columns, const T* upper,
                      const T* lower, int k, int rows, const float (&row_weights)[kRows]) {
    Floats above[kClasses], below[kClasses];
    VSS_UNROLL
    for (int c = 0; c < kClasses; ++c) {
      above[c] = columns.read(upper + c * g.strides.channel);
      below[c] = columns.read(lower + c * g.strides.channel);
    }
    if (g.smoothing > 0.0f) {
      VSS_UNROLL
      for (int c = 0; c < kClasses; ++c) add_plain(g.weight(k + c), above[c], below[c]);
    }
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) continue;
      const float weight = row_weights[r], keep = 1.0f - weight;
      Floats z[kClasses], highest = high[r];
      VSS_UNROLL
      for (int c = 0; c < kClasses; ++c) {
        z[c] = keep * above[c] + weight * below[c];
        highest = highest > z[c] ? highest : z[c];
      }
      total[r] *= exponential(high[r] - highest);
      high[r] = highest;
      VSS_UNROLL
      for (int c = 0; c < kClasses; ++c) total[r] += exponential(z[c] - highest);
    }
  }
#else
  // The logits pass through memory, which has nothing else to do, so that one class's four rows are
  // all that registers have to hold, and many classes share a rescaling.
  template <typename T>
  VSS_INLINE void add(const LossGeometry& g, const WindowedColumns& columns, const T* upper,
                      const T* lower, int k, int rows, const float (&row_weights)[kRows]) {
    const int count = g.classes - k < kForwardClasses ? g.classes - k : kForwardClasses;
    Floats z[kForwardClasses][kRows], highest[kRows];
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) highest[r] = high[r];
    for (int c = 0; c < count; ++c) {
      const Floats above = columns.read(upper + c * g.strides.channel);
      const Floats below = columns.read(lower + c * g.strides.channel);
      if (g.smoothing > 0.0f) add_plain(g.weight(k + c), above, below);
      VSS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        z[c][r] = (1.0f - row_weights[r]) * above + row_weights[r] * below;
        highest[r] = highest[r] > z[c][r] ? highest[r] : z[c][r];
      }
    }
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (k > 0) total[r] *= exponential(high[r] - highest[r]);
      high[r] = highest[r];
    }
    const auto add_rows = [&](int begin, int end) VSS_LAMBDA {
      for (int c = 0; c < count; ++c) {
        VSS_UNROLL
        for (int r = begin; r < end; ++r) total[r] += exponential(z[c][r] - high[r]);
      }
    };
    if (rows == kRows) return add_rows(0, kRows);
    for (int r = 0; r < rows; ++r) add_rows(r, r + 1);
  }
#endif
};

}  // namespace vss::inline VSS_MACHINE::upsample_cross_entropy
