// Writes the program of a forward or backward pass: which steps, in which order, and where in the
// arena each tensor lies while it is needed. Runs on the host, once per call.
#pragma once

#include "program.h"

namespace vss::inline VSS_MACHINE::aggregate_affinity {

// Hands out places in the arena, first fit, and keeps its highest size.
class Arena {
 public:
  int32_t take(int64_t floats) {
    floats = whole_lanes(floats);
    int64_t begin = 0;
    auto next = taken_.begin();
    for (; next != taken_.end() && next->begin - begin < floats; ++next) begin = next->end;
    taken_.insert(next, {begin, begin + floats});
    size_ = std::max(size_, begin + floats);
    TORCH_CHECK_VALUE(size_ < kLargest,
                      "aggregate_affinity: the maps are too large for the native "
                      "kernel; use the eager backend");
    return static_cast<int32_t>(begin);
  }

  void give_back(int32_t begin) {
    taken_.erase(std::find_if(taken_.begin(), taken_.end(),
                              [&](const Range& span) { return span.begin == begin; }));
  }

  int size() const { return static_cast<int>(size_); }

 private:
  static constexpr int64_t kLargest = int64_t{1} << 30;  // places are 32-bit numbers
  int64_t size_ = 0;
  std::vector<Range> taken_;  // in order
};

class Planner {
 public:
  // `chains` holds the number of layers of each chain.
  Planner(const std::array<int, kChains>& chains, at::ArrayRef<Layer> layers, int64_t height,
          int64_t width) {
    program_.layer_count = static_cast<int>(layers.size());
    program_.parameter_count = layers.back().end();
    std::copy(layers.begin(), layers.end(), program_.layers);
    int first = 0;
    for (int chain = 0; chain < kChains; ++chain) {
      chains_[chain] = {first, first + chains[chain]};
      first += chains[chain];
    }
    for (const Layer& layer : layers) {
      const int weights = layer.taps() * channels_together(layer.kernel, layer.out);
      program_.most_sums = std::max({program_.most_sums, weights, 2 * layer.out});
    }
    for (int grid = 0; grid < kGrids; ++grid)
      program_.grids[grid] = make_grid(height << grid, width << grid, border_of(grid));
    for (int grid = 1; grid < kGrids; ++grid) {
      Grid& fine = program_.grids[grid];
      fine.row_scale = corner_scale(program_.grids[grid - 1].height, fine.height);
      fine.column_scale = corner_scale(program_.grids[grid - 1].width, fine.width);
    }
  }

  Program forward() {
    Planes current = run_chain(load(kCoarse), kCoarseChain, Action::refine);
    for (int grid = 1; grid < kGrids; ++grid) {
      Planes sum = run_chain(load(grid), grid, Action::refine);
      upsample(current, sum);
      current = run_chain(sum, kMixers + grid - 1, Action::refine);
    }
    emit(Action::store, 2, kResult, current.place, 0);
    return finish();
  }

  // The fine scale comes first and alone, so that the planes of the coarser scales, which are
  // needed again only later, are recomputed rather than kept beside its own.
  Program backward(std::array<bool, kGrids> needs_maps, bool needs_parameters) {
    needs_maps_ = needs_maps;
    needs_parameters_ = needs_parameters;
    Planes current = run_chain(load(kCoarse), kCoarseChain, Action::recompute);
    Planes sum = run_chain(load(kMiddle), 1, Action::recompute);
    upsample(current, sum);
    current = run_chain(sum, kMixers, Action::recompute);

    Planes gradient = stage_gradient(current, 2, {});
    if (needs_parameters || needs_maps[kCoarse] || needs_maps[kMiddle]) {
      std::vector<Planes> coarse_inputs;
      current = run_chain(load(kCoarse), kCoarseChain, Action::recompute, &coarse_inputs);
      gradient = stage_gradient(current, 1, gradient);
      if (needs_parameters || needs_maps[kCoarse])
        unwind_refinement(kCoarseChain, coarse_inputs, gradient);
    }
    return finish();
  }

 private:
  struct Planes {
    int32_t place;
    int8_t grid, channels;
  };
  struct ChainLayers {
    int first, end;
  };
  static constexpr int kCoarseChain = 0;
  static constexpr int kMixers =
      3;  // the chain that makes the middle scale, then that of the fine one

  // As wide as the widest kernel on the grid needs; at least one, for a row of zeros below the
  // grid.
  int border_of(int grid) const {
    int border = 1;
    const int mixer = grid == 0 ? grid : kMixers + grid - 1;  // none makes the coarse scale
    for (const int chain : {grid, mixer})
      for (int i = chains_[chain].first; i < chains_[chain].end; ++i)
        border = std::max(border, program_.layers[i].kernel / 2);
    return border;
  }

  static float corner_scale(int size, int resized) {
    return static_cast<float>(size - 1) / static_cast<float>(resized - 1);
  }

  static Grid make_grid(int64_t height, int64_t width, int64_t border) {
    const int64_t pitch = whole_lanes(width + border);
    const int64_t lead = whole_lanes(border);
    const int64_t channel = 2 * lead + (height + 2 * border) * pitch;
    TORCH_CHECK_VALUE(channel < (int64_t{1} << 30),
                      "aggregate_affinity: the maps are too large for "
                      "the native kernel; use the eager backend");
    Grid grid{};
    grid.height = static_cast<int>(height);
    grid.width = static_cast<int>(width);
    grid.border = static_cast<int>(border);
    grid.lead = static_cast<int>(lead);
    grid.pitch = static_cast<int>(pitch);
    grid.channel = static_cast<int>(channel);
    grid.origin = static_cast<int>(lead + border * pitch);
    grid.tile_columns = static_cast<int>(cdiv<int64_t>(width, kLanes));
    grid.tiles = grid.tile_columns * static_cast<int>(cdiv<int64_t>(height, kRows));
    return grid;
  }

