// Sample after sample in one kernel, for losses whose gradient in a sample depends on that sample's sums alone: while
// the sums of one sample are awaited those of the next are taken, and what the gradient reads again still lies in the
// second cache. Every logit and label comes from memory once.
//
// A group of blocks serves every `groups`th sample. Launched cooperatively: blocks wait for one another.
#pragma once

#include "team.h"

namespace segfuse {
namespace {

template <class E>
struct Serial {
  static constexpr int kBlock = E::kBlock, kBlocks = E::kBlocks, kSharedBytes = E::kSharedBytes;

  __device__ static void gradient(const Job& job) {
    const int groups = job.serial_groups, group = int(blockIdx.x) % groups;
    const int64_t rank = blockIdx.x / groups, blocks = gridDim.x / groups;
    const int64_t units = job.layout.units / job.problem.samples, chunks = units * job.cut.per_unit;
    // Behind what the engine itself uses.
    double* sums = reinterpret_cast<double*>(shared_memory() + E::kSharedBytes);
    double* staging = sums + units * job.layout.unit_sums();
    double* coefficients = staging + kWarps;
    double* terms = coefficients + kMaxTerms;
    double* workspace = terms + kMaxTerms;
    const Sizes one{1, job.problem.classes, job.problem.pixels};
    double* vector = workspace + Head::workspace_size(job.plan, one, 1);
    float* slopes = reinterpret_cast<float*>(vector + Head::vector_size(job.plan, one));
    if (int(threadIdx.x) < job.plan.term_count) {
      const double samples = job.plan.reduction == Reduction::mean ? double(job.problem.samples) : 1.0;
      coefficients[threadIdx.x] = coefficient_of(job.plan, job.constants, int(threadIdx.x)) / samples;
    }
    const Constants constants{job.constants.tables, coefficients, job.constants.classes};
    const auto add = [&](int64_t sample) {
      for (int64_t k = rank; k < chunks; k += blocks) {
        E::template add_chunk<false>(job, sample * chunks + k);
        __threadfence();
        __syncthreads();
      }
      if (threadIdx.x == 0) atomicAdd(job.arrived + sample, 1u);
    };
    if (group < job.problem.samples) add(group);
    for (int64_t sample = group; sample < job.problem.samples; sample += groups) {
      if (sample + groups < job.problem.samples) add(sample + groups);
      if (threadIdx.x == 0)
        while (__ldcg(job.arrived + sample) < unsigned(blocks)) __nanosleep(100);
      __syncthreads();
      __threadfence();
      add_chunks(job, sample * units, units, sums);
      __syncthreads();
      const Head head(job.plan, one, constants, sums, workspace, vector);
      const Block<kBlock> block{staging};
      head.gather(block);
      head.finish(block, static_cast<float*>(nullptr), terms, slopes);
      __syncthreads();
      const int64_t last = rank + (chunks - 1 - rank) / blocks * blocks;
      for (int64_t k = last; k >= 0 && rank < chunks; k -= blocks) {
        E::write_chunk(job, sample * chunks + k, slopes + k / job.cut.per_unit * job.layout.unit_slopes());
        __syncthreads();
      }
    }
  }
};

}  // namespace
}  // namespace segfuse
