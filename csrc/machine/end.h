// Ends what target.h began: whatever the compiler adds at the end of a compilation, above all the
// code that runs while the library is loaded, must run on every CPU.
#if defined(VSS_AVX512) || defined(VSS_AVX2)
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
