// The parameters of all layers side by side in one vector, copied in one launch from the tensors
// that a model keeps them in.
#pragma once

#include "program.h"

namespace vss::inline VSS_MACHINE::aggregate_affinity {

constexpr int kLayerTensors = 4;  // weight, bias, norm weight, norm bias
constexpr int kMaxTensors = kLayerTensors * kMaxLayers;

// Block i copies tensor i.
template <typename T>
struct CopyTensors {
  const T* sources[kMaxTensors];
  int begins[kMaxTensors + 1];  // in the target
  T* target;

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const T* from = sources[index];
    T* to = target + begins[index];
    block.for_each(begins[index + 1] - begins[index], [&](int64_t i) { to[i] = from[i]; });
  }
};

template <typename T>
void copy_tensors(at::ArrayRef<at::Tensor> tensors, const at::Tensor& target) {
  constexpr int kThreads = 64;  // about as many as a small convolution has weights
  CopyTensors<T> copy{};
  int end = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    copy.sources[i] = tensors[i].const_data_ptr<T>();
    end += static_cast<int>(tensors[i].numel());
    copy.begins[i + 1] = end;
  }
  copy.target = target.mutable_data_ptr<T>();
  run_blocks<kThreads>({.op = "aggregate_affinity",
                        .blocks = static_cast<int64_t>(tensors.size()),
                        .grain = kMaxTensors,
                        .threads = kThreads},
                       copy);
}

inline at::Tensor concatenate(at::TensorList tensors) {
  constexpr const char* op = "aggregate_affinity";
  TORCH_CHECK_VALUE(!tensors.empty() && tensors.size() <= kMaxTensors, op,
                    ": parameters must be 1 ", "to ", kMaxTensors, " tensors, got ",
                    tensors.size());
  constexpr int64_t kMostValues = int64_t{1} << 30;
  std::vector<at::Tensor> contiguous;
  contiguous.reserve(tensors.size());
  int64_t total = 0;
  for (const at::Tensor& tensor : tensors) {
    check_like(op, "a layer's parameter", tensor, "the first one", tensors[0]);
    total += tensor.numel();
    contiguous.push_back(tensor.contiguous());
  }
  TORCH_CHECK_VALUE(total < kMostValues, op, ": the parameters hold too many values, ", total);
  const at::Tensor target = at::empty({total}, tensors[0].options());
  VSS_DISPATCH_FLOATING(target.scalar_type(), op,
                        [&] { copy_tensors<scalar_t>(contiguous, target); });
  return target;
}

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
