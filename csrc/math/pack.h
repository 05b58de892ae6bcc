// kCount neighbouring values that one thread of a GPU handles together, as floats.
//
// Neighbours that are aligned to their common size come with one instruction: four float32 are the
// widest load that a GPU has.
#pragma once

#include "../machine/machine.h"

#if VSS_GPU_CODE

namespace vss::inline VSS_MACHINE {

template <int kCount>
struct Pack {
  float at[kCount] = {};

  VSS_DEVICE void add(float factor, const Pack& other) {
    VSS_UNROLL
    for (int i = 0; i < kCount; ++i) at[i] += factor * other.at[i];
  }
};

template <typename T, int kCount>
struct __attribute__((may_alias, aligned(sizeof(T) * kCount))) Stored {
  T at[kCount];
};

template <typename T, int kCount>
VSS_DEVICE Pack<kCount> unpack(Stored<T, kCount> stored) {
  Pack<kCount> pack;
  VSS_UNROLL
  for (int i = 0; i < kCount; ++i) pack.at[i] = static_cast<float>(stored.at[i]);
  return pack;
}

// `from` must be a multiple of kCount * sizeof(T) bytes.
template <int kCount, typename T>
VSS_DEVICE Pack<kCount> load_pack(const T* from) {
  const Stored<T, kCount> stored = *reinterpret_cast<const Stored<T, kCount>*>(from);
  return unpack(stored);  // a copy, not the memory, so that it comes with one instruction
}

template <typename T, int kCount>
VSS_DEVICE void store_pack(T* to, const Pack<kCount>& pack) {
  Stored<T, kCount> stored;
  VSS_UNROLL
  for (int i = 0; i < kCount; ++i) stored.at[i] = static_cast<T>(pack.at[i]);
  *reinterpret_cast<Stored<T, kCount>*>(to) = stored;
}

// Whether load_pack() may begin at a tensor's start and at every multiple of these strides.
inline bool packs(const at::Tensor& tensor, int count, std::initializer_list<int64_t> strides) {
  const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  if (address % (count * tensor.element_size()) != 0) return false;
  for (const int64_t stride : strides)
    if (stride % count != 0) return false;
  return true;
}

}  // namespace vss::inline VSS_MACHINE

#endif
