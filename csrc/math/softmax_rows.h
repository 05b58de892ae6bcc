// Softmax of the rows of a small matrix on the CPU; rows have whole lanes, -INFINITY behind their
// end.
#pragma once

#include "exponential.h"

namespace vss::inline VSS_MACHINE {

// Turns a row of logits into exp(logit - shift); returns their sum.
VSS_INLINE float exponentiate_row(float* row, int64_t width, float shift) {
  Floats sum{};
  for (int64_t slot = 0; slot < width; slot += kLanes) {
    const Floats exponentials = exponential_or_zero(load(row + slot) - shift);
    store(row + slot, exponentials);
    sum += exponentials;
  }
  return sum_of(sum);
}

VSS_INLINE float largest_of_row(const float* row, int64_t width) {
  Floats largest = load(row);
  for (int64_t slot = kLanes; slot < width; slot += kLanes) {
    const Floats next = load(row + slot);
    largest = next > largest ? next : largest;
  }
  return largest_of(largest);
}

}  // namespace vss::inline VSS_MACHINE
