// The CPU launchers of aggregate_affinity: one block after another on every thread.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/library.h>

#include <string>

#include "aggregation_arguments.h"
#include "cpu_blocks.h"

namespace vss::aggregation {
namespace {

// Follows PyTorch's own choice, so that ATEN_CPU_CAPABILITY holds here too.
const CpuBlocks& blocks() {
#if defined(VSS_X86_BLOCKS)
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") return kAvx512Blocks;
  if (capability == "AVX2") return kAvx2Blocks;
#endif
  return kBaselineBlocks;
}

// Splits the maps over the threads; each thread has one arena, which stays in its cache.
void run_parallel(const Call& call, RunMaps run) {
  at::parallel_for(0, call.maps, 1, [&](int64_t begin, int64_t end) {
    constexpr int64_t kLine = 16;  // floats of a cache line, and of the widest register
    const int64_t scratch = ceil_div<int64_t>(call.program.scratch_floats(), kLine) * kLine;
    std::vector<float> memory(kLine + scratch + call.program.arena_floats);
    const int64_t past = reinterpret_cast<uintptr_t>(memory.data()) / sizeof(float) % kLine;
    float* start = memory.data() + (kLine - past) % kLine;
    run(call.program, call.arguments, start, start + scratch, begin, end);
  });
}

at::Tensor widen(const at::Tensor& tensor) { return tensor.to(at::kFloat); }

std::tuple<at::Tensor, at::Tensor> aggregate(const at::Tensor& coarse, const at::Tensor& middle,
                                             const at::Tensor& fine, const at::Tensor& parameters,
                                             at::IntArrayRef layers) {
  check_maps(coarse, middle, fine, parameters);
  const ForwardCall call = forward_call(widen(coarse), widen(middle), widen(fine),
                                        widen(parameters), layers, blocks().lanes);
  run_parallel(call, blocks().forward);
  return {call.result.to(fine.scalar_type()), call.statistics};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> aggregate_backward(
    const at::Tensor& grad, const at::Tensor& coarse, const at::Tensor& middle,
    const at::Tensor& fine, const at::Tensor& parameters, const at::Tensor& statistics,
    at::IntArrayRef layers, std::array<bool, 4> needs) {
  check_maps(coarse, middle, fine, parameters);
  check_gradient(grad, fine);
  const BackwardCall call =
      backward_call(widen(grad), widen(coarse), widen(middle), widen(fine), widen(parameters),
                    statistics, layers, needs, blocks().lanes);
  run_parallel(call, blocks().backward);
  return call.gradients(fine.scalar_type(), parameters.scalar_type());
}

}  // namespace
}  // namespace vss::aggregation

TORCH_LIBRARY_IMPL(vss_kernels, CPU, m) {
  m.impl("aggregate_affinity", TORCH_FN(vss::aggregation::aggregate));
  m.impl("aggregate_affinity_backward", TORCH_FN(vss::aggregation::aggregate_backward));
}
