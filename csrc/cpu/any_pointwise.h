// Any pointwise terms, chosen at run time: a switch per vector of pixels.
#pragma once

#include "../pointwise.h"

namespace segfuse {
namespace {

// A loss chosen at run time. It is not inlined, and all engines share it: a dozen losses inlined into each engine would
// take minutes to compile.
template <class Real>
struct AnyLoss {
  const PointwiseTerm& term;
  template <class T, class V>
  __attribute__((noinline)) Parts<T> operator()(const Pixel<T>& x, const V& t) const {
    return with_loss<Real>(term, [&](const auto& loss) INLINE_LAMBDA { return loss(x, t); });
  }
};

struct AnyPointwise {
  template <class Real, class F>
  INLINE static void for_each(const Plan& plan, const F& f) {
    for (int k = 0; k < plan.pointwise_count; ++k) f(AnyLoss<Real>{plan.pointwise[k]}, k);
  }
};

}  // namespace
}  // namespace segfuse
