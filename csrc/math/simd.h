// The one SIMD layer: kLanes neighbouring floats that a work item handles together.
//
// On a CPU `Floats` is a vector of the compiler that fills one register of the instruction set that
// this compilation is for, so that no compiler has to find out by itself what to vectorise. On a
// GPU it is one float. Arithmetic, comparison and `condition ? a : b` are written the same for
// both.
//
//   load(p), load(p, count)        float32, float16 or bfloat16 as floats; lanes from `count` on
//   are zero store(p, x), store(p, x, count) gather(p, offsets)             p[offsets] of each lane
//   broadcast(v)                   v in every lane
//   permute(x, index)              x[index] of each lane, all in [0, kLanes)
//   lane(x, i), set_lane(x, i, v)
//   sum_of(x), largest_of(x)       over the lanes, in their order
//   any_of(mask)                   whether a comparison holds for any lane
//   keep_first(x, count)           zeroes the lanes from `count` on
#pragma once

namespace vss::inline VSS_MACHINE {

constexpr int64_t whole_lanes(int64_t n) { return cdiv<int64_t>(n, kLanes) * kLanes; }

#if VSS_GPU_CODE

using Floats = float;
using Ints = int32_t;

template <typename T>
VSS_DEVICE Floats load(const T* from) {
  return static_cast<float>(*from);
}
template <typename T>
VSS_DEVICE Floats load(const T* from, int) {
  return static_cast<float>(*from);
}
template <typename T>
VSS_DEVICE void store(T* to, Floats x) {
  *to = static_cast<T>(x);
}
template <typename T>
VSS_DEVICE void store(T* to, Floats x, int) {
  *to = static_cast<T>(x);
}
template <typename T>
VSS_DEVICE Floats gather(const T* from, Ints offset) {
  return static_cast<float>(from[offset]);
}
VSS_DEVICE Floats broadcast(float value) { return value; }
VSS_DEVICE float lane(Floats x, int) { return x; }
VSS_DEVICE int32_t lane(Ints x, int) { return x; }
VSS_DEVICE void set_lane(Floats& x, int, float value) { x = value; }
VSS_DEVICE void set_lane(Ints& x, int, int32_t value) { x = value; }
VSS_DEVICE float sum_of(Floats x) { return x; }
VSS_DEVICE bool any_of(bool mask) { return mask; }
VSS_DEVICE Floats keep_first(Floats x, int count) { return count < 1 ? 0.0f : x; }

#else

template <typename T, int kAlign>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kLanes * sizeof(T)), aligned(kAlign), may_alias));
};
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint32_t Bits __attribute__((vector_size(kLanes * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(kLanes * sizeof(uint16_t))));

VSS_INLINE Floats load(const float* from) {
  return *reinterpret_cast<const VectorOf<float, 4>::Type*>(from);
}
VSS_INLINE void store(float* to, Floats x) { *reinterpret_cast<VectorOf<float, 4>::Type*>(to) = x; }

// Less zero, since adding it would change the sign of a zero and so cost an addition.
VSS_INLINE Floats broadcast(float value) { return value - Floats{}; }

VSS_INLINE Halves load_halves(const void* from) {
  return *static_cast<const VectorOf<uint16_t, 2>::Type*>(from);
}
VSS_INLINE void store_halves(void* to, Halves x) {
  *static_cast<VectorOf<uint16_t, 2>::Type*>(to) = x;
}

// A bfloat16 is the upper half of a float. Rounds to nearest, ties to even; NaN stays NaN.
VSS_INLINE Floats load(const c10::BFloat16* from) {
  return (Floats)(__builtin_convertvector(load_halves(from), Bits) << 16);
}
VSS_INLINE void store(c10::BFloat16* to, Floats x) {
  const Bits bits = (Bits)x;
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits nan = Bits{} + 0x7fc0u;
  store_halves(to, __builtin_convertvector(x == x ? rounded : nan, Halves));
}

// float16 by the CPU's instructions where it has them.
VSS_INLINE Floats load(const c10::Half* from) {
#if defined(VSS_AVX512)
  return (Floats)_mm512_maskz_cvtph_ps(0xffff, (__m256i)load_halves(from));
#elif defined(VSS_AVX2)
  return (Floats)_mm256_cvtph_ps((__m128i)load_halves(from));
#else
  Floats x;
  for (int i = 0; i < kLanes; ++i) x[i] = static_cast<float>(from[i]);
  return x;
#endif
}
VSS_INLINE void store(c10::Half* to, Floats x) {
#if defined(VSS_AVX512)
  store_halves(to, (Halves)_mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(VSS_AVX2)
  store_halves(to, (Halves)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<c10::Half>(x[i]);
#endif
}

template <typename T>
VSS_INLINE Floats load(const T* from, int count) {
  if (count >= kLanes) return load(from);
  Floats x{};
  for (int i = 0; i < count; ++i) x[i] = static_cast<float>(from[i]);
  return x;
}
template <typename T>
VSS_INLINE void store(T* to, Floats x, int count) {
  if (count >= kLanes) return store(to, x);
  for (int i = 0; i < count; ++i) to[i] = static_cast<T>(x[i]);
}

template <typename T>
VSS_INLINE Floats gather(const T* from, Ints offsets) {
#if defined(VSS_AVX512)
  if constexpr (std::is_same_v<T, float>)
    return (Floats)_mm512_mask_i32gather_ps((__m512)Floats{}, 0xffff, (__m512i)offsets, from, 4);
#endif
  Floats x;
  VSS_UNROLL
  for (int i = 0; i < kLanes; ++i) x[i] = static_cast<float>(from[offsets[i]]);
  return x;
}

VSS_INLINE Floats permute(Floats x, Ints index) {
#if !defined(__clang__)
  return __builtin_shuffle(x, index);
#elif defined(VSS_AVX512)
  return (Floats)_mm512_permutexvar_ps((__m512i)index, (__m512)x);
#elif defined(VSS_AVX2)
  return (Floats)_mm256_permutevar8x32_ps((__m256)x, (__m256i)index);
#else
  Floats y;
  for (int i = 0; i < kLanes; ++i) y[i] = x[index[i]];
  return y;
#endif
}

VSS_INLINE float lane(Floats x, int i) { return x[i]; }
VSS_INLINE int32_t lane(Ints x, int i) { return x[i]; }
VSS_INLINE void set_lane(Floats& x, int i, float value) { x[i] = value; }
VSS_INLINE void set_lane(Ints& x, int i, int32_t value) { x[i] = value; }

VSS_INLINE float sum_of(Floats x) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}
VSS_INLINE float largest_of(Floats x) {
  float largest = x[0];
  for (int i = 1; i < kLanes; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

// `mask` is all ones or zero in each lane.
VSS_INLINE bool any_of(Ints mask) {
#if defined(VSS_AVX512)
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(VSS_AVX2)
  return _mm256_movemask_ps((__m256)mask) != 0;
#else
  int32_t any = 0;
  for (int i = 0; i < kLanes; ++i) any |= mask[i];
  return any != 0;
#endif
}

VSS_INLINE Ints lane_numbers() {
  Ints numbers;
  for (int i = 0; i < kLanes; ++i) numbers[i] = i;
  return numbers;
}
VSS_INLINE Floats keep_first(Floats x, int count) {
  if (count >= kLanes) return x;
  return lane_numbers() < count ? x : Floats{};
}

#endif

// Runs f(begin, count) for one group of kLanes in [0, size). The last overlaps the one before it,
// so that all are full and the compiler knows their count, unless there are fewer elements than
// lanes.
template <typename F>
VSS_INLINE void run_group(int group, int size, const F& f) {
  if (size >= kLanes) {
    f(group * kLanes < size - kLanes ? group * kLanes : size - kLanes, kLanes);
  } else {
    f(0, size);
  }
}

}  // namespace vss::inline VSS_MACHINE
