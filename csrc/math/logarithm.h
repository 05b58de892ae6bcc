// The natural logarithm of the losses.
#pragma once

#include "simd.h"

namespace vss::inline VSS_MACHINE {

#if VSS_GPU_CODE

VSS_DEVICE float logarithm(float x) { return std::log(x); }

#else

// log(x) for the normal numbers above zero, within one unit in the last place, and exact at 1;
// infinity and NaN stay what they are.
VSS_INLINE Floats logarithm(Floats x) {
  constexpr uint32_t kHalfRoot = 0x3f3504f3;  // the bits of sqrt(1/2)
  constexpr int kMantissaBits = 23;
  constexpr float kLn2High = 0.693359375f;  // few enough bits that its multiples here are exact
  constexpr float kLn2Low = -2.12194440e-4f;
  // x = 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), which keeps what is close to 1 exact.
  const Ints n = (Ints)((Bits)x - kHalfRoot) >> kMantissaBits;
  const Floats f = (Floats)((Bits)x - ((Bits)n << kMantissaBits)) - 1.0f;
  const Floats power = __builtin_convertvector(n, Floats);
  // log(1 + f) = f - f^2 / 2 + f^3 p(f), with the p of degree 8 of Cephes.
  Floats p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const Floats square = f * f;
  const Floats behind = p * f * square + power * kLn2Low - 0.5f * square;
  const Floats log = (f + behind) + power * kLn2High;
  return x < std::numeric_limits<float>::infinity() ? log : x;
}

#endif

}  // namespace vss::inline VSS_MACHINE
