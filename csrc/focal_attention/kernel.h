// focal_attention on a CPU: attention of each window's queries over the tokens that a key table
// lists for it.
//
// A block owns one window and head. It copies the window's keys and values, which lie scattered
// over the token buffer, into scratch that fits the cache, and from there on everything is a
// product of small dense matrices (math/small_matrix.h). Logits, softmax and sums are float
// whatever the dtype. On a GPU these products belong on tensor cores: see the Triton kernels of the
// same operator.
#pragma once

#include "../machine/machine.h"
#include "../math/small_matrix.h"
#include "../math/softmax_rows.h"

namespace vss::inline VSS_MACHINE::focal_attention {

constexpr float kPaddingLogit = -100.0f;

struct AttentionGeometry {
  int64_t batch, heads, dim;
  int64_t windows, positions, keys;  // queries and keys are those of one window
  int64_t tokens;
  int64_t query_batch, query_token, query_head;  // strides in elements; channels are adjacent
  int64_t token_batch, token_stride, token_head, value_offset;
  float scale;

  int64_t wide_dim() const { return whole_lanes(dim); }
  int64_t wide_keys() const { return whole_lanes(keys); }
};

// A window's rows of the key table and of the token buffers; one head, one clip.
template <typename T>
struct AttentionWindow {
  const int32_t* table;  // (keys); its first entries are the window's own positions
  const T* query;
  const T* key;
  const T* value;
};

// Converts a row and multiplies it, zeros in the lanes behind it. `to` has whole lanes.
template <typename T>
VSS_INLINE void widen(const T* from, int64_t count, float scale, float* to) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(count - i, kLanes));
    store(to + i, load(from + i, lanes) * scale);
  }
}

// Copies the window's queries, or what lies at their positions: (positions, wide_dim).
template <typename T>
VSS_INLINE void copy_positions(const AttentionGeometry& g, const int32_t* table, const T* from,
                               int64_t token_stride, float scale, float* to) {
  for (int64_t p = 0; p < g.positions; ++p)
    widen(from + table[p] * token_stride, g.dim, scale, to + p * g.wide_dim());
}

// Copies the window's keys or values: (wide_keys, wide_dim), zeros in the padding.
template <typename T>
VSS_INLINE void copy_tokens(const AttentionGeometry& g, const int32_t* table, const T* from,
                            float* to) {
  for (int64_t slot = 0; slot < g.keys; ++slot) {
    float* row = to + slot * g.wide_dim();
    if (table[slot] >= 0) {
      widen(from + table[slot] * g.token_stride, g.dim, 1.0f, row);
    } else {
      for (int64_t c = 0; c < g.dim; ++c) row[c] = 0.0f;
    }
  }
}

VSS_INLINE void transpose_tokens(const AttentionGeometry& g, const float* from, float* to) {
  for (int64_t slot = 0; slot < g.wide_keys(); slot += kLanes)
    for (int64_t c = 0; c < g.wide_dim(); c += kLanes)
      transpose(from + slot * g.wide_dim() + c, g.wide_dim(), to + c * g.wide_keys() + slot,
                g.wide_keys());
}

// What the padding adds to each key's logit: (wide_keys).
VSS_INLINE void padding_logits(const AttentionGeometry& g, const int32_t* table, float* to) {
  for (int64_t slot = 0; slot < g.wide_keys(); ++slot)
    to[slot] = slot >= g.keys ? -INFINITY : table[slot] < 0 ? kPaddingLogit : 0.0f;
}

// Logits of some of the window's queries: bias + padding + query . key, (rows, wide_keys).
VSS_INLINE void window_logits(const AttentionGeometry& g, const float* query,
                              const float* transposed_keys, const float* bias, const float* padding,
                              int64_t rows, float* logits) {
  const int64_t width = g.wide_keys();
  for (int64_t p = 0; p < rows; ++p)
    for (int64_t slot = 0; slot < width; ++slot)
      logits[p * width + slot] = bias[p * width + slot] + padding[slot];
  add_product({query, g.wide_dim(), 1}, transposed_keys, width, logits, width, rows, width, g.dim);
}

struct ForwardScratch {
  float *query, *rows, *keys, *values, *padding, *logits, *attended;

  static int64_t size(const AttentionGeometry& g) {
    return (g.positions + 3 * g.wide_keys() + kTileRows) * g.wide_dim() +
           (1 + kTileRows) * g.wide_keys();
  }
  ForwardScratch(const AttentionGeometry& g, float* memory) {
    query = memory;
    rows = query + g.positions * g.wide_dim();
    keys = rows + g.wide_keys() * g.wide_dim();
    values = keys + g.wide_keys() * g.wide_dim();
    padding = values + g.wide_keys() * g.wide_dim();
    logits = padding + g.wide_keys();
    attended = logits + kTileRows * g.wide_keys();
  }
};

