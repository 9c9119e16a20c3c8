// Which elements the loss has, which rows make each of them, and the factors that a call passes.
#pragma once

#include "problem.h"

namespace segfuse {
namespace {

// Which elements the loss has, and which rows make each of them. Not for an unreduced pointwise loss.
struct OutputMap {
  const Plan& plan;
  Sizes sizes;
  const int64_t* classes;  // Constants::classes

  HD int64_t scored(const RegionTerm& r) const { return r.class_count ? r.class_count : sizes.classes; }
  HD int64_t scored_class(const RegionTerm& r, int64_t j) const {
    return r.class_count ? classes[r.first_class + j] : j;
  }
  // -1 if the class is not scored.
  HD int64_t scored_index(const RegionTerm& r, int64_t c) const {
    if (!r.class_count) return c;
    for (int j = 0; j < r.class_count; ++j)
      if (classes[r.first_class + j] == c) return j;
    return -1;
  }
  HD int64_t pooled_samples(const RegionTerm& r) const { return r.pool_batch ? 1 : sizes.samples; }
  HD int64_t pooled_classes(const RegionTerm& r) const { return r.pool_classes ? 1 : scored(r); }
  HD int64_t rows(const RegionTerm& r) const { return pooled_samples(r) * pooled_classes(r); }

  HD int64_t count() const {
    if (plan.reduction == Reduction::sample) return sizes.samples;
    return plan.reduction != Reduction::none || plan.region_count == 0 ? 1 : rows(plan.regions[0]);
  }
  // The output of row (n, c). A class that is not scored has slopes of 0, so any output will do.
  HD int64_t of(int64_t n, int64_t c) const {
    if (plan.reduction == Reduction::sample) return n;
    if (plan.reduction != Reduction::none || plan.region_count == 0) return 0;
    const RegionTerm& r = plan.regions[0];
    const int64_t i = r.pool_batch ? 0 : n, j = r.pool_classes ? 0 : scored_index(r, c);
    return i * pooled_classes(r) + (j < 0 ? 0 : j);
  }
  HD bool averages() const { return plan.reduction == Reduction::mean || plan.reduction == Reduction::sample; }
};

// Factors of the positive and the negative part of a pointwise term in class c, if they do not depend on sums.
HD void fixed_balance(const Plan& plan, const PointwiseTerm& term, const Constants& constants, int64_t classes,
                      int64_t c, double& positive, double& negative) {
  positive = negative = 1;
  if (plan.multiclass || term.balance == Balance::none) return;
  const double factor =
      term.class_values < 0 ? term.balance_value : constants.class_values[term.class_values * classes + c];
  (term.balance == Balance::negative ? negative : positive) = factor;
  if (term.balance == Balance::alpha) negative = 1 - factor;
}

HD double coefficient_of(const Plan& plan, const Constants& constants, int k) {
  return constants.coefficients ? constants.coefficients[k] : plan.terms[k].coefficient;
}

}  // namespace
}  // namespace segfuse
