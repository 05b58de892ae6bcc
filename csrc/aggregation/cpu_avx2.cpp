// The block program of aggregate_affinity for CPUs with AVX2.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,fma")

#include "cpu_blocks_inl.h"

const vss::aggregation::CpuBlocks vss::aggregation::kAvx2Blocks = cpu_blocks<8>();

#endif
