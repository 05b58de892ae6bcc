// The exponential function of the softmaxes.
#pragma once

#include <bit>
#include <cstdint>

#include "block.h"

namespace vss {

// Replaces x by exp(x) for -87 <= x <= 88, within 2 units in the last place; NaN stays NaN. For a float
// and uint32_t, or for vectors of them. Without branches and calls, so that a loop over it vectorises.
template <typename Bits, typename Float>
VSS_HOST_DEVICE void exponentiate_in_range(Float& x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f;  // few enough bits that its multiples here are exact
  constexpr float kLn2Low = -2.12194440e-4f;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits; 127 is the bias of
  // a float's exponent, so that a shift alone makes 2^n of them.
  constexpr float kRound = 12582912.0f + 127.0f;
  const Float shifted = x * kLog2E + kRound;
  const Float n = shifted - kRound;
  const Float r = (x - n * kLn2High) - n * kLn2Low;  // |r| <= ln(2) / 2
  // exp(r) = 1 + r + r^2 q(r), with the q of degree 4 of least relative error (3e-9).
  Float q = r * 1.3814467e-3f + 8.3687804e-3f;
  q = q * r + 4.1668394e-2f;
  q = q * r + 1.6666520e-1f;
  q = q * r + 4.9999993e-1f;
  const Float mantissa = q * (r * r) + r + 1.0f;
  // The builtin, since a function that returns vectors has another interface on each CPU.
  const Bits power = __builtin_bit_cast(Bits, shifted) << 23;
  x = mantissa * __builtin_bit_cast(Float, power);
}

// exp(x) for x <= 88. On the CPU it stays at exp(-87) (nearly the smallest normal number) below -87. On
// the GPU it is the hardware's.
VSS_HOST_DEVICE float exponential(float x) {
#if defined(__CUDA_ARCH__)
  return __expf(x);
#else
  constexpr float kLowest = -87.0f;
  // Bitwise, since a branch to a known value would keep the loop from vectorising.
  const uint32_t low = -static_cast<uint32_t>(x < kLowest);
  x = std::bit_cast<float>((std::bit_cast<uint32_t>(x) & ~low) |
                           (std::bit_cast<uint32_t>(kLowest) & low));
  exponentiate_in_range<uint32_t>(x);
  return x;
#endif
}

}  // namespace vss
