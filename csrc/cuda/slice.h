// How tile.h shares out a tile: each thread has some classes of one pixel. It loads their logits and stores their
// gradients.
#pragma once

#include "source.h"

namespace segfuse {
namespace {

// Threads of a block are lanes (pixels of a tile) times teams; the teams share a pixel's classes evenly.
struct TileShape {
  int pixels, classes;
  HD int teams() const { return kThreads / pixels; }
  HD int first_class(int team) const { return team * classes / teams(); }
  HD int most_classes() const { return (classes + teams() - 1) / teams(); }  // of a thread
  // Bytes from a staged pixel to the next. Where pixels are an even number of 16 bytes, 16 more stay free: so no more
  // than four lanes of a warp meet in a bank.
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

// The classes of a pixel that a thread has: `count` of them, from `first` on, in an array of kSlots registers.
// kStaged: the tile is a run, which comes and goes 16 bytes at a time and is handed out through shared memory. Else any
// strides: each thread reads and writes its own.
template <class Element, int kSlots, bool kStaged>
struct Slice {
  static constexpr int kVector = 16 / int(sizeof(Element)), kBatch = 2;  // loads on their way to the stage
  static constexpr int kGroup = 4;
  using Vector = Pack<Element, kVector>;

  const Job& job;
  const TileShape shape;
  const int64_t unit;
  const uint32_t begin, pixels;  // of the chunk
  const int stage;               // where it is in shared memory
  const int lane, team, first, count;
  Element* here = nullptr;  // the pixel of the last load(), not staged

  __device__ Slice(const Job& j, const Span& span, int stage_at)
      : job(j),
        shape{j.tile_pixels, int(j.problem.classes)},
        unit(span.unit),
        begin(uint32_t(span.first)),
        pixels(uint32_t(span.count)),
        stage(stage_at),
        lane(int(threadIdx.x) % shape.pixels),
        team(int(threadIdx.x) / shape.pixels),
        first(shape.first_class(team)),
        count(shape.first_class(team + 1) - first) {}

  // f(slot) for every slot in use, and for up to three more. (A loop that is left in the middle would cost 40 registers
  // where its ends meet.)
  template <class F>
  __device__ void each(const F& f) const {
#pragma unroll
    for (int g = 0; g < kSlots; g += kGroup) {
      if (g < count) {
#pragma unroll
        for (int k = 0; k < kGroup; ++k) f(g + k);
      }
    }
  }

  // f(slot, its value), values being in shared memory, aligned to 16 bytes, one for each of the kSlots.
  template <class F>
  __device__ void each(const float* values, const F& f) const {
#pragma unroll
    for (int g = 0; g < kSlots; g += kGroup) {
      if (g < count) {
        const float4 v = *reinterpret_cast<const float4*>(values + g);
        f(g, v.x);
        f(g + 1, v.y);
        f(g + 2, v.z);
        f(g + 3, v.w);
      }
    }
  }

  __device__ bool holds(uint32_t base) const { return base + lane < pixels; }
  // Of the pixel at `base` + lane, or of the last one, whose weight is 0 there.
  __device__ uint32_t position(uint32_t base) const { return begin + (holds(base) ? base + lane : pixels - 1); }

