// The exponential function of the softmaxes.
#pragma once

#include "simd.h"

namespace vss::inline VSS_MACHINE {

#if VSS_GPU_CODE && defined(VSS_CUDA)

// exp(x) for x <= 88; the hardware's.
VSS_DEVICE float exponential(float x) { return __expf(x); }

#else

// exp(x) for -87 <= x <= 88, within 2 units in the last place; NaN stays NaN.
VSS_INLINE Floats exponential_in_range(Floats x) {
#if VSS_GPU_CODE
  using Bits = uint32_t;
#endif
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f;  // few enough bits that its multiples here are exact
  constexpr float kLn2Low = -2.12194440e-4f;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits; 127 is the bias
  // of a float's exponent, so that a shift alone makes 2^n of them.
  constexpr float kRound = 12582912.0f + 127.0f;
  const Floats shifted = x * kLog2E + kRound;
  const Floats n = shifted - kRound;
  const Floats r = (x - n * kLn2High) - n * kLn2Low;  // |r| <= ln(2) / 2
  // exp(r) = 1 + r + r^2 q(r), with the q of degree 4 of least relative error (3e-9).
  Floats q = r * 1.3814467e-3f + 8.3687804e-3f;
  q = q * r + 4.1668394e-2f;
  q = q * r + 1.6666520e-1f;
  q = q * r + 4.9999993e-1f;
  const Floats mantissa = (q * r + 1.0f) * r + 1.0f;
  const Bits power = __builtin_bit_cast(Bits, shifted) << 23;
  return mantissa * __builtin_bit_cast(Floats, power);
}

constexpr float kLowestExponent =
    -87.0f;  // below, results are denormal and slow down what uses them

// exp(x) for x <= 88; stays at exp(-87), nearly the smallest normal number, below -87.
VSS_INLINE Floats exponential(Floats x) {
  // In this order one instruction takes the larger and keeps NaN.
  const Floats lowest = broadcast(kLowestExponent);
  return exponential_in_range(lowest > x ? lowest : x);
}

#endif

#if !VSS_GPU_CODE

// exp(x); zero below -87, exp(88) above 88.
VSS_INLINE Floats exponential_or_zero(Floats x) {
  constexpr float kHighest = 88.0f;
  const Ints vanishes = x < kLowestExponent;
  const Floats lowest = broadcast(kLowestExponent), highest = broadcast(kHighest);
  x = lowest > x ? lowest : x;
  x = highest < x ? highest : x;
  return vanishes ? Floats{} : exponential_in_range(x);
}

#endif

}  // namespace vss::inline VSS_MACHINE
