// The pointwise terms of a job: none, one known at compile time, or any (a switch per pixel). for_each(job, f) calls
// f(loss, index) with an index that is a constant after unrolling.
#pragma once

#include "job.h"

namespace segfuse {
namespace {

struct NoPoints {
  static constexpr int kCount = 0;
  template <class Real, class Function>
  __device__ static void for_each(const Job&, const Function&) {}
};

template <template <class> class Loss>
struct OnePoint {
  static constexpr int kCount = 1;
  template <class Real, class Function>
  __device__ static void for_each(const Job& job, const Function& f) {
    f(Loss<Real>(job.plan.points[0].parameter), 0);
  }
};

struct AnyPoints {
  static constexpr int kCount = kMaxPoints;
  template <class Real, class Function>
  __device__ static void for_each(const Job& job, const Function& f) {
#pragma unroll
    for (int k = 0; k < kMaxPoints; ++k) {
      if (k >= job.plan.point_count) break;
      switch (job.plan.points[k].kind) {
#define SEGFUSE_CASE(name, type)                      \
  case PointKind::name:                               \
    f(type<Real>(job.plan.points[k].parameter), k);   \
    break;
        SEGFUSE_POINTWISE(SEGFUSE_CASE)
#undef SEGFUSE_CASE
      }
    }
  }
};

}  // namespace
}  // namespace segfuse
