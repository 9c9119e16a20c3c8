// The head on the device: one block adds the chunks of each unit, in their order, and runs csrc/head.h.
#include "kernels.h"
#include "team.h"

namespace segfuse {
namespace {

constexpr int kHeadThreads = 512;

template <class Real>
struct HeadKernel {
  static constexpr int kBlock = kHeadThreads, kBlocks = 1, kSharedBytes = int(sizeof(double)) * kHeadThreads / kWarp;

  __device__ static void statistics(const Job& job) {
    if (job.head_parts & kAdd) {
      add_chunks(job, 0, job.layout.units, job.sums);
      __syncthreads();
    }
    if (!(job.head_parts & (kGather | kFinish))) return;
    const Head head(job.plan, job.problem, job.constants, job.sums, job.head_workspace, job.vector);
    const Block<kHeadThreads> block{reinterpret_cast<double*>(shared_memory())};
    if (job.head_parts & kGather) head.gather(block);
    if (!(job.head_parts & kFinish)) return;
    head.finish(block, static_cast<Real*>(job.loss), job.terms, static_cast<Real*>(job.slopes));
    const double weight = job.vector[0];
    // In the slopes' type, behind them; the gradient pass reads it of float32 only.
    if (threadIdx.x == 0)
      *reinterpret_cast<Real*>(job.ahead) = Real(job.assumed_weight == 0 || weight == job.assumed_weight ? 1 : 0);
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
