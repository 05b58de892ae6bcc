// Lanes<Block>: the neighbouring floats that one work item handles together. On the CPU a vector
// (common/lanes.h), on the GPU one float.
#pragma once

#include "../common/block.h"

#if !defined(VSS_GPU_CODE)
#include "../common/lanes.h"
#endif

namespace vss::aggregation {

#if defined(VSS_GPU_CODE)

template <typename Block>
using Lanes = float;

VSS_HOST_DEVICE void load(const float* source, float& lanes) { lanes = *source; }
VSS_HOST_DEVICE void store(float* target, const float& lanes) { *target = lanes; }
VSS_HOST_DEVICE float sum_of_lanes(const float& lanes) { return lanes; }

// Zeroes all lanes from the `count`th on.
VSS_HOST_DEVICE void keep_first(float& lanes, int count) {
  if (count < 1) lanes = 0.0f;
}

// A NaN stays one, as in torch.relu.
VSS_HOST_DEVICE void relu(float& lanes) { lanes = lanes < 0.0f ? 0.0f : lanes; }

// Zeroes the gradient where the ReLU's argument was not positive.
VSS_HOST_DEVICE void relu_gradient(const float& argument, float& gradient) {
  gradient = argument <= 0.0f ? 0.0f : gradient;
}

#else

// A block on the CPU whose lanes fill one register of the instruction set it is compiled for. It shares
// no function with CpuBlock, which is compiled for any CPU.
template <int kCount>
class LaneBlock {
 public:
  static constexpr int kLanes = kCount;

  VSS_HOST_DEVICE explicit LaneBlock(float* scratch) : scratch_(scratch) {}

  template <typename F>
  VSS_HOST_DEVICE void for_each(int64_t n, const F& f) const {
    for (int64_t i = 0; i < n; ++i) f(i);
  }

  VSS_HOST_DEVICE float* scratch() const { return scratch_; }
  VSS_HOST_DEVICE void sync() const {}

 private:
  float* scratch_;
};

template <typename Block>
using Lanes = typename LanesOf<Block::kLanes>::Type;

template <typename L>
VSS_HOST_DEVICE void keep_first(L& lanes, int count) {
  constexpr int kCount = lane_count<L>;
  if (count >= kCount) return;
  typename SameLanes<L>::Index index;
  for (int lane = 0; lane < kCount; ++lane) index[lane] = lane;
  lanes = index < count ? lanes : L{};
}

template <typename L>
VSS_HOST_DEVICE void relu(L& lanes) {
  lanes = lanes < 0.0f ? L{} : lanes;
}

template <typename L>
VSS_HOST_DEVICE void relu_gradient(const L& argument, L& gradient) {
  gradient = argument <= 0.0f ? L{} : gradient;
}

#endif

}  // namespace vss::aggregation