  void emit(Action action, int grid, int item, int32_t source, int32_t target,
            int32_t workspace = 0) {
    TORCH_INTERNAL_ASSERT(program_.step_count < kMaxSteps);
    program_.steps[program_.step_count++] = {
        action, static_cast<int8_t>(grid), static_cast<int8_t>(item), source, target, workspace};
  }

  Planes take(int grid, int channels) {
    const int64_t floats = int64_t{program_.grids[grid].channel} * channels;
    return {arena_.take(floats), static_cast<int8_t>(grid), static_cast<int8_t>(channels)};
  }

  void give_back(const Planes& planes) { arena_.give_back(planes.place); }

  Planes load(int grid, int map) {
    const Planes planes = take(grid, 1);
    emit(Action::load, grid, map, 0, planes.place);
    return planes;
  }
  Planes load(int grid) { return load(grid, grid); }

  Planes run_layer(const Planes& input, int index, Action action) {
    const Planes output = take(input.grid, program_.layers[index].out);
    emit(action, input.grid, index, input.place, output.place);
    return output;
  }

  // Runs a chain; inputs are given back, or kept in `inputs` where that is given: those of all
  // layers for a mixer, those of all but the first for a refinement, whose first input is a map to
  // load again.
  Planes run_chain(Planes current, int chain, Action action, std::vector<Planes>* inputs = nullptr,
                   int leave_out = 0) {
    for (int i = chains_[chain].first; i < chains_[chain].end - leave_out; ++i) {
      const Planes next = run_layer(current, i, action);
      const bool is_map = chain < kMixers && i == chains_[chain].first;
      if (inputs != nullptr && !is_map) {
        inputs->push_back(current);
      } else {
        give_back(current);
      }
      current = next;
    }
    return current;
  }

  void upsample(const Planes& coarse, const Planes& sum) {
    emit(Action::upsample, sum.grid, sum.channels, coarse.place, sum.place);
    give_back(coarse);
  }

  // Recomputes one scale from its map and the coarser result, then goes back through it. Takes the
  // gradient of its result (the fine scale's is a map) and returns that of the coarser result.
  Planes stage_gradient(const Planes& coarser, int grid, Planes gradient) {
    std::vector<Planes> refinement, mixer;
    const Planes sum = run_chain(load(grid), grid, Action::recompute, &refinement);
    upsample(coarser, sum);
    // The mixer's last layer is recomputed with its gradient.
    const Planes last = run_chain(sum, kMixers + grid - 1, Action::recompute, &mixer, 1);
    mixer.push_back(last);
    if (grid == 2) gradient = load(grid, kResult);
    gradient = unwind(kMixers + grid - 1, mixer, gradient, true);

    Planes result{};
    const bool needs_coarser = std::any_of(needs_maps_.begin(), needs_maps_.begin() + grid,
                                           [](bool needs) { return needs; });
    if (needs_parameters_ || needs_coarser) {
      const Grid& coarse = program_.grids[grid - 1];
      const int32_t workspace =
          arena_.take(int64_t{gradient.channels} * coarse.height * program_.grids[grid].pitch);
      result = take(grid - 1, gradient.channels);
      emit(Action::upsample_adjoint, grid, gradient.channels, gradient.place, result.place,
           workspace);
      arena_.give_back(workspace);
    }
    if (needs_parameters_ || needs_maps_[grid]) {
      unwind_refinement(grid, refinement, gradient);
    } else {
      for (const Planes& planes : refinement) give_back(planes);
      give_back(gradient);
    }
    return result;
  }

  void unwind_refinement(int grid, std::vector<Planes>& inputs, const Planes& gradient) {
    inputs.insert(inputs.begin(), Planes{kReload, static_cast<int8_t>(grid), 1});
    const Planes map_gradient = unwind(grid, inputs, gradient, needs_maps_[grid]);
    if (!needs_maps_[grid]) return;
    emit(Action::store, grid, kCoarseGradient + grid, map_gradient.place, 0);
    give_back(map_gradient);
  }

  // Goes back through a chain from the gradient of its result to that of its input (if wanted).
  Planes unwind(int chain, const std::vector<Planes>& inputs, Planes gradient, bool needs_input) {
    for (int i = chains_[chain].end - 1; i >= chains_[chain].first; --i) {
      const int position = i - chains_[chain].first;
      const Layer& layer = program_.layers[i];
      Planes input = inputs[position];
      if (input.place == kReload) input = load(input.grid);
      const Planes normed = take(input.grid, layer.out);
      emit(Action::norm_gradient, input.grid, i, input.place, gradient.place, normed.place);
      give_back(normed);
      if (needs_parameters_)
        emit(Action::weight_gradient, input.grid, i, input.place, gradient.place);
      give_back(input);
      if (position == 0 && !needs_input) {
        give_back(gradient);
        return {};
      }
      const Planes next = take(input.grid, layer.in);
      emit(Action::input_gradient, input.grid, i, gradient.place, next.place);
      give_back(gradient);
      gradient = next;
    }
    return gradient;
  }

  Program finish() {
    program_.arena_floats = arena_.size();
    return program_;
  }

  static constexpr int32_t kReload = -1;
  Program program_{};
  Arena arena_;
  std::array<ChainLayers, kChains> chains_;
  std::array<bool, kGrids> needs_maps_{};
  bool needs_parameters_ = false;
};

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
