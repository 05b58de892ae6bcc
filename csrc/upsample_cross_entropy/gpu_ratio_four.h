// The forward pass of upsample_cross_entropy on a GPU where the labels have four times the sides of
// the logits, as in training. kernel.h is the general kernel, which this one agrees with;
// gpu_ratio_four_backward.h has the gradients.
//
// At this ratio the weights repeat every four labels. A patch is the 4x4 labels between two source
// rows and two source columns: one thread computes a patch from four source values a class, without
// index arithmetic, and keeps its sums in registers. Neighbouring threads own neighbouring patches,
// so each loads the source column on its left and receives the one on its right. Patches are
// numbered by their upper left source position, from -1 on, since half a patch lies before the
// first row and column and half a one after the last. There both source positions are the same, and
// some of the labels do not exist.
//
// Logits are scaled by log2(e) at the four source positions, not at sixteen labels, so all
// exponents are in base 2, and so are the log-sums that the forward pass keeps. Both passes compute
// a label's z by the same operations: then the probability of a sure class is one, however large
// the logits.
#pragma once

#include "kernel.h"

namespace vss::inline VSS_MACHINE::upsample_cross_entropy {

constexpr int kRatio = 4;
constexpr int kPatchClasses = 16;  // of a warp of the backward pass

// Whether the kernels for this ratio take the call: both passes or none, as they keep log-sums in
// base 2. They count offsets within an image in 32 bits, see fits_32_bits().
inline bool takes_patches(const LossGeometry& g) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const auto fits = [](const Resize& resize) {
    return resize.offset == 0.5f && resize.resized == kRatio * resize.size;
  };
  return kGpu && fits(g.vertical) && fits(g.horizontal) && g.smoothing == 0.0f &&
         g.classes >= kPatchClasses &&
         std::max<int64_t>(g.classes, kRatio * kRatio) * g.vertical.size * g.horizontal.size <=
             kMost;
}

// Whether the offsets within an image of these strides do; others are to be copied.
inline bool fits_32_bits(const Strides& strides, int64_t channels, int64_t rows, int64_t columns) {
  return strides.channel * channels + strides.row * rows + strides.column * columns <=
         std::numeric_limits<int32_t>::max();
}

#if VSS_GPU_CODE

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.69314718f;
// Stands for the logit minus infinity, whose differences are not numbers. Whatever is interpolated
// from it is below kMasked.
constexpr float kVanishing = -1e30f, kMasked = kVanishing / 128;

// The weight of the second source position for label `i` of a patch.
VSS_INLINE constexpr float second_weight(int i) { return (2 * i + 1) / 8.0f; }

#if defined(VSS_CUDA)

// 2^x, zero where that would be denormal: one instruction.
VSS_DEVICE float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// At least kVanishing; NaN stays NaN.
VSS_DEVICE float not_vanishing(float x) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(kVanishing));
  return y;
}

#else

VSS_DEVICE float power_of_two(float x) {
  return x < -126.0f ? 0.0f : std::exp2(x);  // NaN stays NaN
}
VSS_DEVICE float not_vanishing(float x) { return x < kVanishing ? kVanishing : x; }

#endif

// A patch of one image, by its upper left source position.
struct Patch {
  int row, column;

  // The first of its labels.
  VSS_DEVICE int y() const { return kRatio * row + kRatio / 2; }
  VSS_DEVICE int x() const { return kRatio * column + kRatio / 2; }
};

VSS_DEVICE int clamped(int position, int64_t size) {
  const int last = static_cast<int>(size) - 1;
  return position < 0 ? 0 : position < last ? position : last;
}

// A logit's exponent at a source position.
template <typename T>
VSS_DEVICE float exponent_of(T logit) {
  return kLog2E * not_vanishing(static_cast<float>(logit));
}

// The exponents of a patch's labels, interpolated between its corners: upper left, upper right,
// lower left, lower right. The roundings are spelled out, since both passes must have the same.
struct PatchExponents {
  float upper_left, upper_step, left_step, change;

  VSS_DEVICE explicit PatchExponents(const float (&corner)[4])
      : upper_left(corner[0]),
        upper_step(corner[1] - corner[0]),
        left_step(corner[2] - corner[0]),
        change((corner[3] - corner[1]) - left_step) {}

  // Of the label in row `r` and column `c`.
  VSS_DEVICE float at(int r, int c) const {
    const float upper = std::fma(second_weight(c), upper_step, upper_left);
    const float step = std::fma(second_weight(c), change, left_step);
    return std::fma(second_weight(r), step, upper);
  }
};

// The label that stands for ignored pixels, in the type that labels of type T are compared in.
template <typename T>
VSS_DEVICE auto ignored_label(int64_t ignore_index) {
  if constexpr (sizeof(T) < sizeof(int)) {
    const int narrow = static_cast<int>(ignore_index);
    return narrow == ignore_index ? narrow : std::numeric_limits<int>::min();
  } else {
    return ignore_index;
  }
}

