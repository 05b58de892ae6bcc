// The exponential function of the softmaxes.
#pragma once

#include <bit>
#include <cstdint>

#include "block.h"

namespace vss {

// exp(x) for x <= 88; NaN stays NaN. On the CPU it is within 2 units in the last place, stays at exp(-87)
// (nearly the smallest normal number) below -87, and has neither branches nor calls, so that a loop
// over it vectorises. On the GPU it is the hardware's.
VSS_HOST_DEVICE float exponential(float x) {
#if defined(__CUDA_ARCH__)
  return __expf(x);
#else
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f;  // few enough bits that its multiples here are exact
  constexpr float kLn2Low = -2.12194440e-4f;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits; 127 is the bias of
  // a float's exponent, so that a shift alone makes 2^n of them.
  constexpr float kRound = 12582912.0f + 127.0f;
  constexpr float kLowest = -87.0f;
  // Bitwise, since a branch to a known value would keep the loop from vectorising.
  const uint32_t low = -static_cast<uint32_t>(x < kLowest);
  x = std::bit_cast<float>((std::bit_cast<uint32_t>(x) & ~low) |
                           (std::bit_cast<uint32_t>(kLowest) & low));
  const float shifted = x * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;  // |r| <= ln(2) / 2
  // exp(r) = 1 + r + r^2 q(r), with the q of degree 4 of least relative error (3e-9).
  float q = 1.3814467e-3f;
  q = q * r + 8.3687804e-3f;
  q = q * r + 4.1668394e-2f;
  q = q * r + 1.6666520e-1f;
  q = q * r + 4.9999993e-1f;
  const float mantissa = q * (r * r) + r + 1.0f;
  const float power = std::bit_cast<float>(std::bit_cast<uint32_t>(shifted) << 23);
  return mantissa * power;
#endif
}

}  // namespace vss
