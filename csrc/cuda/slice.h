// How tile.h divides a tile: each thread has some classes of one pixel. It loads their logits and stores their
// gradients.
#pragma once

#include "source.h"
#include "tile_shape.h"

namespace segfuse {
namespace {

// The classes of a pixel that a thread has: `count` of them, from `first` on, in an array of kSlots registers. kStaged:
// the tile is a run of memory. It is loaded and stored 16 bytes at a time, and threads exchange its elements through
// shared memory. Else any strides: each thread reads and writes its own classes.
template <class Element, int kSlots, bool kStaged, bool kPlain, bool kAlone>
struct Slice {
  static constexpr int kVector = 16 / int(sizeof(Element));
  // Loads of a thread in flight to the stage. float16: the registers of a fourth load would spill.
  static constexpr int kBatch = kAlone ? 2 : std::is_same_v<Element, Half> ? 3 : 4;
  static constexpr int kGroup = 4;
  using Vector = Pack<Element, kVector>;

  const Job& job;
  const TileShape shape;
  const int64_t domain;
  const uint32_t begin, pixels;  // of the chunk
  const int stage;               // its place in shared memory
  const int lane, team, first, count;
  // Where logits, labels and gradient of the chunk begin, if it is plain.
  const unsigned char *logits = nullptr, *labels = nullptr;
  unsigned char* output = nullptr;
  const Element* here = nullptr;  // the pixel of the last load(), if not staged

  __device__ Slice(const Job& j, const Chunk& chunk, int stage_at)
      : job(j),
        shape{kAlone ? kThreads : j.tile.pixels, int(j.problem.classes)},
        domain(chunk.domain),
        begin(uint32_t(chunk.first)),
        pixels(uint32_t(chunk.count)),
        stage(stage_at),
        lane(kAlone ? int(threadIdx.x) : int(threadIdx.x) % shape.pixels),
        team(kAlone ? 0 : int(threadIdx.x) / shape.pixels),
        first(kAlone ? 0 : shape.first_class(team)),
        count(kAlone ? shape.classes : shape.first_class(team + 1) - first) {
    if constexpr (kPlain) {
      logits = first_of(j.problem.logits, sizeof(Element), j.tile.logits_step);
      labels = first_of(j.problem.target, j.tile.label_bytes, j.tile.label_step);
      output = first_of(j.problem.output, sizeof(Element), j.tile.output_step);
    }
  }

  // Bounds on `count`. In plain jobs they are the same for all threads: then no branch divides the threads of a warp.
  __device__ int fewest() const { return kPlain ? job.tile.fewest : count; }
  __device__ int most() const { return kPlain ? job.tile.most : count; }

  // Calls f(slot) for every slot in use, and for a few more. (An exit in the middle of the loop would cost 40 registers
  // where exits meet.)
  template <class F>
  __device__ void each(const F& f) const {
#pragma unroll
    for (int g = 0; g < kSlots; g += kGroup) {
      if (g == 0 || g < most()) {
#pragma unroll
        for (int k = 0; k < kGroup; ++k) f(g + k);
      }
    }
  }

  // Calls f(slot, whether it holds a class) for the same slots.
  template <class F>
  __device__ void each_held(const F& f) const {
#pragma unroll
    for (int g = 0; g < kSlots; g += kGroup) {
      if (g + kGroup <= fewest()) {
#pragma unroll
        for (int k = 0; k < kGroup; ++k) f(g + k, true);
      } else if (g == 0 || g < most()) {
#pragma unroll
        for (int k = 0; k < kGroup; ++k) f(g + k, g + k < count);
      }
    }
  }

  // Calls f(slot, its value). `values` are kSlots values in shared memory, aligned to 16 bytes.
  template <class F>
  __device__ void each(const float* values, const F& f) const {
#pragma unroll
    for (int g = 0; g < kSlots; g += kGroup) {
      if (g == 0 || g < most()) {
        const float4 v = *reinterpret_cast<const float4*>(values + g);
        f(g, v.x);
        f(g + 1, v.y);
        f(g + 2, v.z);
        f(g + 3, v.w);
      }
    }
  }

  __device__ bool holds(uint32_t base) const { return base + lane < pixels; }
  // The pixel at `base` + lane: its place in the chunk, its position in the domain. Past the end: of the last pixel,
  // with weight 0.
  __device__ uint32_t place(uint32_t base) const { return holds(base) ? base + lane : pixels - 1; }
  __device__ uint32_t position(uint32_t base) const { return begin + place(base); }

  // The bits of a pixel's label, if plain.
  __device__ uint64_t label(uint32_t base) const {
    const unsigned char* p = labels + place(base) * job.tile.label_step;
    const int bytes = job.tile.label_bytes;
    if (bytes == 8) {
      const uint2 both = __ldg(reinterpret_cast<const uint2*>(p));
      return both.x | uint64_t(both.y) << 32;
    }
    if (bytes == 4) return __ldg(reinterpret_cast<const unsigned*>(p));
    return bytes == 1 ? __ldg(p) : __ldg(reinterpret_cast<const unsigned short*>(p));
  }

