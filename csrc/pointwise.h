// The pointwise terms of a plan: none, or one that is known at compile time. for_each(plan, f) calls f(loss, k) for
// each term k, with the loss made from its parameters. Any terms: cpu/any_pointwise.h, cuda/pointwise_terms.h.
#pragma once

#include "problem.h"

namespace segfuse {
namespace {

struct NoPointwise {
  template <class Real, class F>
  HD static void for_each(const Plan&, const F&) {}
};

template <template <class> class Loss>
struct OnePointwise {
  template <class Real, class F>
  HD static void for_each(const Plan& plan, const F& f) {
    f(Loss<Real>(plan.pointwise[0].parameters(Real())), 0);
  }
};

// f(loss), with the loss that a term names at run time.
template <class Real, class F>
HD auto with_loss(const PointwiseTerm& term, const F& f) {
  switch (term.kind) {
#define SEGFUSE_CASE(name, type) \
  case PointwiseKind::name:      \
    return f(type<Real>(term.parameters(Real())));
    SEGFUSE_POINTWISE(SEGFUSE_CASE)
#undef SEGFUSE_CASE
  }
  __builtin_unreachable();
}

}  // namespace
}  // namespace segfuse
