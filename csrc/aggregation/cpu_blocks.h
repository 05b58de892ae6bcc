// The block program compiled for one CPU instruction set.
//
// Each cpu_<set>.cpp compiles it once more, with registers of that set's width: vector types are split
// to what the *defining* function's target has, so that attributes which clone a function for several
// targets come too late. Those files include nothing but this header, so that no inline function of
// another library is compiled for a CPU that may not be there.
#pragma once

#include "program.h"

namespace vss::aggregation {

using RunMaps = void (*)(const Program& program, const Arguments& arguments, float* scratch,
                         float* arena, int64_t begin, int64_t end);

struct CpuBlocks {
  int lanes;
  RunMaps forward, backward;
};

extern const CpuBlocks kBaselineBlocks;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VSS_X86_BLOCKS
extern const CpuBlocks kAvx2Blocks;
extern const CpuBlocks kAvx512Blocks;
#endif

}  // namespace vss::aggregation
