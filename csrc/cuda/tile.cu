#include "kernels.h"
#include "tile.h"

namespace segfuse {
namespace {

#define SEGFUSE_TILE(Element, name, dtype)                                                                    \
  entry<Tile<Element>, Step::statistics>("tile.statistics<" name ">", Engine::tile, dtype, LinkKind::softmax, \
                                         PointSet::any, false),                                               \
      entry<Tile<Element>, Step::gradient>("tile.gradient<" name ">", Engine::tile, dtype, LinkKind::softmax, \
                                           PointSet::any, false)

constexpr Kernel kKernels[] = {
    SEGFUSE_TILE(float, "float32", Dtype::f32),
    SEGFUSE_TILE(Half, "float16", Dtype::f16),
    SEGFUSE_TILE(Bfloat16, "bfloat16", Dtype::bf16),
};

}  // namespace

KernelTable tile_kernels() { return {kKernels, sizeof(kKernels) / sizeof(Kernel)}; }

int tile_pixels(const Plan& plan, const Problem& problem, int64_t shared_bytes) {
  for (int pixels = kThreads; pixels >= kFewestTilePixels; pixels /= 2)
    if (tile_bytes(plan, problem, pixels, true) <= shared_bytes &&
        tile_bytes(plan, problem, pixels, false) <= shared_bytes)
      return pixels;
  return 0;
}

int64_t tile_bytes(const Plan& plan, const Problem& problem, int pixels, bool statistics) {
  return TileShape{pixels, int(problem.classes)}.shared_bytes(statistics, plan.region_count > 0);
}

}  // namespace segfuse
