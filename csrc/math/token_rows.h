// Rows of tokens that an index lists, as the operators of the relation take them.
#pragma once

#include "simd.h"

namespace vss::inline VSS_MACHINE {

// Checks that positions of tokens, contiguous, lie in [0, tokens).
inline void check_positions(const char* op, const at::Tensor& index, int64_t tokens) {
  const int64_t* positions = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < index.numel(); ++i)
    TORCH_CHECK_VALUE(positions[i] >= 0 && positions[i] < tokens, op, ": index must lie in [0, ",
                      tokens, "), got ", positions[i]);
}

// Copies `count` numbers as floats, zeros in the lanes behind them.
template <typename T>
VSS_INLINE void widen(const T* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kLanes)
    store(to + i, load(from + i, static_cast<int>(std::min<int64_t>(count - i, kLanes))));
}

// Gathers the rows of one matrix's kept tokens: (selected, columns) floats, zeros behind the
// channels.
template <typename T>
struct GatherRows {
  int64_t selected, tokens, channels, columns;
  const T* from;         // (matrices, tokens, channels)
  const int64_t* index;  // (matrices, selected)
  float* rows;           // (matrices, selected, columns); columns are whole lanes

  template <typename Block>
  void operator()(const Block&, int64_t matrix) const {
    for (int64_t s = 0; s < selected; ++s) {
      float* to = rows + (matrix * selected + s) * columns;
      widen(from + (matrix * tokens + index[matrix * selected + s]) * channels, channels, to);
      std::fill_n(to + whole_lanes(channels), columns - whole_lanes(channels), 0.0f);
    }
  }
};

// Adds up parts of the rows' gradients in the order of the parts, at the tokens that the rows were
// gathered from.
template <typename T>
struct PlaceRows {
  int64_t parts, selected, tokens, channels, columns;
  const float* rows;     // (matrices, parts, selected, columns)
  const int64_t* index;  // (matrices, selected)
  T* to;                 // (matrices, tokens, channels)

  int64_t scratch() const { return tokens * columns; }

  template <typename Block>
  void operator()(const Block& block, int64_t matrix) const {
    float* sums = block.scratch();
    std::fill_n(sums, tokens * columns, 0.0f);
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t s = 0; s < selected; ++s) {
        const float* row = rows + ((matrix * parts + part) * selected + s) * columns;
        float* sum = sums + index[matrix * selected + s] * columns;
        for (int64_t c = 0; c < columns; c += kLanes) store(sum + c, load(sum + c) + load(row + c));
      }
    for (int64_t token = 0; token < tokens; ++token)
      for (int64_t c = 0; c < channels; c += kLanes)
        store(to + (matrix * tokens + token) * channels + c, load(sums + token * columns + c),
              static_cast<int>(std::min<int64_t>(channels - c, kLanes)));
  }
};

}  // namespace vss::inline VSS_MACHINE
