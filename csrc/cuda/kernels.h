// The kernels as data: each has a key, and a launch looks its kernel up. A kernel that is in no table does not run.
#pragma once

#include <cstddef>

#include "job.h"

namespace segfuse {

// add: adds the chunks of a domain. fused: statistics and gradient in one read. rescale: multiplies that gradient in
// place.
enum class Step : int { statistics, add, head, values, gradient, fused, rescale };
// sigmoid: planes that are arrays. strided_sigmoid: any planes. softmax_general: any multiclass plan. label_map:
// softmax and class indices, planes that are arrays, a number of classes that is known at compile time. tile: the same
// for any number of classes and any strides. staged_tile: for channels_last.
enum class Engine : int { head, sigmoid, strided_sigmoid, softmax_general, label_map, tile, staged_tile, rescale };
// cross_entropy: cross-entropy, or no term; for tiles: plain jobs (tile.cu).
enum class PointwiseSet : int { none, bce, cross_entropy, focal_square, any };

struct Key {
  Step step;
  Engine engine;
  Dtype dtype;  // of the logits; f32 or f64 if the kernel takes every type that is computed in it
  LinkKind link;
  PointwiseSet pointwise;
  bool extra;   // squared and L1 statistics
  int classes;  // label_map: how many; tiles: the most that a thread has; others: 0

  bool operator==(const Key& o) const {
    return step == o.step && engine == o.engine && dtype == o.dtype && link == o.link && pointwise == o.pointwise &&
           extra == o.extra && classes == o.classes;
  }
};

using Function = void (*)(const Job);
static_assert(sizeof(Job) <= 4096, "the arguments of a kernel have 4 KB");

struct Kernel {
  Key key;
  const char* name;
  Function function;
  int threads, shared_bytes;  // shared_bytes: 0 for tiles, see tile_bytes
};

struct KernelTable {
  const Kernel* begin;
  size_t count;
};

constexpr int64_t kFewChunks = 256;  // of a domain: a warp adds up to so many, a block adds more

// Each is in the .cu file of its name.
KernelTable sigmoid_kernels();
KernelTable softmax_general_kernels();
KernelTable label_map_kernels();
KernelTable tile_kernels();
KernelTable head_kernels();
KernelTable rescale_kernels();

// Sets Job::tile to the largest tile (tile.h) that `shared_bytes` hold, the same for all passes.
constexpr int kFewestTilePixels = 8;
void choose_tile(Job& job, int64_t shared_bytes);
Engine tile_engine(const Job& job, Step step);
int tile_slots(const Job& job, Engine engine);  // the most classes that a thread of its kernel can have
// Shared memory of a kernel for tiles; 0 for other kernels.
int64_t tile_bytes(const Kernel& kernel, const Job& job);

namespace {

// Blocks that must fit on a multiprocessor, so that some load while others compute.
template <class E, Step kStep>
constexpr int resident_blocks() {
  if constexpr (kStep == Step::fused)
    return E::kFusedBlocks;
  else
    return E::kBlocks;
}

// One kernel per engine and step, and its entry in the tables.
template <class E, Step kStep>
__global__ void __launch_bounds__(E::kBlock, (resident_blocks<E, kStep>())) kernel(const __grid_constant__ Job job) {
  if constexpr (kStep == Step::statistics)
    E::statistics(job);
  else if constexpr (kStep == Step::add || kStep == Step::head || kStep == Step::rescale)
    E::run(job);
  else if constexpr (kStep == Step::values)
    E::values(job);
  else if constexpr (kStep == Step::fused)
    E::fused(job);
  else
    E::gradient(job);
}

template <class E, Step kStep>
constexpr Kernel entry(const char* name, Engine engine, Dtype dtype, LinkKind link, PointwiseSet pointwise, bool extra,
                       int classes = 0) {
  return {{kStep, engine, dtype, link, pointwise, extra, classes},
          name,
          &kernel<E, kStep>,
          E::kBlock,
          kStep == Step::values ? 0 : E::kSharedBytes};
}

}  // namespace
}  // namespace segfuse
