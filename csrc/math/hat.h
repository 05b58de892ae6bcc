// A bilinear resize as hat functions, with 32-bit positions: the form for a GPU, where a tap that
// is searched for costs more than a weight that is zero.
//
// A resized position gives source position k the weight 1 - |source - k| where that is positive.
// Those are the weights of Resize::tap() to the last bit, except that past the last source
// position, where both taps are the same, it has all the weight.
#pragma once

#include "resize.h"

namespace vss::inline VSS_MACHINE {

struct Hat {
  float scale, offset, last;

  Hat() = default;
  VSS_INLINE explicit Hat(const Resize& resize)
      : scale(resize.scale), offset(resize.offset), last(static_cast<float>(resize.size - 1)) {}

  // Where a resized position reads.
  VSS_INLINE float source(int position) const {
    const float source = (static_cast<float>(position) + offset) * scale - offset;
    return std::fmin(std::fmax(source, 0.0f), last);
  }

  // The weight of source position `index` in a resized position that reads at `source`.
  VSS_INLINE static float weight(float source, int index) {
    return std::fmax(1.0f - std::fabs(source - static_cast<float>(index)), 0.0f);
  }
};

}  // namespace vss::inline VSS_MACHINE
