// Powers of two, for results that may be off by a few units in the last place.
#pragma once

#include "simd.h"

namespace vss::inline VSS_MACHINE {

#if VSS_GPU_CODE && defined(VSS_CUDA)

// 2^x; the hardware's.
VSS_DEVICE float power_of_two(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

#else

// 2^x for -125 <= x <= 126, within a relative error of 2e-7; NaN stays NaN.
VSS_INLINE Floats power_of_two(Floats x) {
#if VSS_GPU_CODE
  using Bits = uint32_t;
#endif
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits; 127 is the bias
  // of a float's exponent, so that a shift alone makes 2^n of them.
  constexpr float kRound = 12582912.0f + 127.0f;
  const Floats shifted = x + kRound;
  const Floats r = x - (shifted - kRound);  // |r| <= 1 / 2
  // The polynomial of degree 5 of least relative error (8e-8).
  Floats mantissa = r * 1.32764946e-3f + 9.6755493e-3f;
  mantissa = mantissa * r + 5.55071328e-2f;
  mantissa = mantissa * r + 2.40221196e-1f;
  mantissa = mantissa * r + 6.93146967e-1f;
  mantissa = mantissa * r + 1.00000007f;
  const Bits power = __builtin_bit_cast(Bits, shifted) << 23;
  return mantissa * __builtin_bit_cast(Floats, power);
}

#endif

}  // namespace vss::inline VSS_MACHINE
