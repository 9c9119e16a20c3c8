// A call as kernels take it: one struct by value, in the constant bank.
#pragma once

#include "../chunks.h"
#include "../head.h"
#include "../problem.h"
#include "device.h"

namespace segfuse {

// The phases of the head (head.h) that a launch runs, as bits.
constexpr int kScore = 1, kTotal = 2, kPool = 4, kReduce = 8, kSlopes = 16;

// How tile.h goes through a job.
struct TilePlan {
  int pixels;        // of a tile; 0: tile.h cannot run the job
  bool staged;       // the logits come through a stage (slice.h)
  bool plain;        // see is_plain (tile.cu)
  int fewest, most;  // how many classes a thread has
  uint32_t gaps;     // i * gaps >> 32: how often 16 bytes stay free in the stage before the i-th 16 bytes
  // For plain jobs. Labels are read as numbers without a sign: label_limit is the first that is no class.
  int label_bytes;
  uint32_t label_limit;
  uint64_t ignored;
  uint32_t logits_step, label_step, output_step;  // bytes from a pixel to the next
  uint32_t logits_class, output_class;            // elements from a class to the next
};

struct Job {
  Plan plan;
  Problem problem;
  Constants constants;
  Layout layout;
  Chunks chunks;    // one block each
  bool can_ignore;  // the target's type can hold ignore_index
  TilePlan tile;
  double* partial;  // the sums of every chunk, as ChunkSums
  double* sums;     // the sums of every domain
  double* head_workspace;
  double* vector;        // what one half of the head leaves for the other
  double* block_totals;  // per block of kScore: what it adds to the vector
  int score_blocks;      // how many blocks kScore has
  int head_phases;
  // For a gradient that the forward writes: the factor of the mean that it assumes (0: it writes none).
  double assumed;
  void* loss;  // in the loss's type; null if the loss is unreduced
  double* terms;
  void *slopes, *status;  // Buffers
  const void* upstream;   // gradient of the loss, in its type; null: ones, or problem.upstream
};

namespace {

// Where a chunk writes its sums. They lie as [domain][sum][chunk]: the kernel that adds the chunks reads neighbours,
// and if a domain is one chunk, these are its sums already.
struct ChunkSums {
  double* first;
  int64_t stride;
  __device__ double& operator[](int64_t s) const { return first[s * stride]; }
  __device__ ChunkSums from(int64_t s) const { return {first + s * stride, stride}; }
};

__device__ inline ChunkSums sums_of_chunk(const Job& job, int64_t index) {
  const int64_t domain = index / job.chunks.per_domain, rank = index - domain * job.chunks.per_domain;
  return {job.partial + domain * job.layout.domain_sums() * job.chunks.per_domain + rank, job.chunks.per_domain};
}

// The slopes of domain u's pointwise term with the assumed factor of the mean: the head writes these if it is right.
__device__ inline void assume_slopes(const Job& job, int64_t u, float* slopes) {
  if (int(threadIdx.x) >= job.plan.term_count) return;
  const Term& term = job.plan.terms[threadIdx.x];
  if (term.is_region) return;
  const int64_t classes = job.problem.classes;
  double positive, negative;
  fixed_balance(job.plan, job.plan.pointwise[term.index], job.constants, classes, job.plan.multiclass ? 0 : u % classes,
                positive, negative);
  const double factor = coefficient_of(job.plan, job.constants, threadIdx.x) * job.assumed;
  slopes[2 * term.index] = float(factor * positive);
  slopes[2 * term.index + 1] = float(factor * negative);
}

// The upstream gradient of the element of the loss that row (n, c) belongs to.
template <class Real>
__device__ inline Real upstream_of(const Job& job, int64_t n, int64_t c) {
  if (!job.upstream) return Real(1);
  const OutputMap map{job.plan, job.problem, job.constants.classes};
  return static_cast<const Real*>(job.upstream)[map.of(n, c)];
}

}  // namespace
}  // namespace segfuse
