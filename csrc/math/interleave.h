// Changes between a register per class with its neighbours, and a register per
// neighbour with its classes: the transposition of a small matrix.
//
// One step interleaves register i of the first half with register i of the
// second. With the number of an element's register before that of its lane as
// the bits of its position, that takes the first bit to the end. So a step for
// each bit of the register's number takes [register, lane] to [lane, register],
// and one for each of the lane's takes it back.
#pragma once

#include "simd.h"

#if !VSS_GPU_CODE
namespace vss::inline VSS_MACHINE {

// first[0], second[0], first[1], ... into `low`, and what has no room there
// into `high`.
template <int... kLane>
VSS_INLINE void interleave_pair(Floats first, Floats second, Floats& low, Floats& high,
                                std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  low = __builtin_shufflevector(first, second, (kLane / 2 + kLane % 2 * kLanes)...);
  high = __builtin_shufflevector(first, second, ((kLanes + kLane) / 2 + kLane % 2 * kLanes)...);
#else
  low = __builtin_shuffle(first, second, Ints{(kLane / 2 + kLane % 2 * kLanes)...});
  high = __builtin_shuffle(first, second, Ints{((kLanes + kLane) / 2 + kLane % 2 * kLanes)...});
#endif
}

// As many steps as it takes to double `kSize` from 1.
template <int kSize, int kCount>
VSS_INLINE void interleave(Floats (&registers)[kCount]) {
  if constexpr (kSize > 1) {
    Floats pairs[kCount];
    VSS_UNROLL
    for (int i = 0; i < kCount / 2; ++i) {
      interleave_pair(registers[i], registers[i + kCount / 2], pairs[2 * i], pairs[2 * i + 1],
                      std::make_integer_sequence<int, kLanes>());
    }
    VSS_UNROLL
    for (int i = 0; i < kCount; ++i) registers[i] = pairs[i];
    interleave<kSize / 2>(registers);
  }
}

// [register, lane] to [lane, register].
template <int kCount>
VSS_INLINE void lanes_first(Floats (&registers)[kCount]) {
  interleave<kCount>(registers);
}

// [lane, register] to [register, lane].
template <int kCount>
VSS_INLINE void registers_first(Floats (&registers)[kCount]) {
  interleave<kLanes>(registers);
}

}  // namespace vss::inline VSS_MACHINE
#endif
