// What the compiler is told about loops that must end up in registers.
//
//   VSS_SIMD     the iterations of the loop that follows are independent of each other
//   VSS_UNROLL   the loop that follows has few iterations, and the arrays it indexes belong in registers
//   VSS_INLINE   after a lambda's parameters: it is inlined. GCC leaves large lambdas out of the copies
//                that VSS_CPU_BLOCK makes of a function, and so compiles them for the oldest CPU only
#pragma once

#if defined(__CUDACC__)
#define VSS_SIMD
#define VSS_UNROLL _Pragma("unroll")
#define VSS_INLINE
#else
#define VSS_SIMD _Pragma("omp simd")
#if defined(VSS_NO_CPU_CLONES)
#define VSS_UNROLL  // sanitizers make each copy many times as large
#else
#define VSS_UNROLL _Pragma("GCC unroll 64")
#endif
#define VSS_INLINE __attribute__((always_inline))
#endif
