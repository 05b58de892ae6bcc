// Several sums over one loop, each known to the whole block afterwards.
//
//   totals<kCount>(block, items, scratch, f)
//
// calls f(i, partial) for every i in [0, items), which adds to partial[0 .. kCount), and leaves the
// sums in scratch[0 .. kCount). The order of the additions is fixed. All writes that f made to shared
// memory are visible to the block afterwards. Scratch:
// kCount * (1 + kMaxWarps) floats, for nothing else.
#pragma once

#include "lanes.h"
#include "program.h"

namespace vss::aggregation {

#if !defined(__CUDACC__)

template <int kCount, typename Block, typename F>
VSS_HOST_DEVICE void totals(const Block&, int items, float* scratch, const F& f) {
  Lanes<Block> partial[kCount] = {};
  for (int i = 0; i < items; ++i) f(i, partial);
  for (int n = 0; n < kCount; ++n) scratch[n] = sum_of_lanes(partial[n]);
}

#else

// Sums each of kCount values (a power of two up to the warp's size) over the warp. Half of the values
// change hands in each round, so that all of them together take about kCount shuffles, not five each.
// The sum of value n ends in values[0] of the lanes whose upper bits are n.
template <int kCount, int kOffset = CudaBlock::kWarp / 2>
__device__ void sum_over_warp(float* values) {
  if constexpr (kOffset > 0 && kCount == 1) {
    values[0] += __shfl_xor_sync(0xffffffffu, values[0], kOffset);
    sum_over_warp<1, kOffset / 2>(values);
  } else if constexpr (kOffset > 0) {
    const bool upper = threadIdx.x & kOffset;
#pragma unroll
    for (int n = 0; n < kCount / 2; ++n) {
      const float give = upper ? values[n] : values[n + kCount / 2];
      const float keep = upper ? values[n + kCount / 2] : values[n];
      values[n] = keep + __shfl_xor_sync(0xffffffffu, give, kOffset);
    }
    sum_over_warp<kCount / 2, kOffset / 2>(values);
  }
}

constexpr int next_power_of_two(int n) { return n <= 1 ? 1 : 2 * next_power_of_two((n + 1) / 2); }

template <int kCount, typename F>
__device__ void totals(const CudaBlock& block, int items, float* scratch, const F& f) {
  constexpr int kWarp = CudaBlock::kWarp;
  constexpr int kGroup = kCount < kWarp ? next_power_of_two(kCount) : kWarp;
  constexpr int kGroups = (kCount + kGroup - 1) / kGroup;
  float partial[kGroups * kGroup] = {};
  for (int i = threadIdx.x; i < items; i += blockDim.x) f(i, partial);

  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    sum_over_warp<kGroup>(partial + group * kGroup);
    const int n = group * kGroup + lane / (kWarp / kGroup);
    if (lane % (kWarp / kGroup) == 0 && n < kCount)
      scratch[(1 + warp) * kCount + n] = partial[group * kGroup];
  }
  block.sync();
  for (int n = threadIdx.x; n < kCount; n += blockDim.x) {
    float total = 0;
    for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; ++w)
      total += scratch[(1 + w) * kCount + n];
    scratch[n] = total;
  }
  block.sync();
}

#endif

}  // namespace vss::aggregation
