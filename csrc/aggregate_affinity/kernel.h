// aggregate_affinity: the kernel. One block carries out all steps of a program (plan.h) for one
// map after another; every intermediate plane lives in the block's arena. See docs/relation.md for
// the derivation.
#pragma once

#include "layer_gradient.h"
#include "upsample.h"

namespace vss::inline VSS_MACHINE::aggregate_affinity {

// Fills a block's scratch before its first map.
VSS_DEVICE void load_parameters(const Block& block, const Program& program,
                                const Arguments& arguments) {
  float* parameters = block.scratch();
  with_type(arguments.parameter_kind, const_cast<void*>(arguments.parameters),
            [&](const auto* data) {
              block.for_each(program.parameter_count,
                             [&](int64_t i) { parameters[i] = static_cast<float>(data[i]); });
            });
  block.sync();
}

// Carries out all steps for one map. The actions of the backward program are compiled only where
// they can occur.
template <bool kBackward>
VSS_DEVICE void run_map(const Block& block, const Program& program, const Arguments& arguments,
                        float* arena, int64_t map) {
  for (int i = 0; i < program.step_count; ++i) {
    const Step& step = program.steps[i];
    const Grid& g = program.grids[step.grid];
    float* source = arena + step.source;
    float* target = arena + step.target;
    if (step.action == Action::load) {
      load_map(block, g, arguments.maps[step.item], map, target);
    } else if (step.action == Action::store) {
      store_map(block, g, arguments.maps[step.item], map, source);
    } else if (step.action == Action::upsample) {
      upsample(block, program.grids[step.grid - 1], g, step.item, source, target);
    } else if (kBackward && step.action == Action::upsample_adjoint) {
      upsample_adjoint(block, program.grids[step.grid - 1], g, step.item, source,
                       arena + step.workspace, target);
    } else {
      const LayerTask task{
          g,
          program.layers[step.item],
          block.scratch(),
          block.scratch() + program.parameter_count,
          arguments.statistics + (map * program.layer_count + step.item) * 2,
          arguments.parts == nullptr ? nullptr : arguments.parts + map * program.parameter_count,
          arguments.epsilon};
      if constexpr (kBackward) {
        if (step.action == Action::recompute) {
          recompute(block, task, source, target);
        } else if (step.action == Action::norm_gradient) {
          norm_gradient(block, task, source, target, arena + step.workspace);
        } else if (step.action == Action::weight_gradient) {
          weight_gradient(block, task, source, target);
        } else {
          input_gradient(block, task, source, target);
        }
      } else {
        refine(block, task, source, target);
      }
    }
    block.sync();
  }
}

// Runs the program for one map after another. The arena is each worker's workspace, or, where a
// GPU's shared memory is large enough, lies behind the parameters in scratch.
template <bool kBackward, bool kArenaInScratch>
struct AggregateMaps {
  Program program;
  Arguments arguments;

  VSS_DEVICE void begin(const Block& block) const { load_parameters(block, program, arguments); }

  VSS_DEVICE void operator()(const Block& block, int64_t map) const {
    float* arena = kArenaInScratch ? block.scratch() + program.scratch_floats() : block.workspace();
    run_map<kBackward>(block, program, arguments, arena, map);
  }
};

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
