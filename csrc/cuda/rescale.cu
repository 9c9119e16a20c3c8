// The gradient that a forward left, times the upstream gradient and the correction of the mean. In ordinary training
// both are 1: nothing is read but two numbers.
#include "kernels.h"

namespace segfuse {
namespace {

template <class Element>
struct Rescale {
  static constexpr int kBlock = kThreads, kBlocks = 4, kSharedBytes = 0;
  static constexpr int kVector = 16 / int(sizeof(Element));

  // problem.output: the gradient as one array of `pixels` elements.
  __device__ static void gradient(const Job& job) {
    const float factor = *static_cast<const float*>(job.upstream) * *job.correction;
    if (factor == 1.0f) return;
    Element* data = static_cast<Element*>(job.problem.output.data);
    const int64_t count = job.problem.pixels, step = int64_t(gridDim.x) * kThreads * kVector;
    for (int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kVector; i < count; i += step) {
      if (i + kVector <= count) {
        Pack<Element, kVector> pack;
        pack.load_once(data + i);
#pragma unroll
        for (int k = 0; k < kVector; ++k)
          pack.element[k] = Number<Element>::narrowed(Number<Element>::widened(pack.element[k]) * factor);
        pack.store(data + i);
      } else {
        for (int64_t k = i; k < count; ++k)
          data[k] = Number<Element>::narrowed(Number<Element>::widened(data[k]) * factor);
      }
    }
  }
};

constexpr Kernel kKernels[] = {
    entry<Rescale<float>, Step::rescale>("rescale<float32>", Engine::rescale, Dtype::f32, LinkKind::sigmoid,
                                         PointSet::any, false),
    entry<Rescale<Bfloat16>, Step::rescale>("rescale<bfloat16>", Engine::rescale, Dtype::bf16, LinkKind::sigmoid,
                                            PointSet::any, false),
};

}  // namespace

KernelTable rescale_kernels() { return {kKernels, sizeof(kKernels) / sizeof(Kernel)}; }

}  // namespace segfuse
