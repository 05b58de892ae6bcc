// The best classes of the pixels that a CPU has most of.
#pragma once

#include "../machine/machine.h"
#include "../math/simd.h"

#if !VSS_GPU_CODE

namespace vss::inline VSS_MACHINE::upsample_argmax {

// What most of a CPU's columns are: kRows rows that read kVertical source rows, of which a register
// holds what kLanes neighbouring columns read. Sums stay in registers, since all numbers but that
// of the classes are known to the compiler.
template <int kRows, int kVertical, int kHorizontal, typename T>
struct WholeTile {
  const T* rows[kVertical];  // of the first class, where the columns' window begins
  int64_t step;              // from class to class
  int classes;
  Ints columns[kHorizontal];  // within the window
  Floats column_weights[kHorizontal];
  float row_weights[kRows][kVertical];

  // Finds the best classes; false, and nothing found, where logits are not finite: their order is
  // more than a comparison.
  VSS_INLINE bool find(Ints (&result)[kRows]) const {
    Floats best[kRows];
    Ints label[kRows];
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) {
      best[r] = broadcast(std::numeric_limits<float>::lowest());
      label[r] = Ints{};
    }
    const T* row[kVertical];
    VSS_UNROLL
    for (int s = 0; s < kVertical; ++s) row[s] = rows[s];
    Floats nothing{};  // NaN once a number is not finite
    Ints number{};
    for (int k = 0; k < classes; ++k, number += 1) {
      Floats resized[kVertical];
      VSS_UNROLL
      for (int s = 0; s < kVertical; ++s) {
        const Floats window = load(row[s]);
        row[s] += step;
        resized[s] = column_weights[0] * permute(window, columns[0]);
        VSS_UNROLL
        for (int t = 1; t < kHorizontal; ++t)
          resized[s] += column_weights[t] * permute(window, columns[t]);
        nothing += 0.0f * resized[s];
      }
      VSS_UNROLL
      for (int r = 0; r < kRows; ++r) {
        Floats z = row_weights[r][0] * resized[0];
        VSS_UNROLL
        for (int s = 1; s < kVertical; ++s) z += row_weights[r][s] * resized[s];
        const auto wins = z > best[r];
        best[r] = wins ? z : best[r];
        label[r] = wins ? number : label[r];
      }
    }
    if (sum_of(nothing) != 0.0f) return false;
    VSS_UNROLL
    for (int r = 0; r < kRows; ++r) result[r] = label[r];
    return true;
  }
};

}  // namespace vss::inline VSS_MACHINE::upsample_argmax

#endif
