// What a block is told to do with one map: the sizes of the three grids, the layers, and the list
// of steps with the place in the arena of every plane they touch. plan.h writes it on the host,
// once per call; kernel.h carries it out. Passed to the kernel by value.
#pragma once

#include "../machine/machine.h"
#include "../math/block_reduce.h"

namespace vss::inline VSS_MACHINE::aggregate_affinity {

constexpr int kMaxChannels = 4;
constexpr int kMaxLayers = 24;
constexpr int kMaxSteps = 160;
constexpr int kChains = 5;
constexpr int kGrids = 3;  // coarse, middle, fine
constexpr int kRows = 4;   // rows of a tile, the output of one work item

// How many output channels' weight gradients are summed together: what registers can hold.
VSS_INLINE constexpr int channels_together(int kernel, int out) { return kernel <= 3 ? out : 1; }

// One scale's grid and how its planes lie in memory. A plane is framed by zeros, so that
// convolutions need no border cases: `border` rows above and below, and between the end of a row
// and the start of the next at least `border` zeros, which serve both. `lead` zeros stand before
// and after.
struct Grid {
  int height, width;
  int border, lead, pitch;
  int channel;                    // floats of one plane
  int origin;                     // of the element (0, 0)
  int tile_columns, tiles;        // a tile is kRows rows of kLanes columns
  float row_scale, column_scale;  // from this grid's positions to those of the next coarser grid
};

struct Layer {
  int8_t kernel, in, out;
  int32_t parameters;  // where weight, bias, norm weight and norm bias start in the packed vector

  VSS_INLINE int taps() const { return kernel * kernel; }
  VSS_INLINE int bias() const { return parameters + out * in * taps(); }
  VSS_INLINE int norm_weight() const { return bias() + out; }
  VSS_INLINE int norm_bias() const { return bias() + 2 * out; }
  VSS_INLINE int end() const { return bias() + 3 * out; }
};

enum class Action : int8_t {
  load,           // target = the map `item`
  store,          // the map `item` = source
  refine,         // target = layer `item` of source; saves the statistics
  recompute,      // the same with saved statistics
  upsample,       // target += the coarser source, upsampled; `item` channels
  norm_gradient,  // target: gradient of the layer's output -> of its convolution; source: its input
  weight_gradient,   // source: the layer's input, target: gradient of its convolution
  input_gradient,    // target = gradient of the layer's input, source: of its convolution
  upsample_adjoint,  // target = gradient of the coarser map, source: of the upsampled; `item`
                     // channels
};

struct Step {
  Action action;
  int8_t grid;
  int8_t item;  // a layer, a map or a number of channels
  int32_t source, target;
  int32_t workspace;  // that the step may overwrite
};

struct Program {
  Grid grids[kGrids];
  Layer layers[kMaxLayers];
  Step steps[kMaxSteps];
  int step_count, layer_count;
  int parameter_count;
  int arena_floats;
  int most_sums;  // that a step takes at once

  // A block's scratch: the parameters as float32, then room for the sums (math/block_reduce.h).
  VSS_INLINE int scratch_floats() const {
    return parameter_count + reduce_scratch_floats(most_sums);
  }
};

enum class Kind : int8_t { float32, float16, bfloat16 };

// M maps in global memory; the columns are adjacent.
struct Maps {
  void* data;
  int64_t map_stride, row_stride;
  Kind kind;
};

// The maps of a program's load and store steps.
enum MapName : int8_t {
  kCoarse,
  kMiddle,
  kFine,
  kResult,  // the gradient of the result where the program is a backward one
  kCoarseGradient,
  kMiddleGradient,
  kFineGradient,
  kMapNames
};

struct Arguments {
  Maps maps[kMapNames];
  const void* parameters;
  Kind parameter_kind;
  float* statistics;  // (M, layers, 2): mean and 1 / standard deviation
  float* parts;       // (M, parameters): each map's part of their gradients; null if not wanted
  float epsilon;
};

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
