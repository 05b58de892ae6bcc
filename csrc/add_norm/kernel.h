// The sum of a residual connection and its LayerNorm on a CPU, in inference: each row of channels
// is added, summed up and normalised while it is in the fastest cache.
#pragma once

#include "../machine/machine.h"
#include "../math/simd.h"

namespace vss::inline VSS_MACHINE::add_norm {

enum class Kind : int8_t { float32, float16, bfloat16 };

constexpr int64_t kRows = 64;  // of a block

// The sum over the lanes, in fewer steps than one after the other.
VSS_INLINE float sum_by_halves(Floats x) {
  VSS_UNROLL
  for (int step = kLanes / 2; step > 0; step /= 2) x += permute(x, lane_numbers() ^ step);
  return lane(x, 0);
}

// Rows of channels of a dtype that is known when it runs.
template <typename Void>
struct Rows {
  Void* data;
  Kind kind;
};

template <bool kFloat>
VSS_INLINE Floats load_at(const Rows<const void>& rows, int64_t at, int count) {
  if (kFloat || rows.kind == Kind::float32)
    return load(static_cast<const float*>(rows.data) + at, count);
  if (rows.kind == Kind::float16) return load(static_cast<const c10::Half*>(rows.data) + at, count);
  return load(static_cast<const c10::BFloat16*>(rows.data) + at, count);
}

template <bool kFloat>
VSS_INLINE void store_at(const Rows<void>& rows, int64_t at, Floats x, int count) {
  if (kFloat || rows.kind == Kind::float32) {
    store(static_cast<float*>(rows.data) + at, x, count);
  } else if (rows.kind == Kind::float16) {
    store(static_cast<c10::Half*>(rows.data) + at, x, count);
  } else {
    store(static_cast<c10::BFloat16*>(rows.data) + at, x, count);
  }
}

// kRows rows. kFloat says that every tensor is float32.
template <bool kFloat>
struct NormRows {
  int64_t rows, channels;
  float epsilon;
  const float *weight, *bias;
  Rows<const void> x, branch;  // no branch: null
  Rows<void> total, out;

  int64_t scratch() const { return whole_lanes(channels); }

  void operator()(const Block& block, int64_t i) const {
    const int64_t last = std::min(rows, (i + 1) * kRows);
    for (int64_t row = i * kRows; row < last; ++row) norm_row(row * channels, block.scratch());
  }

  // Runs f(channel, count) for the channels, kLanes at a time.
  template <typename F>
  VSS_INLINE void for_lanes(const F& f) const {
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) f(c, kLanes);
    if (c < channels) f(c, static_cast<int>(channels - c));
  }

  VSS_INLINE void norm_row(int64_t at, float* row) const {
    Floats sum{};
    for_lanes([&](int64_t c, int count) VSS_LAMBDA {
      Floats value = load_at<kFloat>(x, at + c, count);
      if (branch.data != nullptr) {
        value += load_at<kFloat>(branch, at + c, count);
        store_at<kFloat>(total, at + c, value, count);
        // What is normalised is the sum as it is stored.
        if (!kFloat) value = load_at<kFloat>({total.data, total.kind}, at + c, count);
      }
      store(row + c, value);
      sum += value;
    });
    const float mean = sum_by_halves(sum) / static_cast<float>(channels);
    Floats squares{};
    for_lanes([&](int64_t c, int count) VSS_LAMBDA {
      const Floats centred = keep_first(load(row + c) - mean, count);
      squares += centred * centred;
    });
    const float variance = sum_by_halves(squares) / static_cast<float>(channels);
    const float scale = 1.0f / std::sqrt(variance + epsilon);
    for_lanes([&](int64_t c, int count) VSS_LAMBDA {
      const Floats normed = (load(row + c) - mean) * scale;
      store_at<kFloat>(out, at + c, normed * load(weight + c, count) + load(bias + c, count),
                       count);
    });
  }
};

}  // namespace vss::inline VSS_MACHINE::add_norm
