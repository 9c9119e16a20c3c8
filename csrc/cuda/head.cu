// Adds the sums of the chunks, and runs the head (csrc/head.h): in one block, or in phases of many blocks.
#include "kernels.h"

namespace segfuse {
namespace {

constexpr int kHeadThreads = 512;

// The blocks of a grid as the team of csrc/head.h.
template <int kSize>
struct Blocks {
  double* staging;  // one per warp
  __device__ int64_t rank() const { return int64_t(blockIdx.x) * kSize + threadIdx.x; }
  __device__ int64_t size() const { return int64_t(gridDim.x) * kSize; }
  __device__ int64_t group() const { return blockIdx.x; }
  __device__ int64_t groups() const { return gridDim.x; }
  __device__ bool leads() const { return threadIdx.x == 0; }
  __device__ void sync() const { __syncthreads(); }
  template <class F>
  __device__ double sum(int64_t n, const F& f) const {
    double part = 0;
    for (int64_t i = rank(); i < n; i += size()) part += f(i);
    return block_sum(part);
  }
  template <class F>
  __device__ double group_sum(int64_t n, const F& f) const {
    double part = 0;
    for (int64_t i = threadIdx.x; i < n; i += kSize) part += f(i);
    return block_sum(part);
  }
  __device__ double block_sum(double part) const {
    part = warp_sum(part);
    __syncthreads();
    if (threadIdx.x % kWarp == 0) staging[threadIdx.x / kWarp] = part;
    __syncthreads();
    double total = 0;
    for (int w = 0; w < kSize / kWarp; ++w) total += staging[w];
    return total;
  }
};

// The sums of every domain from those of its chunks. A warp makes each sum if the chunks are few, else a block.
struct AddChunks {
  static constexpr int kBlock = kThreads, kBlocks = 4, kSharedBytes = int(sizeof(double)) * kWarps;

  __device__ static void run(const Job& job) {
    const int64_t chunks = job.chunks.per_domain, count = job.layout.sums();
    if (chunks > kFewChunks) {
      const Blocks<kThreads> block{reinterpret_cast<double*>(shared_memory())};
      const double* partial = job.partial + blockIdx.x * chunks;
      const double sum = block.group_sum(chunks, [&](int64_t k) { return partial[k]; });
      if (block.leads()) job.sums[blockIdx.x] = sum;
      return;
    }
    const int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
    if (i >= count) return;
    double part = 0;
    for (int64_t k = threadIdx.x % kWarp; k < chunks; k += kWarp) part += job.partial[i * chunks + k];
    part = warp_sum(part);
    if (threadIdx.x % kWarp == 0) job.sums[i] = part;
  }
};

template <class Real>
struct HeadKernel {
  static constexpr int kBlock = kHeadThreads, kBlocks = 1, kSharedBytes = int(sizeof(double)) * kHeadThreads / kWarp;

  __device__ static void run(const Job& job) {
    const int phases = job.head_phases;
    const Head head(job.plan, job.problem, job.constants, job.sums, job.head_workspace, job.vector);
    const Blocks<kHeadThreads> team{reinterpret_cast<double*>(shared_memory())};
    Real* slopes = static_cast<Real*>(job.slopes);
    if (phases & kScore) head.score(team, job.block_totals + blockIdx.x * Head::totals_size(job.plan));
    if (phases & kTotal) head.total(team, job.block_totals, job.score_blocks);
    if (phases & kPool) head.pool(team);
    if (phases & kReduce) head.reduce(team, static_cast<Real*>(job.loss), job.terms);
    if (!(phases & kSlopes)) return;
    team.sync();
    head.write_slopes(team, slopes);
    if (team.rank() == 0)
      *static_cast<Real*>(job.status) = job.assumed == 0 ? Real(0) : Real(head.scale_of(0, 0) / job.assumed);
  }
};

constexpr Kernel kKernels[] = {
    entry<HeadKernel<float>, Step::head>("head<float>", Engine::head, Dtype::f32, LinkKind::sigmoid, PointwiseSet::any,
                                         true),
    entry<HeadKernel<double>, Step::head>("head<double>", Engine::head, Dtype::f64, LinkKind::sigmoid,
                                          PointwiseSet::any, true),
    entry<AddChunks, Step::add>("head.add", Engine::head, Dtype::f64, LinkKind::sigmoid, PointwiseSet::any, true),
};

}  // namespace

KernelTable head_kernels() { return {kKernels, sizeof(kKernels) / sizeof(Kernel)}; }

}  // namespace segfuse
