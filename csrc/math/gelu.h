// The exact GELU, z times the normal distribution function of z, and its derivative.
//
// With a = |z|, the distribution function at -a is exp(-a^2 / 2) times a function that varies so
// little that a polynomial of degree 10 will do. Errors are below 2e-7, absolute. NaN stays NaN.
#pragma once

#include "power_of_two.h"
#include "simd.h"

namespace vss::inline VSS_MACHINE {

#if VSS_GPU_CODE
VSS_DEVICE Floats magnitude(Floats x) { return fabsf(x); }
#else
VSS_INLINE Floats magnitude(Floats x) { return (Floats)((Bits)x & 0x7fffffffu); }
#endif

// The smaller of both; NaN stays NaN. By instructions that GCC does not find by itself.
VSS_DEVICE Floats at_most(Floats x, float bound) {
#if defined(VSS_AVX512)
  return (Floats)_mm512_maskz_min_ps(0xffff, (__m512)broadcast(bound), (__m512)x);
#elif defined(VSS_AVX2)
  return (Floats)_mm256_min_ps((__m256)broadcast(bound), (__m256)x);
#else
  return x > bound ? broadcast(bound) : x;
#endif
}

// x where it is positive, else zero; also for NaN.
VSS_DEVICE Floats positive_part(Floats x) {
#if defined(VSS_AVX512)
  return (Floats)_mm512_maskz_max_ps(0xffff, (__m512)x, (__m512)Floats{});
#elif defined(VSS_AVX2)
  return (Floats)_mm256_max_ps((__m256)x, (__m256)Floats{});
#else
  return x > 0.0f ? x : Floats{};
#endif
}

// What GELU and its derivative have in common: the normal distribution function at -|z| is `decay`
// times `ratio`.
struct NormalTail {
  Floats distance;  // |z|; beyond kFarthest, where nothing is left of either, kFarthest
  Floats decay;     // exp(-z^2 / 2)
  Floats ratio;

  VSS_DEVICE explicit NormalTail(Floats z) {
    constexpr float kFarthest = 12.6f;  // small enough that no result is denormal
    constexpr float kHalfLog2E = 0.72134752f;
    // Of least error in [0, 6] (1.2e-7), weighted by exp(-a^2 / 2) and by a where that is above 1.
    // Beyond, the weight is below 2e-8.
    constexpr int kDegree = 10;
    constexpr float kCoefficients[kDegree + 1] = {
        0.499999878f,    -0.398932474f,    0.249869576f,   -0.132305616f,
        0.0607018208f,   -0.0237629653f,   0.00754192931f, -0.00180143829f,
        0.000295172038f, -2.89960759e-05f, 1.27135524e-06f};
    distance = at_most(magnitude(z), kFarthest);
    decay = power_of_two(distance * distance * -kHalfLog2E);
    ratio = broadcast(kCoefficients[kDegree]);
    VSS_UNROLL
    for (int n = kDegree - 1; n >= 0; --n) ratio = ratio * distance + kCoefficients[n];
  }
};

// With the tail of the same z, for who needs the derivative as well.
VSS_DEVICE Floats gelu(Floats z, const NormalTail& tail) {
  return positive_part(z) - tail.distance * tail.decay * tail.ratio;
}

VSS_DEVICE Floats gelu(Floats z) { return gelu(z, NormalTail(z)); }

VSS_DEVICE Floats gelu_derivative(Floats z, const NormalTail& tail) {
  constexpr float kDensity = 0.39894228f;                                     // 1 / sqrt(2 pi)
  const Floats below = tail.decay * (tail.ratio - tail.distance * kDensity);  // at -|z|
  return z > 0.0f ? 1.0f - below : below;
}

}  // namespace vss::inline VSS_MACHINE
