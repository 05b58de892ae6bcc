// aggregate_affinity on every machine: checks, the program, and the launch of the kernel in
// kernel.h.
#include "../machine/machine.h"

#include "concatenate.h"
#include "kernel.h"
#include "plan.h"
#if VSS_GPU_CODE
#include "gpu_launch.h"
#endif

namespace vss::inline VSS_MACHINE::aggregate_affinity {
namespace {

constexpr double kEpsilon =
    1e-5;  // of the norms; vss_kernels/aggregate_affinity/weights.py has the same

// One call: a program, the layers that it was made for, its arguments, and the tensors that own
// their memory.
struct Call {
  int64_t maps;
  at::IntArrayRef layers;
  Program program;
  Arguments arguments;
  std::vector<at::Tensor> owned;
};

Kind kind_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return Kind::float32;
    case at::kHalf: return Kind::float16;
    case at::kBFloat16: return Kind::bfloat16;
    default:
      TORCH_CHECK_TYPE(false,
                       "aggregate_affinity computes in float32, float16 and bfloat16, not in ",
                       tensor.scalar_type());
  }
}

// Whether columns are adjacent and, on a GPU, `side` of them are aligned, so that one instruction
// loads them.
bool has_layout(const at::Tensor& tensor, int side) {
  if (tensor.stride(2) != 1 && tensor.size(2) > 1) return false;
  if constexpr (!kGpu) return true;
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % (side * tensor.element_size()) ==
             0 &&
         tensor.stride(0) % side == 0 && tensor.stride(1) % side == 0;
}

// Describes a grid's maps to the kernels. On a GPU these may load a patch's row at once
// (gpu_patch.h). Layouts that they do not take are copied once.
Maps maps_of(const at::Tensor& any, int grid, std::vector<at::Tensor>& owned) {
  const at::Tensor tensor =
      has_layout(any, 1 << grid) ? any : any.clone(at::MemoryFormat::Contiguous);
  owned.push_back(tensor);
  return {const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1),
          kind_of(tensor)};
}

// Each chain's channels must fit those of the tensors it meets.
void check_channels(const char* op, const std::array<int, kChains>& chains,
                    const std::vector<Layer>& layers) {
  std::array<int, kChains> last{};  // channels that each chain ends in
  int first = 0;
  for (int chain = 0; chain < kChains; ++chain) {
    int channels = chain < kGrids ? 1 : last[chain == 3 ? 0 : 3];
    for (int i = first; i < first + chains[chain]; ++i) {
      TORCH_CHECK_VALUE(layers[i].in == channels, op, ": layer ", i, " takes ", int{layers[i].in},
                        " channels but gets ", channels);
      channels = layers[i].out;
    }
    first += chains[chain];
    last[chain] = channels;
  }
  TORCH_CHECK_VALUE(last[1] == last[0] && last[2] == last[3] && last[4] == 1, op,
                    ": what is added must have equally many channels, and the last layer one");
}

