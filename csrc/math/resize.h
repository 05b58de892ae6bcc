// Bilinear resizing, one dimension at a time, with PyTorch's coordinates.
#pragma once

namespace vss::inline VSS_MACHINE {

// The two source positions that one resized position reads, and the weight of the second.
struct Tap {
  int64_t first;
  int64_t second;
  float weight;  // of the second

  // How much of the resized position comes from source position `index`.
  VSS_INLINE float weight_of(int64_t index) const {
    return (index == first ? 1.0f - weight : 0.0f) + (index == second ? weight : 0.0f);
  }
};

// One dimension of a resize, from `size` to `resized` positions. A position p reads the source at
// (p + offset) * scale - offset: with align_corners=False the corners of the corner pixels
// coincide, which puts the pixels' centres half a pixel further; with align_corners=True the
// centres coincide.
struct Resize {
  int64_t size;
  int64_t resized;
  float scale;
  float offset;

  Resize() = default;
  Resize(int64_t size, int64_t resized, bool align_corners = false)
      : size(size),
        resized(resized),
        scale(!align_corners ? static_cast<float>(size) / resized
              : resized > 1  ? static_cast<float>(size - 1) / (resized - 1)
                             : 0.0f),
        offset(align_corners ? 0.0f : 0.5f) {}

  VSS_INLINE Tap tap(int64_t position) const {
    float source = (position + offset) * scale - offset;
    source = source < 0.0f ? 0.0f : source;
    int64_t first = static_cast<int64_t>(source);
    first = first < size - 1 ? first : size - 1;
    const int64_t second = first + 1 < size ? first + 1 : first;
    return {first, second, source - static_cast<float>(first)};
  }

  // A range of resized positions that holds all those that read source position `index`. It may
  // hold a few more, whose tap then gives the weight zero.
  VSS_INLINE int64_t reader_begin(int64_t index) const {
    if (scale == 0.0f) return 0;  // all read the first source position
    const int64_t begin = static_cast<int64_t>((index - 1 + offset) / scale - offset) - 1;
    return begin < 0 ? 0 : begin;
  }
  VSS_INLINE int64_t reader_end(int64_t index) const {
    if (scale == 0.0f) return resized;
    const int64_t end = static_cast<int64_t>((index + 1 + offset) / scale - offset) + 2;
    return end > resized ? resized : end;
  }
};

}  // namespace vss::inline VSS_MACHINE
