// How a tile (tile.h) is divided among the threads of a block, and where it is in shared memory.
#pragma once

#include "job.h"

namespace segfuse {
namespace {

// A block has lanes times teams threads. A lane is a pixel of the tile; teams divide the classes of each pixel evenly.
struct TileShape {
  int pixels, classes;
  HD int teams() const { return kThreads / pixels; }
  HD int first_class(int team) const { return team * classes / teams(); }
  HD int most_classes() const { return (classes + teams() - 1) / teams(); }  // of a thread
  // Bytes from a staged pixel to the next. If a pixel has an even number of 16 bytes, 16 more stay free: so no more
  // than four lanes of a warp use the same bank.
  HD bool padded(int size) const { return classes * size % 32 == 0; }
  HD int staged_stride(int size) const { return classes * size + (padded(size) ? 16 : 0); }
};

// Whether a tile is one run of memory, the classes of a pixel side by side (channels_last), in whole words of 16 bytes.
// Tiles begin at multiples of 8 pixels.
inline bool is_run(const View& v, const Sizes& sizes) {
  const auto bytes = uintptr_t(sizes.samples > 1 ? v.sample_stride * size_of(v.dtype) : 0);
  return v.dims == 1 && v.class_stride == 1 && v.stride[0] == sizes.classes &&
         (reinterpret_cast<uintptr_t>(v.data) | bytes) % 16 == 0;
}

// Slots of a thread: of the kernel with the fewest registers that holds its classes. A stage needs registers too.
constexpr int kFewSlots = 8;
constexpr int most_slots(bool staged) { return staged ? 24 : 32; }
inline int slots_of(const TileShape& shape, bool staged) {
  const int classes = shape.most_classes();
  return classes <= kFewSlots && shape.teams() == 1 ? kFewSlots : classes <= 20 && !staged ? 20 : most_slots(staged);
}

// What the threads of a pixel exchange; it is first in shared memory. peak, rest, others: a row for each pixel, with
// one value per team, read four at a time (two teams have two more values, which change nothing). label, weight,
// reference: one value per pixel, from the thread that knows it.
struct Exchange {
  float peak[2 * kThreads], rest[2 * kThreads], others[2 * kThreads];
  float label[kThreads], weight[kThreads], reference[kThreads];
  float slopes[2 * kMaxPointwise];  // assumed
};
// The floats behind Exchange. Statistics: a column of sums for each lane: those of a domain, then TP and FN of each
// class. Gradient: the slopes of each team's slots where the class is not the label's, then of each class where it is.
HD int64_t column_floats(const Layout& layout, const TileShape& shape, int slots, bool statistics) {
  const bool regions = layout.region_sums > 0;
  if (statistics) return (layout.group_sums() + (regions ? 2 * shape.classes : 0)) * shape.pixels;
  return regions ? shape.classes + shape.teams() * slots : 0;
}
// The stage of slice.h lies behind them.
HD int64_t stage_at(const Layout& layout, const TileShape& shape, int slots, bool statistics) {
  return int64_t(sizeof(Exchange)) +
         (column_floats(layout, shape, slots, statistics) + 3) / 4 * 4 * int64_t(sizeof(float));
}

}  // namespace
}  // namespace segfuse