// Reads `layers`: the lengths of the five chains, then kernel, channels in and out of each layer.
Planner planner_of(at::IntArrayRef layers, const at::Tensor& parameters, int64_t height,
                   int64_t width) {
  const char* op = "aggregate_affinity";
  TORCH_CHECK_VALUE(layers.size() >= kChains, op, ": layers must begin with five chain lengths");
  std::array<int, kChains> chains{};
  int64_t count = 0;
  for (int chain = 0; chain < kChains; ++chain) {
    TORCH_CHECK_VALUE(layers[chain] >= 1 && layers[chain] <= kMaxLayers, op,
                      ": a chain must hold 1 to ", kMaxLayers, " layers, got ", layers[chain]);
    chains[chain] = static_cast<int>(layers[chain]);
    count += layers[chain];
  }
  TORCH_CHECK_VALUE(count <= kMaxLayers, op, ": at most ", kMaxLayers, " layers, got ", count);
  TORCH_CHECK_VALUE(layers.size() == static_cast<size_t>(kChains + 3 * count), op,
                    ": layers must hold three numbers per layer");
  const at::IntArrayRef shapes = layers.slice(kChains);
  std::vector<Layer> parsed;
  int offset = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t kernel = shapes[3 * i], in = shapes[3 * i + 1], out = shapes[3 * i + 2];
    TORCH_CHECK_VALUE(kernel == 1 || kernel == 3 || kernel == 5 || kernel == 7, op,
                      ": a kernel must be 1, 3, 5 or 7, got ", kernel);
    TORCH_CHECK_VALUE(in >= 1 && in <= kMaxChannels && out >= 1 && out <= kMaxChannels, op,
                      ": a layer must have 1 to ", kMaxChannels, " channels, got ", in, " and ",
                      out);
    parsed.push_back(
        {static_cast<int8_t>(kernel), static_cast<int8_t>(in), static_cast<int8_t>(out), offset});
    offset = parsed.back().end();
  }
  check_channels(op, chains, parsed);
  check_dims(op, "parameters", parameters, 1);
  TORCH_CHECK_VALUE(parameters.numel() == offset, op, ": parameters must hold ", offset,
                    " values, got ", parameters.numel());
  return Planner(chains, parsed, height, width);
}

void check_maps(const at::Tensor& coarse, const at::Tensor& middle, const at::Tensor& fine,
                const at::Tensor& parameters) {
  const char* op = "aggregate_affinity";
  kind_of(coarse);
  kind_of(parameters);
  check_dims(op, "coarse", coarse, 3);
  check_dims(op, "middle", middle, 3);
  check_dims(op, "fine", fine, 3);
  check_like(op, "middle", middle, "coarse", coarse);
  check_like(op, "fine", fine, "coarse", coarse);
  TORCH_CHECK_VALUE(parameters.device() == coarse.device(), op, ": parameters are on ",
                    parameters.device(), " but coarse is on ", coarse.device());
  const int64_t maps = coarse.size(0), height = coarse.size(1), width = coarse.size(2);
  TORCH_CHECK_VALUE(height > 0 && width > 0, op,
                    ": coarse must have at least one row and one column, got ", coarse.sizes());
  TORCH_CHECK_VALUE(middle.sizes() == at::IntArrayRef({maps, 2 * height, 2 * width}), op,
                    ": middle does not fit coarse: ", middle.sizes(), " and ", coarse.sizes());
  TORCH_CHECK_VALUE(fine.sizes() == at::IntArrayRef({maps, 4 * height, 4 * width}), op,
                    ": fine does not fit coarse: ", fine.sizes(), " and ", coarse.sizes());
}

void check_gradient(const at::Tensor& grad, const at::Tensor& fine) {
  const char* op = "aggregate_affinity_backward";
  check_dims(op, "grad", grad, 3);
  check_like(op, "grad", grad, "fine", fine);
  TORCH_CHECK_VALUE(grad.sizes() == fine.sizes(), op, ": grad must have the shape of fine, got ",
                    grad.sizes());
}

// The functions from here on take tensors that were checked.
Call make_call(const at::Tensor& coarse, const at::Tensor& middle, const at::Tensor& fine,
               const at::Tensor& parameters, at::IntArrayRef layers) {
  Call call{};
  call.maps = coarse.size(0);
  call.layers = layers;
  call.arguments.epsilon = static_cast<float>(kEpsilon);
  call.arguments.maps[kCoarse] = maps_of(coarse, kCoarse, call.owned);
  call.arguments.maps[kMiddle] = maps_of(middle, kMiddle, call.owned);
  call.arguments.maps[kFine] = maps_of(fine, kFine, call.owned);
  call.owned.push_back(parameters.contiguous());
  call.arguments.parameters = call.owned.back().const_data_ptr();
  call.arguments.parameter_kind = kind_of(parameters);
  return call;
}

struct ForwardCall : Call {
  at::Tensor result, statistics;
};

