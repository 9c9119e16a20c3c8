// The pointwise terms of a job: none, one known at compile time, or any (a switch per vector of pixels).
// for_each(job, f) calls f(loss, k), the loss constructed from its parameters.
#pragma once

#include "../losses.h"
#include "kernels.h"

namespace segfuse {
namespace {

struct NoPoints {
  template <class Real, class Function>
  static void for_each(const Job&, const Function&) {}
};

template <template <class> class Loss>
struct OnePoint {
  template <class Real, class Function>
  static void for_each(const Job& job, const Function& f) {
    f(Loss<Real>(job.point[0].parameters(Real())), 0);
  }
};

struct AnyPoints {
  template <class Real, class Function>
  static void for_each(const Job& job, const Function& f) {
    for (int k = 0; k < job.points; ++k) switch (job.point[k].kind) {
#define SEGFUSE_CASE(name, type)                       \
  case PointKind::name:                                \
    f(type<Real>(job.point[k].parameters(Real())), k); \
    break;
        SEGFUSE_POINTWISE(SEGFUSE_CASE)
#undef SEGFUSE_CASE
      }
  }
};

}  // namespace
}  // namespace segfuse
