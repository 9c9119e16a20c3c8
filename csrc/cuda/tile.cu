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

// Slots: those of slots_of.
constexpr Kernel kKernels[] = {
    SEGFUSE_ELEMENTS(8, false, tile),       SEGFUSE_ELEMENTS(20, false, tile),       SEGFUSE_ELEMENTS(32, false, tile),
    SEGFUSE_ELEMENTS(8, true, staged_tile), SEGFUSE_ELEMENTS(24, true, staged_tile),
};

int64_t bytes(const Job& job, int pixels, bool staged, bool statistics) {
  const TileShape shape{pixels, int(job.problem.classes)};
  const int64_t stage = staged ? shape.staged_stride(int(size_of(job.problem.logits.dtype))) * pixels : 0;
  return stage_at(job.layout, shape, slots_of(shape, staged), statistics) + stage;
}

}  // namespace

KernelTable tile_kernels() { return {kKernels, sizeof(kKernels) / sizeof(Kernel)}; }

void choose_tile(Job& job, int64_t shared_bytes) {
  for (const bool staged : {true, false}) {
    if (staged && !is_run(job.problem.logits, job.problem)) continue;
    for (int pixels = kThreads; pixels >= kFewestTilePixels; pixels /= 2) {
      const TileShape shape{pixels, int(job.problem.classes)};
      if (shape.most_classes() > most_slots(staged) || shape.classes < shape.teams() ||
          bytes(job, pixels, staged, true) > shared_bytes || bytes(job, pixels, staged, false) > shared_bytes)
        continue;
      job.tile_pixels = pixels;
      job.tile_staged = staged;
      return;
    }
  }
}

Engine tile_engine(const Job& job, Step step) {
  const bool staged = job.tile_staged && (step == Step::statistics || is_run(job.problem.output, job.problem));
  return staged ? Engine::staged_tile : Engine::tile;
}

int tile_slots(const Job& job, Engine engine) {
  return slots_of({job.tile_pixels, int(job.problem.classes)}, engine == Engine::staged_tile);
}

int64_t tile_bytes(const Kernel& kernel, const Job& job) {
  const bool staged = kernel.key.engine == Engine::staged_tile;
  if (!staged && kernel.key.engine != Engine::tile) return 0;
  return bytes(job, job.tile_pixels, staged, kernel.key.step != Step::gradient);
}

}  // namespace segfuse
