// aggregate_affinity: the block program. One block carries out all steps of a program (plan.h) for one
// map after another; every intermediate plane lives in the block's arena. See docs/relation.md for the
// derivation.
#pragma once

#include "enlarge.h"
#include "layer_gradient.h"

namespace vss::aggregation {

// Fills a block's scratch before its first map.
template <typename Block>
VSS_HOST_DEVICE void load_parameters(const Block& block, const Program& program,
                                     const Arguments& arguments) {
  float* parameters = block.scratch();
  with_type(arguments.parameter_kind, const_cast<void*>(arguments.parameters),
            [&](const auto* data) {
              block.for_each(program.parameter_count,
                             [&](int64_t i) { parameters[i] = static_cast<float>(data[i]); });
            });
  block.sync();
}

// Carries out all steps for one map. The actions of the backward program are compiled only where they
// can occur.
template <bool kBackward, typename Block>
VSS_HOST_DEVICE void run_map(const Block& block, const Program& program, const Arguments& arguments,
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
    } else if (step.action == Action::enlarge) {
      enlarge(block, program.grids[step.grid - 1], g, step.item, source, target);
    } else if (kBackward && step.action == Action::shrink) {
      shrink(block, program.grids[step.grid - 1], g, step.item, source, arena + step.spare, target);
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
        if (step.action == Action::repeat) {
          repeat(block, task, source, target);
        } else if (step.action == Action::norm_gradient) {
          norm_gradient(block, task, source, target, arena + step.spare);
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

}  // namespace vss::aggregation
