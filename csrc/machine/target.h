// The machine that this compilation is for. setup.py compiles each operator's host.cpp once for
// every one of them, with one of these defined:
//
//   VSS_BASELINE     any CPU: SSE2 on x86-64, NEON on ARM64
//   VSS_AVX2         x86-64 with AVX2, FMA and F16C
//   VSS_AVX512       x86-64 with AVX-512 F, BW, DQ and VL
//   VSS_CUDA         a GPU
//   VSS_RACE_CHECK   a GPU's program on threads of the CPU, for ThreadSanitizer
//
// All of our code lives in the machine's own inline namespace: copies for different machines never
// meet in the linker. Included once, after foreign.h, by machine.h; see there for the words that
// the kernels are written in.
#pragma once

#if defined(VSS_CUDA)
#define VSS_MACHINE cuda
#elif defined(VSS_RACE_CHECK)
#define VSS_MACHINE race_check
#elif defined(VSS_AVX512)
#define VSS_MACHINE avx512
#elif defined(VSS_AVX2)
#define VSS_MACHINE avx2
#elif defined(VSS_BASELINE)
#define VSS_MACHINE baseline
#else
#error "define the machine: VSS_BASELINE, VSS_AVX2, VSS_AVX512, VSS_CUDA or VSS_RACE_CHECK"
#endif

// The pragmas stay in force until end.h, which the compilation ends with. (Vector types are split
// to what the function that defines them is compiled for, so attributes that clone a function come
// too late.)
#if defined(VSS_AVX512)
#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif
#elif defined(VSS_AVX2)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#endif

#if defined(VSS_CUDA) || defined(VSS_RACE_CHECK)
#define VSS_GPU_CODE 1
#else
#define VSS_GPU_CODE 0
#endif

// VSS_INLINE   a function that runs inside a kernel, and on the host where it is `constexpr`-like
// VSS_DEVICE   a function that runs inside a kernel only
// VSS_UNROLL   the loop that follows has few iterations, and the arrays it indexes belong in
// registers
#if defined(VSS_CUDA)
#define VSS_INLINE __host__ __device__ __forceinline__
#define VSS_DEVICE __device__ __forceinline__
#define VSS_UNROLL _Pragma("unroll")
#else
#define VSS_INLINE inline __attribute__((always_inline))
#define VSS_DEVICE VSS_INLINE
#if defined(VSS_SMALL_CODE)
#define VSS_UNROLL  // sanitizers make each copy many times as large
#elif defined(__clang__)
#define VSS_UNROLL _Pragma("clang loop unroll(full)")
#else
#define VSS_UNROLL _Pragma("GCC unroll 64")
#endif
#endif

// After a lambda's parameters: it is inlined. Compilers leave large lambdas that are called twice
// out.
#if defined(VSS_CUDA)
#define VSS_LAMBDA
#else
#define VSS_LAMBDA __attribute__((always_inline))
#endif

namespace vss::inline VSS_MACHINE {
constexpr bool kGpu = VSS_GPU_CODE;

// How many neighbouring elements a work item takes: a SIMD register's worth on a CPU, one on a GPU,
// where neighbours belong to other threads.
#if VSS_GPU_CODE
constexpr int kLanes = 1;
#elif defined(VSS_AVX512)
constexpr int kLanes = 16;
#elif defined(VSS_AVX2)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
}  // namespace vss::inline VSS_MACHINE
