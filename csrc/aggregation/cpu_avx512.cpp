// The block program of aggregate_affinity for CPUs with AVX-512.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")

#include "cpu_blocks_inl.h"

const vss::aggregation::CpuBlocks vss::aggregation::kAvx512Blocks = cpu_blocks<16>();

#endif