ForwardCall forward_call(const at::Tensor& coarse, const at::Tensor& middle, const at::Tensor& fine,
                         const at::Tensor& parameters, at::IntArrayRef layers) {
  ForwardCall call{make_call(coarse, middle, fine, parameters, layers), {}, {}};
  call.program = planner_of(layers, parameters, coarse.size(1), coarse.size(2)).forward();
  call.result = at::empty(fine.sizes(), fine.options());
  call.arguments.maps[kResult] = maps_of(call.result, kFine, call.owned);
  call.statistics =
      at::empty({call.maps, call.program.layer_count, 2}, fine.options().dtype(at::kFloat));
  call.arguments.statistics = call.statistics.mutable_data_ptr<float>();
  return call;
}

struct BackwardCall : Call {
  std::array<at::Tensor, kGrids> map_gradients;  // empty where not needed
  at::Tensor parts;                              // (M, parameters), float; no rows where not needed

  // The gradients of coarse, middle, fine and parameters, once the kernel has run. Summing each
  // map's part in a second pass keeps the result independent of which thread ran which map.
  std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gradients(
      at::ScalarType packed) const {
    return {map_gradients[0], map_gradients[1], map_gradients[2], parts.sum(0).to(packed)};
  }
};

BackwardCall backward_call(const at::Tensor& grad, const at::Tensor& coarse,
                           const at::Tensor& middle, const at::Tensor& fine,
                           const at::Tensor& parameters, const at::Tensor& statistics,
                           at::IntArrayRef layers, std::array<bool, 4> needs) {
  const char* op = "aggregate_affinity_backward";
  BackwardCall call{make_call(coarse, middle, fine, parameters, layers), {}, {}};
  call.program = planner_of(layers, parameters, coarse.size(1), coarse.size(2))
                     .backward({needs[0], needs[1], needs[2]}, needs[3]);
  TORCH_CHECK_VALUE(statistics.sizes() == at::IntArrayRef({call.maps, call.program.layer_count, 2}),
                    op, ": statistics do not fit, got ", statistics.sizes());
  TORCH_CHECK_TYPE(statistics.scalar_type() == at::kFloat, op, ": statistics must be float32, got ",
                   statistics.scalar_type());
  TORCH_CHECK_VALUE(statistics.device() == fine.device(), op, ": statistics are on ",
                    statistics.device(), " but fine is on ", fine.device());
  call.owned.push_back(statistics.contiguous());
  call.arguments.statistics = call.owned.back().data_ptr<float>();
  call.arguments.maps[kResult] = maps_of(grad, kFine, call.owned);
  const std::array<const at::Tensor*, kGrids> maps = {&coarse, &middle, &fine};
  for (int i = 0; i < kGrids; ++i) {
    call.map_gradients[i] =
        at::empty(needs[i] ? maps[i]->sizes() : at::IntArrayRef({0, 0, 0}), maps[i]->options());
    call.arguments.maps[kCoarseGradient + i] = maps_of(call.map_gradients[i], i, call.owned);
  }
  call.parts = at::empty({needs[3] ? call.maps : 0, call.program.parameter_count},
                         fine.options().dtype(at::kFloat));
  call.arguments.parts = needs[3] ? call.parts.mutable_data_ptr<float>() : nullptr;
  return call;
}

#if VSS_GPU_CODE

// A whole number of warps that shares the tiles of the fine grid out evenly. Registers allow
// kThreads on a multiprocessor: where shared memory lets two blocks live there, each takes half, so
// that one computes while the other waits at a barrier.
int threads_for(const Program& program, int64_t bytes, const GpuLimits& limits) {
  constexpr int kThreads = kMaxWarps * Block::kWarp;
  constexpr int64_t kReservedBytes = 1024;  // of each block, by CUDA
  const bool two_fit = 2 * (bytes + kReservedBytes) <= limits.multiprocessor_shared_bytes;
  const int tiles = program.grids[kFine].tiles;
  const int rounds = cdiv(tiles, two_fit ? kThreads / 2 : kThreads);
  return cdiv(cdiv(tiles, rounds), Block::kWarp) * Block::kWarp;
}

