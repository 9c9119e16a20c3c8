#include <algorithm>

#include "kernels.h"
#include "tile.h"

namespace segfuse {
namespace {

#define SEGFUSE_STEP(step, Element, name, dtype, slots, staged, engine, plain, pointwise)                            \
  entry<Tile<Element, slots, staged, plain>, Step::step>(#engine "." #step "<" name ", " #slots ", " #pointwise ">", \
                                                         Engine::engine, dtype, LinkKind::softmax,                   \
                                                         PointwiseSet::pointwise, false, slots)
#define SEGFUSE_TWO_PASSES(...) SEGFUSE_STEP(statistics, __VA_ARGS__), SEGFUSE_STEP(gradient, __VA_ARGS__)
// float16 has no `fused`: see sigmoid.cu.
#define SEGFUSE_THREE(...) SEGFUSE_TWO_PASSES(__VA_ARGS__), SEGFUSE_STEP(fused, __VA_ARGS__)
#define SEGFUSE_ELEMENTS(...)                                        \
  SEGFUSE_THREE(float, "float32", Dtype::f32, __VA_ARGS__),          \
      SEGFUSE_THREE(Bfloat16, "bfloat16", Dtype::bf16, __VA_ARGS__), \
      SEGFUSE_TWO_PASSES(Half, "float16", Dtype::f16, __VA_ARGS__)
#define SEGFUSE_BOTH_KINDS(...) \
  SEGFUSE_ELEMENTS(__VA_ARGS__, true, cross_entropy), SEGFUSE_ELEMENTS(__VA_ARGS__, false, any)

// Slots: those of slots_of. cross_entropy: plain jobs.
constexpr Kernel kKernels[] = {
    SEGFUSE_BOTH_KINDS(8, false, tile),        SEGFUSE_BOTH_KINDS(20, false, tile),
    SEGFUSE_BOTH_KINDS(32, false, tile),       SEGFUSE_BOTH_KINDS(8, true, staged_tile),
    SEGFUSE_BOTH_KINDS(24, true, staged_tile),
};

int64_t bytes(const Job& job, int pixels, bool staged, bool statistics) {
  const TileShape shape{pixels, int(job.problem.classes)};
  const int64_t stage = staged ? shape.staged_stride(int(size_of(job.problem.logits.dtype))) * pixels : 0;
  return stage_at(job.layout, shape, slots_of(shape, staged), statistics) + stage;
}

// Whether an offset in a domain is a multiple of a pixel's stride plus one of a class's, and has 32 bits.
bool is_flat(const View& v, const Sizes& sizes) {
  const int64_t size = size_of(v.dtype);
  return v.dims == 1 && v.stride[0] >= 0 && v.class_stride >= 0 && v.class_stride * size <= UINT32_MAX &&
         v.stride[0] * size * sizes.pixels <= UINT32_MAX;
}

// No weights, no pointwise term but cross-entropy without factors, and one stride for pixels and one for classes. Such
// jobs are usual, and need a third fewer instructions.
bool is_plain(const Job& job) {
  const Problem& p = job.problem;
  const Plan& plan = job.plan;
  const bool cross_entropy =
      plan.pointwise[0].kind == PointwiseKind::cross_entropy && plan.pointwise[0].class_values < 0;
  return p.hard_target && !p.has_weight && !p.has_upstream &&
         (!plan.pointwise_count || (plan.pointwise_count == 1 && cross_entropy)) && is_flat(p.logits, p) &&
         is_flat(p.target, p) && (!p.output.data || is_flat(p.output, p));
}

void set_plain(const Problem& p, const Plan& plan, TilePlan& tile) {
  const int64_t size = size_of(p.logits.dtype), bytes = size_of(p.target.dtype);
  const int64_t bits = 8 * bytes - (holds(p.target.dtype, -1) ? 1 : 0);
  tile.label_bytes = int(bytes);
  tile.label_limit = uint32_t(bits < 31 ? std::min(p.classes, int64_t(1) << bits) : p.classes);
  tile.ignored = uint64_t(plan.ignore_index) & ~uint64_t(0) >> (64 - 8 * bytes);
  tile.logits_step = uint32_t(p.logits.stride[0] * size);
  tile.label_step = uint32_t(p.target.stride[0] * bytes);
  tile.logits_class = uint32_t(p.logits.class_stride);
  if (!p.output.data) return;
  tile.output_step = uint32_t(p.output.stride[0] * size);
  tile.output_class = uint32_t(p.output.class_stride);
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
      job.tile.pixels = pixels;
      job.tile.staged = staged;
      job.tile.fewest = shape.classes / shape.teams();
      job.tile.most = shape.most_classes();
      const int64_t size = size_of(job.problem.logits.dtype), vectors = shape.classes * size / 16;
      job.tile.gaps = shape.padded(int(size)) ? uint32_t(((int64_t(1) << 32) + vectors - 1) / vectors) : 0;
      job.tile.plain = is_plain(job);
      if (job.tile.plain) set_plain(job.problem, job.plan, job.tile);
      return;
    }
  }
}

Engine tile_engine(const Job& job, Step step) {
  const bool staged = job.tile.staged && (step == Step::statistics || is_run(job.problem.output, job.problem));
  return staged ? Engine::staged_tile : Engine::tile;
}

int tile_slots(const Job& job, Engine engine) {
  return slots_of({job.tile.pixels, int(job.problem.classes)}, engine == Engine::staged_tile);
}

int64_t tile_bytes(const Kernel& kernel, const Job& job) {
  const bool staged = kernel.key.engine == Engine::staged_tile;
  if (!staged && kernel.key.engine != Engine::tile) return 0;
  return bytes(job, job.tile.pixels, staged, kernel.key.step != Step::gradient);
}

}  // namespace segfuse