// Four neighbouring labels of one row of a patch. The halves of a patch outside the image, of whose
// existence `exists` tells, are ignored.
template <typename T>
VSS_DEVICE void read_labels(const Labels& labels, const T* first, const bool (&exists)[2],
                            int (&result)[kRatio]) {
  const auto ignored = ignored_label<T>(labels.ignore_index);
  const int step = static_cast<int>(labels.strides.column);
  T read[kRatio];
  VSS_UNROLL
  for (int c = 0; c < kRatio; ++c, first += step) read[c] = exists[c / 2] ? *first : T{};
  VSS_UNROLL
  for (int c = 0; c < kRatio; ++c) {
    const bool is_class = read[c] >= 0 && read[c] < labels.classes;
    result[c] = is_class ? static_cast<int>(read[c]) : Labels::kInvalid;
    if (!exists[c / 2] || read[c] == ignored) result[c] = Labels::kIgnored;
  }
}

// The same for the labels from column `x` on of row `y`.
VSS_DEVICE void read_labels(const Labels& labels, int64_t n, int y, int x, const bool (&exists)[2],
                            int (&result)[kRatio]) {
  const int64_t offset = n * labels.strides.batch + (y * static_cast<int>(labels.strides.row) +
                                                     x * static_cast<int>(labels.strides.column));
  const auto read = [&](const auto* data)
                        VSS_LAMBDA { read_labels(labels, data + offset, exists, result); };
  switch (labels.type) {
    case LabelType::kUInt8: return read(static_cast<const uint8_t*>(labels.data));
    case LabelType::kInt16: return read(static_cast<const int16_t*>(labels.data));
    case LabelType::kInt32: return read(static_cast<const int32_t*>(labels.data));
    default: return read(static_cast<const int64_t*>(labels.data));
  }
}

// The losses of a row of patches. One block takes as many as its warps do when it has kWarps of
// them. No scratch.
template <typename T>
struct LossPatches {
  LossGeometry g;
  const T* logits;
  float *losses, *log_sums, *parts;  // as of LossTile

  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * Block::kWarp;
  static constexpr int kWarpPatches = Block::kWarp - 1;  // the last thread only loads
  static constexpr int kBlockPatches = kWarps * kWarpPatches;
  static constexpr int kClasses = 2;  // whose loads overlap
  // Sums of exponentials that are worth keeping, which those of usual logits are. Beyond, and where
  // there are infinite logits or such that are no numbers, a label is computed once more.
  static constexpr float kLowest = 0x1p-64f, kHighest = 0x1p64f;

  VSS_INLINE int tiles() const {
    return (static_cast<int>(g.horizontal.size) + kBlockPatches) / kBlockPatches;
  }
  VSS_INLINE int rows() const { return static_cast<int>(g.vertical.size) + 1; }
  VSS_INLINE int64_t blocks() const { return g.batch * rows() * tiles(); }

  VSS_DEVICE void operator()(const Block& block, int64_t index) const {
    const int place = static_cast<int>(index % (rows() * tiles()));
    const int64_t n = index / (rows() * tiles());
    const int row = place / tiles() - 1, first = place % tiles() * kBlockPatches - 1;
    const int lane = block.rank() % Block::kWarp;
    float sums[2] = {};  // of losses, of weights
    for (int warp = block.rank() / Block::kWarp; warp < kWarps;
         warp += block.size() / Block::kWarp) {
      const Patch patch = {row, first + warp * kWarpPatches + lane};
      if (patch.column - lane >= g.horizontal.size) break;
      const Corners corners(*this, n, patch);
      float totals[kRatio][kRatio] = {};
      add_classes(block, corners, totals);
      if (lane < kWarpPatches && patch.column < g.horizontal.size)
        finish(n, patch, corners, totals, sums);
    }
    if (parts == nullptr) return;
    for (int i = 0; i < 2; ++i) {
      const float sum = block.sum(block.size(), [&](int64_t) VSS_LAMBDA { return sums[i]; });
      block.for_each(1, [&](int64_t) { parts[2 * index + i] = sum; });
    }
  }

 private:
  // Where the logits of class 0 are at the left corners, and the distance to the right ones.
  struct Corners {
    const T *upper, *lower;
    int right;

    VSS_DEVICE Corners(const LossPatches& kernel, int64_t n, const Patch& patch) {
      const LossGeometry& g = kernel.g;
      const int column = clamped(patch.column, g.horizontal.size);
      const T* left = kernel.logits + n * g.strides.batch + column * g.strides.column;
      upper = left + clamped(patch.row, g.vertical.size) * g.strides.row;
      lower = left + clamped(patch.row + 1, g.vertical.size) * g.strides.row;
      right = static_cast<int>((clamped(patch.column + 1, g.horizontal.size) - column) *
                               g.strides.column);
    }

