// Neighbouring floats that are handled together: a compiler vector, so that no compiler has to find out
// by itself what fits a register. CPU only.
#pragma once

#include <cstdint>

#include "block.h"

namespace vss {

template <int kCount>
struct LanesOf {
  typedef float Type __attribute__((vector_size(kCount * sizeof(float))));
  typedef float Unaligned __attribute__((vector_size(kCount * sizeof(float)), aligned(4), may_alias));
  typedef int32_t Index __attribute__((vector_size(kCount * sizeof(int32_t))));
};

template <typename L>
constexpr int lane_count = sizeof(L) / sizeof(float);

template <typename L>
using SameLanes = LanesOf<lane_count<L>>;

template <typename L>
VSS_HOST_DEVICE void load(const float* source, L& lanes) {
  lanes = *reinterpret_cast<const typename SameLanes<L>::Unaligned*>(source);
}

template <typename L>
VSS_HOST_DEVICE void store(float* target, const L& lanes) {
  *reinterpret_cast<typename SameLanes<L>::Unaligned*>(target) = lanes;
}

template <typename L>
VSS_HOST_DEVICE float sum_of_lanes(const L& lanes) {
  float total = 0;
  for (int lane = 0; lane < lane_count<L>; ++lane) total += lanes[lane];
  return total;
}

template <typename L>
VSS_HOST_DEVICE float largest_of_lanes(const L& lanes) {
  float largest = lanes[0];
  for (int lane = 1; lane < lane_count<L>; ++lane)
    largest = lanes[lane] > largest ? lanes[lane] : largest;
  return largest;
}

}  // namespace vss
