// The pointwise terms of a job: none, one known at compile time, or any (a switch per pixel). for_each(job, f) calls
// f(loss, k) for each term k; sums indexed by k go through add_at. Of hard labels in half precision (rows.h), where
// kMirrored: of_label_1(f) calls f(loss) for a loss that knows the label 1 only; can_mirror(job) is whether that is the
// job's.
#pragma once

#include "job.h"

namespace segfuse {
namespace {

struct NoPoints {
  static constexpr int kCount = 0, kBlocks = 3;
  static constexpr bool kBalanced = false, kMirrored = true;
  using Log = AbsoluteLog;  // which nobody reads
  __device__ static bool can_mirror(const Job&) { return true; }
  template <class Real, class Function>
  __device__ static void of_label_1(const Function&) {}
  template <class Real, class Function>
  __device__ static void for_each(const Job&, const Function&) {}
};

// kBalanced_: the labels may balance the term (policy.cu brings no other that is balanced).
template <template <class> class Loss, bool kBalanced_>
struct OnePoint {
  static constexpr int kCount = 1, kBlocks = 3;
  static constexpr bool kBalanced = kBalanced_, kMirrored = true;
  using Log = typename Loss<float>::Log;
  __device__ static bool can_mirror(const Job& job) {
    return Loss<float>(job.plan.points[0].narrow).keeps_hard_labels();
  }
  template <class Real, class Function>
  __device__ static void of_label_1(const Function& f) {
    const Real none[kParameters] = {};
    f(Loss<Real>(none));
  }
  template <class Real, class Function>
  __device__ static void for_each(const Job& job, const Function& f) {
    f(Loss<Real>(job.plan.points[0].parameters(Real())), 0);
  }
};

// Cross-entropy, its labels not smoothed (policy.cu), or no pointwise term.
struct CrossEntropyOrNone {
  static constexpr int kCount = 1;
  template <class Real, class F>
  __device__ static void for_each(const Job& job, const F& f) {
    constexpr Real none[kParameters] = {};
    if (job.plan.point_count) f(CrossEntropy<Real>(none), 0);
  }
};

struct AnyPoints {
  static constexpr int kCount = kMaxPoints, kBlocks = 2;
  static constexpr bool kBalanced = true, kMirrored = false;
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

// The factor of class c in a pointwise term of a multiclass plan.
template <class Real>
__device__ inline Real class_scale(const Job& job, int k, int64_t c) {
  const int table = job.plan.points[k].table;
  return table < 0 ? Real(1) : Real(job.constants.tables[table * job.problem.classes + c]);
}

// value[i] += v, for an i that is not known at compile time, without indexing registers.
template <int kFirst, int kCount, class Array, class Real>
__device__ inline void add_at(Array& value, int i, Real v) {
#pragma unroll
  for (int k = 0; k < kCount; ++k)
    if (i == k) value[kFirst + k] += v;
}

}  // namespace
}  // namespace segfuse
