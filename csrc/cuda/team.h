// A block as the team of csrc/head.h, and how it gathers the sums of the chunks.
#pragma once

#include "job.h"

namespace segfuse {
namespace {

template <int kSize>
struct Block {
  double* staging;  // one per warp
  __device__ int64_t rank() const { return threadIdx.x; }
  __device__ int64_t size() const { return kSize; }
  __device__ void sync() const { __syncthreads(); }
  template <class F>
  __device__ double sum(int64_t n, const F& f) const {
    double own = 0;
    for (int64_t i = threadIdx.x; i < n; i += kSize) own += f(i);
    own = warp_sum(own);
    __syncthreads();
    if (threadIdx.x % kWarp == 0) staging[threadIdx.x / kWarp] = own;
    __syncthreads();
    double total = 0;
    for (int w = 0; w < kSize / kWarp; ++w) total += staging[w];
    return total;
  }
};

// sums[0 ...) = the sums of units [first, first + count): those of their chunks, a warp for each. They are read past
// the first cache, which may hold what other blocks have overwritten since.
__device__ inline void add_chunks(const Job& job, int64_t first, int64_t count, double* sums) {
  const int64_t n_sums = job.layout.unit_sums(), lane = threadIdx.x % kWarp;
  for (int64_t i = threadIdx.x / kWarp; i < count * n_sums; i += blockDim.x / kWarp) {
    const int64_t u = i / n_sums, s = i - u * n_sums;
    const double* partial = job.partial + (first + u) * job.cut.per_unit * n_sums + s;
    double own = 0;
    for (int64_t k = lane; k < job.cut.per_unit; k += kWarp) own += __ldcg(partial + k * n_sums);
    own = warp_sum(own);
    if (lane == 0) sums[i] = own;
  }
}

}  // namespace
}  // namespace segfuse
