#include "kernels.h"
#include "tile.h"

namespace segfuse {
namespace {

#define SEGFUSE_STEP(step, Element, name, dtype, slots, staged, engine)                                              \
  entry<Tile<Element, slots, staged>, Step::step>(#engine "." #step "<" name ", " #slots ">", Engine::engine, dtype, \
                                                  LinkKind::softmax, PointSet::any, false, slots)
#define SEGFUSE_TWO_PASSES(...) SEGFUSE_STEP(statistics, __VA_ARGS__), SEGFUSE_STEP(gradient, __VA_ARGS__)
// float16 has no `both`: see rows.cu.
#define SEGFUSE_THREE(...) SEGFUSE_TWO_PASSES(__VA_ARGS__), SEGFUSE_STEP(both, __VA_ARGS__)
#define SEGFUSE_ELEMENTS(...)                                        \
  SEGFUSE_THREE(float, "float32", Dtype::f32, __VA_ARGS__),          \
      SEGFUSE_THREE(Bfloat16, "bfloat16", Dtype::bf16, __VA_ARGS__), \
      SEGFUSE_TWO_PASSES(Half, "float16", Dtype::f16, __VA_ARGS__)

static_assert(kFewSlots == 8 && kMostSlots == 24, "as below");
constexpr Kernel kKernels[] = {
    SEGFUSE_ELEMENTS(8, false, tile),
    SEGFUSE_ELEMENTS(24, false, tile),
    SEGFUSE_ELEMENTS(8, true, staged_tile),
    SEGFUSE_ELEMENTS(24, true, staged_tile),
};

bool is_tile(Engine engine) { return engine == Engine::tile || engine == Engine::staged_tile; }

int64_t bytes(const Plan& plan, const Problem& problem, int pixels, Engine engine, bool statistics) {
  const TileShape shape{pixels, int(problem.classes)};
  const int64_t stage = shape.staged_stride(int(size_of(problem.logits.dtype))) * pixels;
  return stage_at(Layout(plan, problem), shape, statistics) + (engine == Engine::staged_tile ? stage : 0);
}

}  // namespace

KernelTable tile_kernels() { return {kKernels, sizeof(kKernels) / sizeof(Kernel)}; }

Engine tile_engine(const Problem& problem, Step step) {
  const bool writes = step != Step::statistics;
  return is_run(problem.logits, problem.classes) && (!writes || is_run(problem.output, problem.classes))
             ? Engine::staged_tile
             : Engine::tile;
}

int tile_pixels(const Plan& plan, const Problem& problem, int64_t shared_bytes) {
  const Engine engine = tile_engine(problem, Step::statistics);
  for (int pixels = kThreads; pixels >= kFewestTilePixels; pixels /= 2) {
    const TileShape shape{pixels, int(problem.classes)};
    if (shape.most_classes() <= kMostSlots && shape.classes >= shape.teams() &&
        bytes(plan, problem, pixels, engine, true) <= shared_bytes &&
        bytes(plan, problem, pixels, engine, false) <= shared_bytes)
      return pixels;
  }
  return 0;
}

int tile_slots(const Problem& problem, int pixels) { return slots_of({pixels, int(problem.classes)}); }

int64_t tile_bytes(const Kernel& kernel, const Job& job) {
  return is_tile(kernel.key.engine)
             ? bytes(job.plan, job.problem, job.tile_pixels, kernel.key.engine, kernel.key.step != Step::gradient)
             : 0;
}

}  // namespace segfuse