// Attends from one window's queries. `bias` is (positions, wide_keys); `out` starts at the clip's
// and head's first channel and has `heads * dim` channels a token; `statistics` (2, positions)
// takes the largest logits and one over the sums of the exponentials relative to them.
template <typename T>
VSS_INLINE void attend_window(const AttentionGeometry& g, const AttentionWindow<T>& window,
                              const float* bias, const ForwardScratch& s, T* out,
                              float* statistics) {
  const int64_t width = g.wide_keys(), depth = g.wide_dim();
  copy_positions(g, window.table, window.query, g.query_token, g.scale, s.query);
  copy_tokens(g, window.table, window.key, s.rows);
  transpose_tokens(g, s.rows, s.keys);
  copy_tokens(g, window.table, window.value, s.values);
  padding_logits(g, window.table, s.padding);

  for (int64_t first = 0; first < g.positions; first += kTileRows) {
    const int64_t left = g.positions - first;
    const int64_t rows = left < kTileRows ? left : kTileRows;
    window_logits(g, s.query + first * depth, s.keys, bias + first * width, s.padding, rows,
                  s.logits);
    float inverse[kTileRows];
    for (int64_t p = 0; p < rows; ++p) {
      float* row = s.logits + p * width;
      const float shift = largest_of_row(row, width);
      const float sum = exponentiate_row(row, width, shift);
      inverse[p] = 1.0f / sum;
      statistics[first + p] = shift;
      statistics[g.positions + first + p] = inverse[p];
    }
    multiply({s.logits, width, 1}, s.values, depth, s.attended, depth, rows, depth, g.keys);
    for (int64_t p = 0; p < rows; ++p) {
      T* to = out + window.table[first + p] * g.heads * g.dim;
      for (int64_t c = 0; c < g.dim; ++c)
        to[c] = static_cast<T>(s.attended[p * depth + c] * inverse[p]);
    }
  }
}

struct BackwardScratch {
  float *query, *grad, *keys, *transposed_keys, *transposed_values, *padding;
  float *probabilities, *logits, *grad_query, *grad_slots;
  float *grad_keys,
      *grad_values;  // (tokens, wide_dim) each, one after the other, summed over the windows

  static int64_t size(const AttentionGeometry& g) {
    return (3 * g.positions + 4 * g.wide_keys() + 2 * g.tokens) * g.wide_dim() +
           (1 + 2 * g.positions) * g.wide_keys();
  }
  BackwardScratch(const AttentionGeometry& g, float* memory) {
    const auto take = [&](int64_t rows, int64_t columns) {
      float* taken = memory;
      memory += rows * columns;
      return taken;
    };
    query = take(g.positions, g.wide_dim());
    grad = take(g.positions, g.wide_dim());
    grad_query = take(g.positions, g.wide_dim());
    keys = take(g.wide_keys(), g.wide_dim());
    transposed_keys = take(g.wide_keys(), g.wide_dim());
    transposed_values = take(g.wide_keys(), g.wide_dim());
    grad_slots = take(g.wide_keys(), g.wide_dim());
    padding = take(1, g.wide_keys());
    probabilities = take(g.positions, g.wide_keys());
    logits = take(g.positions, g.wide_keys());
    grad_keys = take(g.tokens, g.wide_dim());
    grad_values = take(g.tokens, g.wide_dim());
  }
};

// Adds what one window's slots give to the tokens that they stand for.
VSS_INLINE void add_slots(const AttentionGeometry& g, const int32_t* table, const float* slots,
                          float* tokens) {
  for (int64_t slot = 0; slot < g.keys; ++slot) {
    if (table[slot] < 0) continue;
    float* token = tokens + table[slot] * g.wide_dim();
    for (int64_t c = 0; c < g.wide_dim(); ++c) token[c] += slots[slot * g.wide_dim() + c];
  }
}

