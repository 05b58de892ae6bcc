// The labels of upsample_cross_entropy: any integers in any layout, read as classes.
#pragma once

#include "../math/simd.h"
#include "../math/upsampled_rows.h"

namespace vss::inline VSS_MACHINE::upsample_cross_entropy {

enum class LabelType : int { kUInt8, kInt16, kInt32, kInt64 };

struct Labels {
  static constexpr int kIgnored = -1;
  static constexpr int kInvalid = -2;

  const void* data;
  LabelType type;
  Strides strides;
  int64_t ignore_index;
  int classes;

  VSS_INLINE int64_t value(int64_t offset) const {
    switch (type) {
      case LabelType::kUInt8: return static_cast<const uint8_t*>(data)[offset];
      case LabelType::kInt16: return static_cast<const int16_t*>(data)[offset];
      case LabelType::kInt32: return static_cast<const int32_t*>(data)[offset];
      default: return static_cast<const int64_t*>(data)[offset];
    }
  }

  // A class, kIgnored, or kInvalid for a value that is no class.
  VSS_INLINE int class_of(int64_t label) const {
    if (label == ignore_index) return kIgnored;
    return label >= 0 && label < classes ? static_cast<int>(label) : kInvalid;
  }
  VSS_INLINE int at(int64_t n, int64_t y, int64_t x) const {
    return class_of(value(n * strides.batch + y * strides.row + x * strides.column));
  }

  // Those of kLanes columns from `x` on; from the column `x_end` on they are kIgnored.
#if VSS_GPU_CODE
  VSS_DEVICE Ints read(int64_t n, int64_t y, int64_t x, int64_t) const { return at(n, y, x); }
#else
  VSS_INLINE Ints read(int64_t n, int64_t y, int64_t x, int64_t x_end) const {
    const int64_t offset = n * strides.batch + y * strides.row + x * strides.column;
    const int count = x_end - x < kLanes ? static_cast<int>(x_end - x) : kLanes;
    switch (type) {
      case LabelType::kUInt8: return read(static_cast<const uint8_t*>(data) + offset, count);
      case LabelType::kInt16: return read(static_cast<const int16_t*>(data) + offset, count);
      case LabelType::kInt32: return read(static_cast<const int32_t*>(data) + offset, count);
      default: return read_singly(static_cast<const int64_t*>(data) + offset, count);
    }
  }

 private:
  template <typename T>
  VSS_INLINE Ints read(const T* from, int count) const {
    if (count < kLanes || strides.column != 1) return read_singly(from, count);
    const Ints labels = __builtin_convertvector(
        *reinterpret_cast<const typename VectorOf<T, alignof(T)>::Type*>(from), Ints);
    const int32_t ignored = static_cast<int32_t>(ignore_index);
    // An index that 32 bits do not hold is none of these labels.
    const Ints may_be_ignored = Ints{} - (ignored == ignore_index ? 1 : 0);
    // Without a sign, what is below zero is above all classes.
    const Ints is_class = (Bits)labels < Bits{} + static_cast<uint32_t>(classes);
    const Ints known = is_class ? labels : Ints{} + kInvalid;
    return ((labels == ignored) & may_be_ignored) ? Ints{} + kIgnored : known;
  }

  template <typename T>
  VSS_INLINE Ints read_singly(const T* from, int count) const {
    Ints labels = Ints{} + kIgnored;
    for (int i = 0; i < count; ++i) labels[i] = class_of(from[i * strides.column]);
    return labels;
  }
#endif
};

}  // namespace vss::inline VSS_MACHINE::upsample_cross_entropy
