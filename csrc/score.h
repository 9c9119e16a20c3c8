// The loss of one row and its slopes in TP, FP, FN and TN, from its sums: the region loss of a term, its shape, and the
// adaptive logarithm around them. Dual numbers differentiate this very expression, in double.
#pragma once

#include "dual.h"
#include "losses.h"
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

constexpr int kRowSlopes = 4;
using RowDual = Dual<double, kRowSlopes>;

// 1 - score (`loss`) and score (`value`), each without cancellation, with slopes. A score of 0/0 is 1: there was
// nothing to find, and nothing was found.
HD void divide(Score<RowDual> score, double eps, RowDual& loss, RowDual& value) {
  loss = constant<double, kRowSlopes>(0), value = constant<double, kRowSlopes>(1);
  if (score.denominator.v < eps) {
    score.denominator = constant<double, kRowSlopes>(eps);
    score.difference = score.denominator - score.numerator;
  }
  if (score.denominator.v == 0 && score.numerator.v == 0) return;
  loss = score.difference / score.denominator;
  value = score.numerator / score.denominator;
  for (int i = 0; i < kRowSlopes; ++i) {
    if (loss.v < 0.5)
      value.d[i] = -loss.d[i];
    else
      loss.d[i] = -value.d[i];
  }
}

// The loss of one pooled row and its slopes, in the order of RegionSum.
HD RowDual region_loss(const RegionTerm& term, const RowSums<double>& sums) {
  const RegionParameters parameters{term.smooth_numerator, term.smooth_denominator, term.alpha, term.beta};
  const auto seed = [](double value, int slope) {
    RowDual s = constant<double, kRowSlopes>(value);
    s.d[slope] = 1;
    return s;
  };
  const RowSums<RowDual> s{seed(sums.tp, kTp), seed(sums.fp, kFp), seed(sums.fn, kFn),
                           seed(sums.tn, kTn), sums.positives,     sums.negatives};
  RowDual loss = constant<double, kRowSlopes>(0), value = constant<double, kRowSlopes>(0);
  with_region(term.kind, [&](auto region) {
    for (int k = 0; k < region.kScores; ++k) {
      RowDual one_minus_score, score;
      divide(region.score(k, s, parameters), term.eps, one_minus_score, score);
      loss = loss + region.share(k, parameters) * one_minus_score;
      value = value + region.share(k, parameters) * score;
    }
  });
  with_shape(term.shape, [&](auto shape) { loss = shape.shape(loss, value, term.shape_parameter); });
  return term.adaptive ? adaptive_log(loss, term.omega, term.threshold, term.epsilon) : loss;
}

}  // namespace
}  // namespace segfuse