  // The logits of the tile at `base`. Slots past the last class get some class's. All threads call it.
  __device__ void load(uint32_t base, float (&z)[kSlots]) {
    if constexpr (kStaged) {
      fill_stage(base);
      const Element* mine = staged_pixel() + first;
      each([&](int j) { z[j] = Number<Element>::widened(mine[j < count ? j : 0]); });
    } else {
      const View& v = job.problem.logits;
      here = pixel(v, base);
      const Element* mine = here + first * v.class_stride;
#pragma unroll
      for (int g = 0; g < kSlots; g += kGroup) {
        if (g + kGroup <= count) {
#pragma unroll
          for (int k = 0; k < kGroup; ++k) z[g + k] = unread(mine + k * v.class_stride);
          mine += kGroup * v.class_stride;
        } else if (g < count) {
#pragma unroll
          for (int k = 0; k < kGroup; ++k) {
            z[g + k] = unread(mine);
            if (g + k + 1 < count) mine += v.class_stride;
          }
        }
      }
      if constexpr (!std::is_same_v<Element, float>)
        each([&](int j) { z[j] = Number<Element>::widened({uint16_t(bits_of(z[j]))}); });
    }
  }
  // Of any class, after load(): of the stage, or of the first cache.
  __device__ float logit(int c) const {
    if constexpr (kStaged)
      return Number<Element>::widened(staged_pixel()[c]);
    else
      return Number<Element>::widened(here[c * job.problem.logits.class_stride]);
  }
  // The gradient of the tile that was loaded. All threads call it.
  __device__ void store(uint32_t base, const float (&g)[kSlots]) const {
    if constexpr (kStaged) {
      Element* mine = staged_pixel() + first;
      each([&](int j) {
        if (j < count) mine[j] = Number<Element>::narrowed(g[j]);
      });
      __syncthreads();
      drain_stage(base);
    } else if (holds(base)) {
      const View& v = job.problem.output;
      Element* mine = pixel(v, base) + first * v.class_stride;
      each([&](int j) {
        Pack<Element, 1> raw;
        raw.element[0] = Number<Element>::narrowed(g[j]);
        if (j < count) raw.store(mine);
        mine += v.class_stride;
      });
    }
  }

 private:
  // The bits of an element, in the register of what it will be: a conversion here would wait for the load.
  __device__ static float unread(const Element* p) {
    Pack<Element, 1> pack;
    pack.load(p);
    return float_of(uint32_t(pack.word[0]));
  }
  __device__ Element* pixel(const View& v, uint32_t base) const {
    return static_cast<Element*>(v.data) + offset_of(v, unit, 0, position(base));
  }
  __device__ Element* run(const View& v, uint32_t base) const {
    return static_cast<Element*>(v.data) + unit * v.sample_stride + int64_t(begin + base) * shape.classes;
  }
  __device__ int elements(uint32_t base) const {
    const int left = int(pixels - base);
    return (left < shape.pixels ? left : shape.pixels) * shape.classes;
  }
  __device__ Element* staged() const { return reinterpret_cast<Element*>(shared_memory() + stage); }
  __device__ Element* staged_pixel() const {
    const int stride = shape.staged_stride(sizeof(Element));
    return reinterpret_cast<Element*>(shared_memory() + stage + lane * stride);
  }
  // Where the stage holds the i-th 16 bytes of the run.
  __device__ Vector* staged_vector(int i) const {
    const int gaps = shape.padded(sizeof(Element)) ? i / (shape.classes / kVector) : 0;
    return reinterpret_cast<Vector*>(shared_memory() + stage) + i + gaps;
  }

  __device__ void fill_stage(uint32_t base) const {
    const Element* from = run(job.problem.logits, base);
    const int size = elements(base), whole = size / kVector, rest = whole * kVector + int(threadIdx.x);
    __syncthreads();  // everyone has done with the tile before
#pragma unroll 1
    for (int i = threadIdx.x; i < whole; i += kBatch * kThreads) {
      Vector vector[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u)
        if (i + u * kThreads < whole) vector[u].load(from + (i + u * kThreads) * kVector);
#pragma unroll
      for (int u = 0; u < kBatch; ++u)
        if (i + u * kThreads < whole) *staged_vector(i + u * kThreads) = vector[u];
    }
    if (rest < size) staged()[rest] = from[rest];
    __syncthreads();
  }
  __device__ void drain_stage(uint32_t base) const {
    Element* to = run(job.problem.output, base);
    const int size = elements(base), whole = size / kVector, rest = whole * kVector + int(threadIdx.x);
#pragma unroll 1
    for (int i = threadIdx.x; i < whole; i += kThreads) staged_vector(i)->store(to + i * kVector);
    if (rest < size) to[rest] = staged()[rest];
  }
};

}  // namespace
}  // namespace segfuse
