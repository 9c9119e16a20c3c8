// A call, as every kernel takes it: one struct by value, in the constant bank.
#pragma once

#include "../head.h"
#include "../problem.h"
#include "device.h"

namespace segfuse {

// Units cut into chunks of pixels, one block each, by the sizes alone: neither the number of processors nor that of
// resident blocks moves a sum.
struct Cut {
  int64_t pixels, chunk, per_unit, count;
};

// What a launch of the head does: add the chunks to sums, and its two halves.
constexpr int kGather = 1, kFinish = 2, kAdd = 4;

struct Job {
  Plan plan;
  Problem problem;
  Constants constants;
  Layout layout;
  Cut cut;
  bool can_ignore;  // the target's type can hold ignore_index
  int tile_pixels;  // of tile.h
  double* partial;  // per chunk: the sums of its unit
  double* sums;     // per unit
  double* head_workspace;
  double* vector;  // between the halves of the head
  int head_parts;  // of kAdd, kGather, kFinish
  // Sample after sample (serial.h): groups of blocks, and per sample how many blocks have brought their sums.
  int serial_groups;
  unsigned* arrived;
  // A gradient written in the forward: the sum of weights that it takes for granted (0: none), and whether that proved
  // right (1 or 0). If so, and where the upstream gradient is 1, the gradient pass has nothing left to do.
  double assumed_weight;
  float* ahead;
  void* loss;  // of the loss's type; null: unreduced
  double* terms;
  void* slopes;
  const void* upstream;  // gradient of the loss, of its type; null: ones, or problem.upstream

  // The factor of the mean if every pixel counts: what the head would find.
  HD double foreseen_scale() const {
    const double pixels = double(problem.pixels * (plan.joint ? 1 : problem.classes));
    return plan.reduction == Reduction::mean     ? 1 / (pixels * problem.samples)
           : plan.reduction == Reduction::sample ? 1 / pixels
                                                 : 1;
  }
};

namespace {

struct Span {
  int64_t unit, first, count;
};

__device__ inline Span chunk_of(const Cut& cut, int64_t i) {
  const int64_t unit = i / cut.per_unit, first = (i - unit * cut.per_unit) * cut.chunk;
  return {unit, first, cut.pixels - first < cut.chunk ? cut.pixels - first : cut.chunk};
}

// The slopes of unit u's pointwise terms, with the mean's factor as foreseen: what the head would leave.
__device__ inline void foresee_slopes(const Job& job, int64_t u, float* slopes) {
  if (int(threadIdx.x) >= job.plan.term_count) return;
  const Term& term = job.plan.terms[threadIdx.x];
  if (term.is_region) return;
  const int64_t classes = job.problem.classes;
  double positive, negative;
  fixed_balance(job.plan, job.plan.points[term.index], job.constants, classes, job.plan.joint ? 0 : u % classes,
                positive, negative);
  const double factor = coefficient_of(job.plan, job.constants, threadIdx.x) * job.foreseen_scale();
  slopes[2 * term.index] = float(factor * positive);
  slopes[2 * term.index + 1] = float(factor * negative);
}

// The gradient of the loss that row (n, c) belongs to.
template <class Real>
__device__ inline Real upstream_of(const Job& job, int64_t n, int64_t c) {
  if (!job.upstream) return Real(1);
  const OutputMap map{job.plan, job.problem, job.constants.classes};
  return static_cast<const Real*>(job.upstream)[map.of(n, c)];
}

// Whether the forward has left the gradient of a row as it is to be.
template <class Real>
__device__ inline bool is_done(const Job& job, Real upstream) {
  return job.ahead && *job.ahead == 1.0f && upstream == Real(1);
}

}  // namespace
}  // namespace segfuse
