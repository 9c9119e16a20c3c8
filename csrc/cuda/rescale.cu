// Multiplies a gradient that the forward wrote by what was not known then: the upstream gradient, and the factor of the
// mean if not every pixel counted. Both are mostly 1: then a small grid reads one number and ends.
#include "kernels.h"
#include "source.h"

namespace segfuse {
namespace {

template <class Element>
struct Rescale {
  static constexpr int kBlock = kThreads, kBlocks = 4, kSharedBytes = 0;
  // Per turn of a thread: elements of a vector, and vectors, so that 64 bytes are in flight at once.
  static constexpr int kVector = 16 / int(sizeof(Element)), kUnroll = 4;

  __device__ static void run(const Job& job) {
    const float factor = *static_cast<const float*>(job.status) * upstream_of<float>(job, 0, 0);
    if (factor == 1.0f) return;
    if (factor - factor == 0.0f)
      multiply(job, factor);
    else
      multiply_valid(job, factor);
  }

  // The gradient is dense, with its dimensions in any order: the forward made the tensor.
  __device__ static void multiply(const Job& job, float factor) {
    const Problem& p = job.problem;
    const int64_t count = p.samples * p.classes * p.pixels, vectors = count / kVector;
    const int64_t step = int64_t(gridDim.x) * kThreads, rest = vectors * kVector + threadIdx.x;
    const auto multiplied = [&](Element x) { return Number<Element>::narrowed(factor * Number<Element>::widened(x)); };
    if (blockIdx.x == 0 && rest < count) {
      Element& x = static_cast<Element*>(p.output.data)[rest];
      x = multiplied(x);
    }
    uint4* data = static_cast<uint4*>(p.output.data);
    for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < vectors; i += kUnroll * step) {
      Pack<Element, kVector> group[kUnroll];  // not load(): it is for memory that the kernel does not write
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
        if (i + u * step < vectors) group[u].word[0] = data[i + u * step];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (i + u * step >= vectors) continue;
#pragma unroll
        for (Element& x : group[u].element) x = multiplied(x);
        data[i + u * step] = group[u].word[0];
      }
    }
  }

  // For a factor that is infinite or NaN: pixels that do not count keep their 0.
  __device__ static void multiply_valid(const Job& job, float factor) {
    const Problem& p = job.problem;
    const int64_t count = p.samples * p.classes * p.pixels, step = int64_t(gridDim.x) * kThreads;
    for (int64_t j = int64_t(blockIdx.x) * kThreads + threadIdx.x; j < count; j += step) {
      const int64_t row = j / p.pixels, i = j - row * p.pixels, n = row / p.classes, c = row - n * p.classes;
      float w = load_weight<float>(job, n, c, i);
      if (p.label_map)
        load_class<float>(job, n, i, w);
      else
        load_label<float>(job, n, c, i, w);
      Element& x = static_cast<Element*>(p.output.data)[offset_of(p.output, n, c, i)];
      x = Number<Element>::narrowed(w == 0.0f ? 0.0f : factor * Number<Element>::widened(x));
    }
  }
};

// The forward writes gradients of these types.
constexpr Kernel kKernels[] = {
    entry<Rescale<float>, Step::rescale>("rescale<float32>", Engine::rescale, Dtype::f32, LinkKind::sigmoid,
                                         PointwiseSet::any, true),
    entry<Rescale<Bfloat16>, Step::rescale>("rescale<bfloat16>", Engine::rescale, Dtype::bf16, LinkKind::sigmoid,
                                            PointwiseSet::any, true),
};

}  // namespace

KernelTable rescale_kernels() { return {kKernels, sizeof(kKernels) / sizeof(Kernel)}; }

}  // namespace segfuse