    // Of one class, whose first logit is `offset` elements on.
    VSS_DEVICE PatchExponents exponents(int64_t offset) const {
      return PatchExponents({exponent_of(upper[offset]), exponent_of(upper[offset + right]),
                             exponent_of(lower[offset]), exponent_of(lower[offset + right])});
    }
  };

  // Adds kCount classes, of which the first has this offset, to the sums of exponentials. The
  // exponents at the right corners come from the next thread.
  template <int kCount>
  VSS_DEVICE void add(const Block& block, const Corners& corners, int offset,
                      float (&totals)[kRatio][kRatio]) const {
    float left[kCount][2], right[2 * kCount];
    VSS_UNROLL
    for (int k = 0; k < kCount; ++k, offset += static_cast<int>(g.strides.channel)) {
      right[2 * k] = left[k][0] = exponent_of(corners.upper[offset]);
      right[2 * k + 1] = left[k][1] = exponent_of(corners.lower[offset]);
    }
    block.template shift<1>(right);
    VSS_UNROLL
    for (int k = 0; k < kCount; ++k) {
      const PatchExponents z({left[k][0], right[2 * k], left[k][1], right[2 * k + 1]});
      VSS_UNROLL
      for (int i = 0; i < kRatio * kRatio; ++i)
        totals[i / kRatio][i % kRatio] += power_of_two(z.at(i / kRatio, i % kRatio));
    }
  }

  VSS_DEVICE void add_classes(const Block& block, const Corners& corners,
                              float (&totals)[kRatio][kRatio]) const {
    const int stride = static_cast<int>(g.strides.channel);
    int k = 0, offset = 0;
    for (; k + kClasses <= g.classes; k += kClasses, offset += kClasses * stride)
      add<kClasses>(block, corners, offset, totals);
    for (; k < g.classes; ++k, offset += stride) add<1>(block, corners, offset, totals);
  }

  // Writes the losses of a patch and adds them, and the weights, to `sums`.
  VSS_DEVICE void finish(int64_t n, const Patch& patch, const Corners& corners,
                         const float (&totals)[kRatio][kRatio], float (&sums)[2]) const {
    const int x = patch.x();
    const bool exists[2] = {patch.column >= 0, patch.column + 1 < g.horizontal.size};
    unsigned again = 0;  // labels to compute once more
    VSS_UNROLL
    for (int r = 0; r < kRatio; ++r) {
      const int y = patch.y() + r;
      if (y < 0 || y >= g.vertical.resized) continue;
      int labels[kRatio];
      read_labels(g.labels, n, y, x, exists, labels);
      VSS_UNROLL
      for (int c = 0; c < kRatio; ++c) {
        if (!exists[c / 2]) continue;
        const float total = totals[r][c];
        if (total >= kLowest && total <= kHighest)
          write(n, y, x + c, r, c, labels[c], corners, std::log2(total), sums);
        else
          again |= 1u << (r * kRatio + c);
      }
    }
    for (int i = 0; again >> i; ++i) {
      if (!(again >> i & 1)) continue;
      const int r = i / kRatio, c = i % kRatio, y = patch.y() + r;
      write(n, y, x + c, r, c, g.labels.at(n, y, x + c), corners, log_sum(corners, r, c), sums);
    }
  }

  // The log-sum of one label, relative to its largest exponent.
  VSS_DEVICE float log_sum(const Corners& corners, int r, int c) const {
    float highest = kVanishing * kLog2E, total = 0.0f;
    for (int k = 0; k < g.classes; ++k) {
      const float z = corners.exponents(k * g.strides.channel).at(r, c);
      highest = highest > z ? highest : z;
    }
    for (int k = 0; k < g.classes; ++k)
      total += power_of_two(corners.exponents(k * g.strides.channel).at(r, c) - highest);
    // Without a logit to speak of there are no probabilities.
    return highest > kMasked ? highest + std::log2(total) : std::numeric_limits<float>::quiet_NaN();
  }

  VSS_DEVICE void write(int64_t n, int y, int x, int r, int c, int label, const Corners& corners,
                        float log_sum, float (&sums)[2]) const {
    float loss = 0.0f, weight = 0.0f;
    if (label >= 0) {
      weight = g.weight(label);
      const float z = corners.exponents(label * g.strides.channel).at(r, c);
      const float behind = z < kMasked ? std::numeric_limits<float>::infinity() : log_sum - z;
      loss = weight * kLn2 * behind;
    } else if (label == Labels::kInvalid) {
      // Not to be overlooked where checking the labels would have to wait for the GPU.
      loss = weight = std::numeric_limits<float>::quiet_NaN();
    }
    const int64_t pixel = g.pixel(n, y, x);
    log_sums[pixel] = log_sum;
    if (losses != nullptr) losses[pixel] = loss;
    sums[0] += loss;
    sums[1] += weight;
  }
};

#endif

}  // namespace vss::inline VSS_MACHINE::upsample_cross_entropy
