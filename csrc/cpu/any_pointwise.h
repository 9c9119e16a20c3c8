// Any pointwise terms: a switch per vector of pixels.
#pragma once

#include "../pointwise.h"

namespace segfuse {
namespace {

// A loss chosen at run time. Out of line, and the same for all engines: a dozen losses inlined into each of them would
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
