// The head on the device: one block adds the chunks of each unit, in their order, and runs csrc/head.h.
#include "kernels.h"

namespace segfuse {
namespace {

constexpr int kHeadThreads = 512;

struct Block {
  double* staging;  // one double per warp, and the total
  __device__ int64_t rank() const { return threadIdx.x; }
  __device__ int64_t size() const { return kHeadThreads; }
  __device__ void sync() const { __syncthreads(); }
  template <class F>
  __device__ double sum(int64_t n, const F& f) const {
    double own = 0;
    for (int64_t i = threadIdx.x; i < n; i += kHeadThreads) own += f(i);
    own = warp_sum(own);
    __syncthreads();
    if (threadIdx.x % kWarp == 0) staging[threadIdx.x / kWarp] = own;
    __syncthreads();
    double total = 0;
    for (int w = 0; w < kHeadThreads / kWarp; ++w) total += staging[w];
    return total;
  }
};

template <class Real>
struct HeadKernel {
  static constexpr int kBlock = kHeadThreads, kBlocks = 1, kSharedBytes = int(sizeof(double)) * kHeadThreads / kWarp;

  // A warp for each sum of each unit.
  __device__ static void add_chunks(const Job& job) {
    const int64_t n_sums = job.layout.unit_sums(), lane = threadIdx.x % kWarp;
    for (int64_t i = threadIdx.x / kWarp; i < job.layout.units * n_sums; i += kHeadThreads / kWarp) {
      const int64_t u = i / n_sums, s = i - u * n_sums;
      const double* partial = job.partial + u * job.cut.per_unit * n_sums + s;
      double own = 0;
      for (int64_t k = lane; k < job.cut.per_unit; k += kWarp) own += partial[k * n_sums];
      own = warp_sum(own);
      if (lane == 0) job.sums[i] = own;
    }
  }

  __device__ static void statistics(const Job& job) {
    add_chunks(job);
    __syncthreads();
    const Head head(job.plan, job.problem, job.constants, job.sums, job.head_workspace);
    const Block block{reinterpret_cast<double*>(shared_memory())};
    head.run(block, static_cast<Real*>(job.loss), job.terms, static_cast<Real*>(job.slopes));
    if (!job.correction) return;
    const int64_t n_sums = job.layout.unit_sums();
    const double weight = block.sum(job.layout.units, [&](int64_t u) { return job.sums[u * n_sums]; });
    const bool averages = job.plan.reduction == Reduction::mean;
    if (threadIdx.x == 0)
      *job.correction = weight == 0 ? 0.0f : averages ? float(1 / weight / job.assumed_scale) : 1.0f;
  }
};

constexpr Kernel kKernels[] = {
    entry<HeadKernel<float>, Step::head>("head<float>", Engine::head, Dtype::f32, LinkKind::sigmoid, PointSet::any,
                                         true),
    entry<HeadKernel<double>, Step::head>("head<double>", Engine::head, Dtype::f64, LinkKind::sigmoid, PointSet::any,
                                          true),
};

}  // namespace

KernelTable head_kernels() { return {kKernels, sizeof(kKernels) / sizeof(Kernel)}; }

}  // namespace segfuse
