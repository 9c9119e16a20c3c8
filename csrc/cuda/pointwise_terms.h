// The pointwise terms that kernels are compiled for. kCount: how many terms there are at most. kBlocks: how many blocks
// shall fit on a multiprocessor. kBalanced: whether the labels may balance a term. kMirrored: hard labels in half
// precision may be mirrored (sigmoid.h). Then of_label_1(f) calls f(loss), with a loss that is right for the label 1
// only, and can_mirror(job) says whether the job's terms allow it.
#pragma once

#include "../pointwise.h"
#include "job.h"

namespace segfuse {
namespace {

struct NoTerm : NoPointwise {
  static constexpr int kCount = 0, kBlocks = 3;
  static constexpr bool kBalanced = false, kMirrored = true;
  using Log = AbsoluteLog;  // not used
  __device__ static bool can_mirror(const Job&) { return true; }
  template <class Real, class F>
  __device__ static void of_label_1(const F&) {}
};

// If kBalanced_ is false, policy.cu sends no balanced term here.
template <template <class> class Loss, bool kBalanced_>
struct OneTerm : OnePointwise<Loss> {
  static constexpr int kCount = 1, kBlocks = 3;
  static constexpr bool kBalanced = kBalanced_, kMirrored = true;
  using Log = typename Loss<float>::Log;
  __device__ static bool can_mirror(const Job& job) {
    return Loss<float>(job.plan.pointwise[0].narrow).keeps_hard_labels();
  }
  template <class Real, class F>
  __device__ static void of_label_1(const F& f) {
    const Real none[kParameters] = {};
    f(Loss<Real>(none));
  }
};

// Cross-entropy, its labels not smoothed (policy.cu), or no pointwise term.
struct CrossEntropyOrNone {
  static constexpr int kCount = 1;
  template <class Real, class F>
  __device__ static void for_each(const Plan& plan, const F& f) {
    constexpr Real none[kParameters] = {};
    if (plan.pointwise_count) f(CrossEntropy<Real>(none), 0);
  }
};

// A switch per pixel. Sums indexed by k go through add_at.
struct AnyTerms {
  static constexpr int kCount = kMaxPointwise, kBlocks = 2;
  static constexpr bool kBalanced = true, kMirrored = false;
  template <class Real, class F>
  __device__ static void for_each(const Plan& plan, const F& f) {
#pragma unroll 1
    for (int k = 0; k < plan.pointwise_count; ++k)
      with_loss<Real>(plan.pointwise[k], [&](const auto& loss) { f(loss, k); });
  }
};

// The factor of class c in a pointwise term of a multiclass plan.
template <class Real>
__device__ inline Real class_scale(const Job& job, int k, int64_t c) {
  const int row = job.plan.pointwise[k].class_values;
  return row < 0 ? Real(1) : Real(job.constants.class_values[row * job.problem.classes + c]);
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
