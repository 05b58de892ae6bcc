// Launches the kernels of the published chains on a GPU where these and the size of the maps fit.
#pragma once

#include "gpu_backward.h"
#include "gpu_kernel.h"

namespace vss::inline VSS_MACHINE::aggregate_affinity {

// Whether `layers`, as host.cpp takes them, are these chains.
template <typename Chains>
bool is_published(at::IntArrayRef layers) {
  std::vector<int64_t> published(std::begin(Chains::kLengths), std::end(Chains::kLengths));
  for (const LayerShape& shape : Chains::kShapes)
    published.insert(published.end(), {shape.kernel, shape.in, shape.out});
  return layers == at::IntArrayRef(published);
}

// Launches `Kernel` and returns true where a block can have a thread for each coarse position and
// shared memory for all planes.
template <typename Kernel>
bool run_patches(const char* op, int64_t maps, const Kernel& kernel) {
  const GpuLimits limits = gpu_limits();
  const int64_t threads = int64_t{kernel.layout.height} * kernel.layout.row_threads;
  if (threads > std::min<int64_t>(kPatchThreads, limits.block_threads)) return false;
  if (shared_bytes<Block>(kernel.scratch_floats()) > limits.block_shared_bytes) return false;
  run_blocks<kPatchThreads>(
      {.op = op, .blocks = maps, .threads = threads, .scratch_floats = kernel.scratch_floats()},
      kernel);
  return true;
}

template <bool kBackward, typename Chains>
bool run_chains(const char* op, at::IntArrayRef layers, int64_t maps, int64_t height, int64_t width,
                const Arguments& arguments) {
  if (!is_published<Chains>(layers)) return false;
  const PatchLayout layout = make_patch_layout<Chains>(height, width);
  if constexpr (kBackward) {
    return run_patches(op, maps, AggregatePatchesBackward<Chains>{layout, arguments});
  } else {
    return run_patches(op, maps, AggregatePatches<Chains>{layout, arguments});
  }
}

// Runs a pass over coarse maps of `height` x `width`; returns false where the planner has to.
template <bool kBackward>
bool run_published(const char* op, at::IntArrayRef layers, int64_t maps, int64_t height,
                   int64_t width, const Arguments& arguments) {
  if (height * width > kPatchThreads) return false;  // and sizes fit an int
  return run_chains<kBackward, OneLayerChains>(op, layers, maps, height, width, arguments) ||
         run_chains<kBackward, TwoLayerChains>(op, layers, maps, height, width, arguments);
}

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
