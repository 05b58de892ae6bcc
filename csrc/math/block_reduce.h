// Several sums over one loop, each known to the whole block afterwards.
//
//   block_reduce<kCount>(block, items, scratch, f)
//
// calls f(i, partial) for every i in [0, items), which adds to partial[0 .. kCount). The results
// are in scratch[0 .. kCount) and valid until the next call's barrier. The order of the additions
// is fixed. All writes that f made to shared memory are visible to the block afterwards. Scratch:
// reduce_scratch_floats(kCount), for nothing else.
#pragma once

#include "simd.h"

namespace vss::inline VSS_MACHINE {

constexpr int kMaxWarps = 16;
constexpr int kMaxSums = 49;  // at once: the weights of a 7x7 kernel

VSS_INLINE constexpr int reduce_scratch_floats(int sums) { return kMaxSums + sums * kMaxWarps; }

#if VSS_GPU_CODE

// Sums each of kCount values (a power of two up to the warp's size) over the warp. Half of the
// values change hands in each round, so that all of them together take about kCount shuffles, not
// five each. The sum of value n ends in values[0] of the lanes whose upper bits are n.
template <int kCount, int kOffset = Block::kWarp / 2>
VSS_DEVICE void sum_over_warp(const Block& block, float* values) {
  if constexpr (kOffset > 0 && kCount == 1) {
    float other[1] = {values[0]};
    block.exchange(other, kOffset);
    values[0] += other[0];
    sum_over_warp<1, kOffset / 2>(block, values);
  } else if constexpr (kOffset > 0) {
    const bool upper = block.rank() & kOffset;
    float other[kCount / 2];
    VSS_UNROLL
    for (int n = 0; n < kCount / 2; ++n) {
      other[n] = upper ? values[n] : values[n + kCount / 2];
      values[n] = upper ? values[n + kCount / 2] : values[n];
    }
    block.exchange(other, kOffset);
    VSS_UNROLL
    for (int n = 0; n < kCount / 2; ++n) values[n] += other[n];
    sum_over_warp<kCount / 2, kOffset / 2>(block, values);
  }
}

constexpr int next_power_of_two(int n) { return n <= 1 ? 1 : 2 * next_power_of_two((n + 1) / 2); }

template <int kCount, typename F>
VSS_DEVICE void block_reduce(const Block& block, int items, float* scratch, const F& f) {
  static_assert(kCount <= kMaxSums);
  constexpr int kWarp = Block::kWarp;
  constexpr int kGroup = kCount < kWarp ? next_power_of_two(kCount) : kWarp;
  constexpr int kGroups = (kCount + kGroup - 1) / kGroup;
  float partial[kGroups * kGroup] = {};
  for (int i = block.rank(); i < items; i += block.size()) f(i, partial);

  const int lane = block.rank() % kWarp;
  const int warp = block.rank() / kWarp;
  // Not where the last call's sums may be: slower warps still read them.
  float* of_warps = scratch + kMaxSums;
  VSS_UNROLL
  for (int group = 0; group < kGroups; ++group) {
    sum_over_warp<kGroup>(block, partial + group * kGroup);
    const int n = group * kGroup + lane / (kWarp / kGroup);
    if (lane % (kWarp / kGroup) == 0 && n < kCount)
      of_warps[warp * kCount + n] = partial[group * kGroup];
  }
  block.sync();
  for (int n = block.rank(); n < kCount; n += block.size()) {
    float total = 0;
    for (int w = 0; w < block.size() / kWarp; ++w) total += of_warps[w * kCount + n];
    scratch[n] = total;
  }
  block.sync();
}

#else

template <int kCount, typename F>
VSS_INLINE void block_reduce(const Block&, int items, float* scratch, const F& f) {
  Floats partial[kCount] = {};
  for (int i = 0; i < items; ++i) f(i, partial);
  for (int n = 0; n < kCount; ++n) scratch[n] = sum_of(partial[n]);
}

#endif

}  // namespace vss::inline VSS_MACHINE