  // Loads the logits of the tile at `base`. Slots past the thread's last class get a logit of its classes. All threads
  // call it.
  __device__ void load(uint32_t base, float (&z)[kSlots]) {
    if constexpr (kStaged) {
      fill_stage(base);
      const Element* element = staged_pixel() + first;
      each_held([&](int j, bool held) { z[j] = Number<Element>::widened(element[held ? j : 0]); });
    } else {
      here = pixel(job.problem.logits, logits, job.tile.logits_step, base);
      const Element* element = class_of(first);
      const auto step = step_of(job.problem.logits, job.tile.logits_class);
#pragma unroll
      for (int g = 0; g < kSlots; g += kGroup) {
        if (g + kGroup <= fewest()) {
#pragma unroll
          for (int k = 0; k < kGroup; ++k, element += step) z[g + k] = unread(element);
        } else if (g == 0 || g < most()) {
#pragma unroll
          for (int k = 0; k < kGroup; ++k) {
            z[g + k] = unread(element);
            element += g + k + 1 < count ? step : 0;
          }
        }
      }
      if constexpr (!std::is_same_v<Element, float>)
        each([&](int j) { z[j] = Number<Element>::widened({uint16_t(bits_of(z[j]))}); });
    }
  }
  // The logit of any class, after load(): from the stage, or from memory again (the first cache has it).
  __device__ float logit(int c) const {
    Pack<Element, 1> pack;
    if constexpr (kStaged)
      pack.element[0] = staged_pixel()[c];
    else
      pack.load(class_of(c));
    return Number<Element>::widened(pack.element[0]);
  }
  // Stores the gradient of the tile that was loaded. All threads call it.
  __device__ void store(uint32_t base, const float (&g)[kSlots]) const {
    if constexpr (kStaged) {
      Element* element = staged_pixel() + first;
      each_held([&](int j, bool held) {
        if (held) element[j] = Number<Element>::narrowed(g[j]);
      });
      __syncthreads();
      drain_stage(base);
    } else if (holds(base)) {
      const auto step = step_of(job.problem.output, job.tile.output_class);
      auto* element = const_cast<Element*>(pixel(job.problem.output, output, job.tile.output_step, base));
      element += uint64_t(first) * step;
      each_held([&](int j, bool held) {
        Pack<Element, 1> raw;
        raw.element[0] = Number<Element>::narrowed(g[j]);
        if (held) raw.store(element);
        element += step;
      });
    }
  }

 private:
  // The bits of an element, in the register that its number will have. A conversion here would wait for the load.
  __device__ static float unread(const Element* p) {
    Pack<Element, 1> pack;
    pack.load(p);
    return float_of(uint32_t(pack.word[0]));
  }
  __device__ unsigned char* first_of(const View& v, int size, uint32_t step) const {
    return kept(static_cast<unsigned char*>(v.data) + domain * v.sample_stride * size + uint64_t(begin) * step);
  }
  // `start`, `step`: of a plain view. (All offsets in a plain domain have 32 bits.)
  __device__ const Element* pixel(const View& v, const unsigned char* start, uint32_t step, uint32_t base) const {
    if constexpr (kPlain) return reinterpret_cast<const Element*>(start + place(base) * step);
    return static_cast<const Element*>(v.data) + offset_of(v, domain, 0, position(base));
  }
  __device__ static auto step_of(const View& v, uint32_t plain) {
    if constexpr (kPlain)
      return plain;
    else
      return v.class_stride;
  }
  // Where class c of the pixel that was loaded is.
  __device__ const Element* class_of(int c) const {
    if constexpr (kPlain)
      return here + uint64_t(uint32_t(c)) * job.tile.logits_class;
    else
      return here + c * job.problem.logits.class_stride;
  }
  // The run of the tile at `base`.
  __device__ Element* run(const View& v, const unsigned char* start, uint32_t step, uint32_t base) const {
    if constexpr (kPlain) return reinterpret_cast<Element*>(const_cast<unsigned char*>(start) + base * step);
    return static_cast<Element*>(v.data) + domain * v.sample_stride + int64_t(begin + base) * shape.classes;
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
    const auto gaps = uint32_t(uint64_t(uint32_t(i)) * job.tile.gaps >> 32);
    return reinterpret_cast<Vector*>(shared_memory() + stage) + i + gaps;
  }

  __device__ void fill_stage(uint32_t base) const {
    const Element* const tile = run(job.problem.logits, logits, job.tile.logits_step, base);
    const int size = elements(base), whole = size / kVector, rest = whole * kVector + int(threadIdx.x);
    const Element* from = tile + threadIdx.x * kVector;
    __syncthreads();  // all threads are done with the tile before
#pragma unroll 1
    for (int i = threadIdx.x; i < whole; i += kBatch * kThreads, from += kBatch * kThreads * kVector) {
      Vector vector[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u)
        if (i + u * kThreads < whole) vector[u].load(from + u * kThreads * kVector);
#pragma unroll
      for (int u = 0; u < kBatch; ++u)
        if (i + u * kThreads < whole) *staged_vector(i + u * kThreads) = vector[u];
    }
    if (rest < size) {
      Pack<Element, 1> last;
      last.load(tile + rest);
      staged()[rest] = last.element[0];
    }
    __syncthreads();
  }
  __device__ void drain_stage(uint32_t base) const {
    Element* const tile = run(job.problem.output, output, job.tile.output_step, base);
    const int size = elements(base), whole = size / kVector, rest = whole * kVector + int(threadIdx.x);
    Element* to = tile + threadIdx.x * kVector;
#pragma unroll 1
    for (int i = threadIdx.x; i < whole; i += kThreads, to += kThreads * kVector) staged_vector(i)->store(to);
    if (rest < size) {
      Pack<Element, 1> last;
      last.element[0] = staged()[rest];
      last.store(tile + rest);
    }
  }
};

}  // namespace
}  // namespace segfuse