// One window's part of all gradients. `grad` and `grad_query` start at the clip's and head's first
// channel and have `heads * dim` channels a token; `grad_bias` is (positions, wide_keys) and, like
// the scratch's grad_keys and grad_values, is added to.
template <typename T>
VSS_INLINE void attend_window_backward(const AttentionGeometry& g, const AttentionWindow<T>& window,
                                       const float* bias, const float* statistics, const T* grad,
                                       const BackwardScratch& s, T* grad_query, float* grad_bias) {
  const int64_t width = g.wide_keys(), depth = g.wide_dim(), channels = g.heads * g.dim;
  copy_positions(g, window.table, window.query, g.query_token, g.scale, s.query);
  copy_positions(g, window.table, grad, channels, 1.0f, s.grad);
  copy_tokens(g, window.table, window.value, s.keys);
  transpose_tokens(g, s.keys, s.transposed_values);
  copy_tokens(g, window.table, window.key, s.keys);
  transpose_tokens(g, s.keys, s.transposed_keys);
  padding_logits(g, window.table, s.padding);

  window_logits(g, s.query, s.transposed_keys, bias, s.padding, g.positions, s.probabilities);
  multiply({s.grad, depth, 1}, s.transposed_values, width, s.logits, width, g.positions, width,
           g.dim);
  for (int64_t p = 0; p < g.positions; ++p) {
    float* probability = s.probabilities + p * width;
    float* logit = s.logits + p * width;  // the gradient of the probability, then of the logit
    exponentiate_row(probability, width, statistics[p]);
    const float inverse = statistics[g.positions + p];
    Floats sum{};
    for (int64_t slot = 0; slot < width; slot += kLanes) {
      const Floats normalised = load(probability + slot) * inverse;
      store(probability + slot, normalised);
      sum += normalised * load(logit + slot);
    }
    const float mean = sum_of(sum);
    for (int64_t slot = 0; slot < width; slot += kLanes) {
      const Floats gradient = load(probability + slot) * (load(logit + slot) - mean);
      store(logit + slot, gradient);
      float* bias_slot = grad_bias + p * width + slot;
      store(bias_slot, load(bias_slot) + gradient);
    }
  }

  multiply({s.logits, width, 1}, s.keys, depth, s.grad_query, depth, g.positions, depth, g.keys);
  for (int64_t p = 0; p < g.positions; ++p) {
    T* to = grad_query + window.table[p] * channels;
    for (int64_t c = 0; c < g.dim; ++c)
      to[c] = static_cast<T>(s.grad_query[p * depth + c] * g.scale);
  }
  multiply({s.logits, 1, width}, s.query, depth, s.grad_slots, depth, g.keys, depth, g.positions);
  add_slots(g, window.table, s.grad_slots, s.grad_keys);
  multiply({s.probabilities, 1, width}, s.grad, depth, s.grad_slots, depth, g.keys, depth,
           g.positions);
  add_slots(g, window.table, s.grad_slots, s.grad_values);
}

// Where the tensors are that every block of a call reads.
template <typename T>
struct AttentionTensors {
  const T* query;
  const T* key_value;
  const int32_t* table;
  const float* bias;  // (heads, positions, wide_keys), zeros behind the keys

  AttentionWindow<T> window(const AttentionGeometry& g, int64_t b, int64_t head,
                            int64_t window) const {
    const T* key = key_value + b * g.token_batch + head * g.token_head;
    return {table + window * g.keys, query + b * g.query_batch + head * g.query_head, key,
            key + g.value_offset};
  }
  const float* head_bias(const AttentionGeometry& g, int64_t head) const {
    return bias + head * g.positions * g.wide_keys();
  }
};

// One window, head and clip; windows fastest, since they share a head's bias.
template <typename T>
struct AttendWindow {
  AttentionGeometry g;
  AttentionTensors<T> in;
  T* out;
  float* statistics;

  void operator()(const Block& block, int64_t i) const {
    const int64_t window = i % g.windows, head = i / g.windows % g.heads;
    const int64_t b = i / (g.windows * g.heads);
    T* first = out + (b * g.windows * g.positions * g.heads + head) * g.dim;
    attend_window(g, in.window(g, b, head, window), in.head_bias(g, head),
                  ForwardScratch(g, block.scratch()), first, statistics + 2 * i * g.positions);
  }
};

// One clip and head: its windows add to the tokens' gradients one after the other.
template <typename T>
struct AttendHeadBackward {
  AttentionGeometry g;
  AttentionTensors<T> in;
  const T* grad;
  const float* statistics;
  T *grad_query, *grad_key_value;
  float* bias_parts;  // (batch, heads, positions, wide_keys); zeros before

  void operator()(const Block& block, int64_t i) const {
    const int64_t head = i % g.heads, b = i / g.heads;
    const BackwardScratch memory(g, block.scratch());
    std::fill_n(memory.grad_keys, 2 * g.tokens * g.wide_dim(), 0.0f);
    const int64_t first = (b * g.windows * g.positions * g.heads + head) * g.dim;
    for (int64_t window = 0; window < g.windows; ++window) {
      attend_window_backward(g, in.window(g, b, head, window), in.head_bias(g, head),
                             statistics + 2 * (i * g.windows + window) * g.positions, grad + first,
                             memory, grad_query + first,
                             bias_parts + i * g.positions * g.wide_keys());
    }
    for (int64_t token = 0; token < g.tokens; ++token) {
      T* key = grad_key_value + ((b * g.tokens + token) * 2 * g.heads + head) * g.dim;
      T* value = key + g.heads * g.dim;
      for (int64_t c = 0; c < g.dim; ++c) {
        key[c] = static_cast<T>(memory.grad_keys[token * g.wide_dim() + c]);
        value[c] = static_cast<T>(memory.grad_values[token * g.wide_dim() + c]);
      }
    }
  }
};

}  // namespace vss::inline VSS_MACHINE::focal_attention
