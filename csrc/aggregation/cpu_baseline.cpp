// The block program of aggregate_affinity for any CPU.
#include "cpu_blocks_inl.h"

const vss::aggregation::CpuBlocks vss::aggregation::kBaselineBlocks = cpu_blocks<4>();
