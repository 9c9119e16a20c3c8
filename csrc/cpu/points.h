// The pointwise terms of a job: none, one known at compile time, or any (a switch per vector of pixels).
// for_each(job, f) calls f(loss, k), the loss constructed from its parameters.
#pragma once

#include <type_traits>

#include "../losses.h"
#include "kernels.h"

namespace segfuse {
namespace {

struct NoPoints {
  static constexpr bool kOfProbability = true;  // the slopes: neither a logarithm nor the logit is read
  template <class Real, class Function>
  INLINE static void for_each(const Job&, const Function&) {}
};

template <template <class> class Loss>
struct OnePoint {
  static constexpr bool kOfProbability = std::is_same_v<Loss<float>, BceWithLogits<float>>;
  template <class Real, class Function>
  INLINE static void for_each(const Job& job, const Function& f) {
    f(Loss<Real>(job.point[0].parameters(Real())), 0);
  }
};

// A loss chosen at run time. Out of line, and the same for all engines: a dozen losses inlined into each of them would
// take minutes to compile.
template <class Real>
struct AnyLoss {
  const PointTerm& term;
  template <class T, class V>
  __attribute__((noinline)) Parts<T> operator()(const Pixel<T>& x, const V& t) const {
    switch (term.kind) {
#define SEGFUSE_CASE(name, type) \
  case PointKind::name:          \
    return type<Real>(term.parameters(Real()))(x, t);
      SEGFUSE_POINTWISE(SEGFUSE_CASE)
#undef SEGFUSE_CASE
    }
    __builtin_unreachable();
  }
};

struct AnyPoints {
  static constexpr bool kOfProbability = false;
  template <class Real, class Function>
  INLINE static void for_each(const Job& job, const Function& f) {
    for (int k = 0; k < job.points; ++k) f(AnyLoss<Real>{job.point[k]}, k);
  }
};

}  // namespace
}  // namespace segfuse
