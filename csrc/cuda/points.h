// The pointwise terms of a job: none, one known at compile time, or any (a switch per pixel). for_each(job, f) calls
// f(loss, k) for each term k; sums indexed by k go through add_at.
#pragma once

#include "job.h"

namespace segfuse {
namespace {

struct NoPoints {
  static constexpr int kCount = 0, kBlocks = 3;
  template <class Real, class Function>
  __device__ static void for_each(const Job&, const Function&) {}
};

// kResident: blocks of a processor whose registers must fit; one more would spill.
template <template <class> class Loss, int kResident = 3>
struct OnePoint {
  static constexpr int kCount = 1, kBlocks = kResident;
  template <class Real, class Function>
  __device__ static void for_each(const Job& job, const Function& f) {
    f(Loss<Real>(job.plan.points[0].parameters(Real())), 0);
  }
};

struct AnyPoints {
  static constexpr int kCount = kMaxPoints, kBlocks = 2;
  template <class Real, class Function>
  __device__ static void for_each(const Job& job, const Function& f) {
#pragma unroll 1
    for (int k = 0; k < job.plan.point_count; ++k) switch (job.plan.points[k].kind) {
#define SEGFUSE_CASE(name, type)                             \
  case PointKind::name:                                      \
    f(type<Real>(job.plan.points[k].parameters(Real())), k); \
    break;
        SEGFUSE_POINTWISE(SEGFUSE_CASE)
#undef SEGFUSE_CASE
      }
  }
};

// value[i] += v, for an i that is not known at compile time, without indexing registers.
template <int kFirst, int kCount, class Array, class Real>
__device__ inline void add_at(Array& value, int i, Real v) {
#pragma unroll
  for (int k = 0; k < kCount; ++k)
    if (i == k) value[kFirst + k] += v;
}

}  // namespace
}  // namespace segfuse
