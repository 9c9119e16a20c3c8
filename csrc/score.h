// The loss of one row from its sums, and its slopes in I, FP and FN: the region loss named by a term, its shape, and
// what stands around them. The expression is differentiated itself, in double.
#pragma once

#include "losses.h"
#include "math.h"
#include "problem.h"

namespace segfuse {
namespace {

template <class Function>
HD void with_region(RegionKind kind, const Function& f) {
  switch (kind) {
#define SEGFUSE_CASE(name, type) \
  case RegionKind::name:         \
    return f(type{});
    SEGFUSE_REGION(SEGFUSE_CASE)
#undef SEGFUSE_CASE
  }
}
template <class Function>
HD void with_shape(ShapeKind kind, const Function& f) {
  switch (kind) {
#define SEGFUSE_CASE(name, type) \
  case ShapeKind::name:          \
    return f(type{});
    SEGFUSE_SHAPE(SEGFUSE_CASE)
#undef SEGFUSE_CASE
  }
}

using Slopes3 = Dual<double, 3>;

// numerator / denominator and what it lacks of 1, both with the digits of the smaller one's slopes. 0/0 is 1: nothing
// to find, and nothing found.
HD void divide(Score<Slopes3> score, double eps, Slopes3& loss, Slopes3& value) {
  loss = constant<double, 3>(0), value = constant<double, 3>(1);
  if (score.denominator.v < eps) {
    score.denominator = constant<double, 3>(eps);
    score.difference = score.denominator - score.numerator;
  }
  if (score.denominator.v == 0 && score.numerator.v == 0) return;
  loss = score.difference / score.denominator;
  value = score.numerator / score.denominator;
  for (int i = 0; i < 3; ++i) {
    if (loss.v < 0.5)
      value.d[i] = -loss.d[i];
    else
      loss.d[i] = -value.d[i];
  }
}

// The loss of one pooled row and its slopes. sums: those of RowSums.
HD Slopes3 region_loss(const RegionTerm& term, const double* sums) {
  const RegionParameters parameters{term.smooth_numerator, term.smooth_denominator, term.alpha, term.beta};
  const auto seed = [&](int i) {
    Slopes3 s = constant<double, 3>(sums[i]);
    s.d[i] = 1;
    return s;
  };
  const RowSums<Slopes3> s{seed(0), seed(1), seed(2), sums[3], sums[4]};
  Slopes3 loss = constant<double, 3>(0), value = constant<double, 3>(0);
  with_region(term.kind, [&](auto region) {
    for (int k = 0; k < region.kScores; ++k) {
      Slopes3 own, own_value;
      divide(region.score(k, s, parameters), term.eps, own, own_value);
      loss = loss + region.share(k, parameters) * own;
      value = value + region.share(k, parameters) * own_value;
    }
  });
  with_shape(term.shape, [&](auto shape) { loss = shape.shape(loss, value, term.shape_parameter); });
  return term.adaptive ? adaptive_log(loss, term.omega, term.threshold, term.epsilon) : loss;
}

}  // namespace
}  // namespace segfuse