template <bool kBackward>
void run(const char* op, const Call& call) {
  if (run_published<kBackward>(op, call.layers, call.maps, call.program.grids[kCoarse].height,
                               call.program.grids[kCoarse].width, call.arguments))
    return;
  constexpr int kThreads = kMaxWarps * Block::kWarp;
  const Program& program = call.program;
  const GpuLimits limits = gpu_limits();
  Launch launch = {.op = op, .blocks = call.maps};
  const int64_t whole = program.scratch_floats() + program.arena_floats;
  if (shared_bytes<Block>(whole) <= limits.block_shared_bytes) {
    launch.scratch_floats = whole;
    launch.threads = threads_for(program, shared_bytes<Block>(whole), limits);
    run_blocks<kThreads>(launch, AggregateMaps<kBackward, true>{program, call.arguments});
  } else {
    launch.scratch_floats = program.scratch_floats();
    launch.workspace_floats = program.arena_floats;
    launch.threads = threads_for(program, shared_bytes<Block>(launch.scratch_floats), limits);
    run_blocks<kThreads>(launch, AggregateMaps<kBackward, false>{program, call.arguments});
  }
}

#else

// Each thread has one arena, which stays in its cache.
template <bool kBackward>
void run(const char* op, const Call& call) {
  run_blocks({.op = op,
              .blocks = call.maps,
              .scratch_floats = call.program.scratch_floats(),
              .workspace_floats = call.program.arena_floats},
             AggregateMaps<kBackward, false>{call.program, call.arguments});
}

#endif

// `parameters` is one packed vector, or the four tensors of every layer.
void check_lengths(at::TensorList parameters, const Program& program) {
  const char* op = "aggregate_affinity";
  if (parameters.size() == 1) return;
  TORCH_CHECK_VALUE(parameters.size() == static_cast<size_t>(kLayerTensors * program.layer_count),
                    op, ": parameters must be one tensor or four for each of ", program.layer_count,
                    " layers, got ", parameters.size());
  for (int i = 0; i < program.layer_count; ++i) {
    const Layer& layer = program.layers[i];
    const int weights = layer.bias() - layer.parameters;
    for (int part = 0; part < kLayerTensors; ++part) {
      const int64_t have = parameters[kLayerTensors * i + part].numel();
      const int64_t want = part == 0 ? weights : layer.out;
      TORCH_CHECK_VALUE(have == want, op, ": tensor ", part, " of layer ", i, " must hold ", want,
                        " values, got ", have);
    }
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> aggregate(const at::Tensor& coarse,
                                                         const at::Tensor& middle,
                                                         const at::Tensor& fine,
                                                         at::TensorList parameters,
                                                         at::IntArrayRef layers) {
  const c10::DeviceGuard guard(coarse.device());
  const at::Tensor packed = concatenate(parameters);
  check_maps(coarse, middle, fine, packed);
  const ForwardCall call = forward_call(coarse, middle, fine, packed, layers);
  check_lengths(parameters, call.program);
  run<false>("aggregate_affinity", call);
  return {call.result, call.statistics, packed};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> aggregate_backward(
    const at::Tensor& grad, const at::Tensor& coarse, const at::Tensor& middle,
    const at::Tensor& fine, const at::Tensor& parameters, const at::Tensor& statistics,
    at::IntArrayRef layers, std::array<bool, 4> needs) {
  const c10::DeviceGuard guard(coarse.device());
  check_maps(coarse, middle, fine, parameters);
  check_gradient(grad, fine);
  const BackwardCall call =
      backward_call(grad, coarse, middle, fine, parameters, statistics, layers, needs);
  run<true>("aggregate_affinity_backward", call);
  return call.gradients(parameters.scalar_type());
}

}  // namespace

void implement(torch::Library& m) {
  m.impl("aggregate_affinity", TORCH_FN(aggregate));
  m.impl("aggregate_affinity_backward", TORCH_FN(aggregate_backward));
}

}  // namespace vss::inline VSS_MACHINE::aggregate_affinity
