// The head: from the sums of the rows to the loss, the terms, and the slopes that the gradient pass multiplies by.
// A few rows, in double; a region term differentiates its own expression with respect to (I, FP, FN).
//
// It is written for a team of threads: one on the CPU, a block on a GPU. A team has rank(), size(), sync(), and
// sum(n, f): f(0) + ... + f(n - 1) in an order that the team's size alone decides, called and received by all.
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

// A team of one.
struct Alone {
  HD int64_t rank() const { return 0; }
  HD int64_t size() const { return 1; }
  HD void sync() const {}
  template <class Function>
  HD double sum(int64_t n, const Function& f) const {
    double total = 0;
    for (int64_t i = 0; i < n; ++i) total += f(i);
    return total;
  }
};

// Which elements the loss has (of a reduction other than an unreduced pointwise one), and which rows make each.
struct OutputMap {
  const Plan& plan;
  Sizes sizes;
  const int64_t* classes;  // Constants::classes

  HD int64_t scored(const RegionTerm& r) const { return r.class_count ? r.class_count : sizes.classes; }
  HD int64_t scored_class(const RegionTerm& r, int64_t j) const {
    return r.class_count ? classes[r.first_class + j] : j;
  }
  // -1: not scored.
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
  // Of (n, c); a class that is not scored has slopes of 0 and may be sent anywhere.
  HD int64_t of(int64_t n, int64_t c) const {
    if (plan.reduction == Reduction::sample) return n;
    if (plan.reduction != Reduction::none || plan.region_count == 0) return 0;
    const RegionTerm& r = plan.regions[0];
    const int64_t i = r.pool_batch ? 0 : n, j = r.pool_classes ? 0 : scored_index(r, c);
    return i * pooled_classes(r) + (j < 0 ? 0 : j);
  }
  HD bool averages() const { return plan.reduction == Reduction::mean || plan.reduction == Reduction::sample; }
};

// Factors of the positive and the negative part of a pointwise term in class c, where no sum decides them.
HD void fixed_balance(const Plan& plan, const PointTerm& term, const Constants& constants, int64_t classes, int64_t c,
                      double& positive, double& negative) {
  positive = negative = 1;
  if (plan.joint || term.balance == Balance::none) return;
  const double factor = term.table < 0 ? term.balance_value : constants.tables[term.table * classes + c];
  (term.balance == Balance::negative ? negative : positive) = factor;
  if (term.balance == Balance::alpha) negative = 1 - factor;
}

HD double coefficient_of(const Plan& plan, const Constants& constants, int k) {
  return constants.coefficients ? constants.coefficients[k] : plan.terms[k].coefficient;
}

class Head {
 public:
  // workspace: workspace_size() doubles.
  HD Head(const Plan& plan, const Sizes& sizes, const Constants& constants, const double* sums, double* workspace)
      : plan_(plan),
        sizes_(sizes),
        constants_(constants),
        layout_(plan, sizes),
        outputs_{plan, sizes, constants.classes},
        sums_(sums),
        rows_(workspace),
        scales_(workspace + plan.region_count * sizes.samples * sizes.classes * kRow) {}

  HD static int64_t workspace_size(const Plan& plan, const Sizes& sizes, int64_t outputs) {
    return plan.region_count * sizes.samples * sizes.classes * kRow + plan.term_count * outputs;
  }

  // loss: one value per output, or null; terms: one such block per term; slopes: layout.units * layout.unit_slopes().
  template <class Real, class Team>
  HD void run(const Team& team, Real* loss, double* terms, Real* slopes) const {
    const int64_t n_out = outputs_.count(), begin = team.rank(), step = team.size();
    const double valid_weight = team.sum(layout_.units, [&](int64_t u) { return unit(u)[0]; });
    // Nothing valid in the whole call: loss 0 and gradient 0, whatever the smoothing.
    if (valid_weight == 0) {
      for (int64_t i = begin; i < plan_.term_count * n_out; i += step) terms[i] = 0;
      for (int64_t i = begin; loss && i < n_out; i += step) loss[i] = 0;
      for (int64_t i = begin; i < layout_.units * layout_.unit_slopes(); i += step) slopes[i] = 0;
      return;
    }
    for (int k = 0; k < plan_.region_count; ++k)
      for (int64_t i = begin; i < outputs_.rows(plan_.regions[k]); i += step) score(k, i);
    team.sync();
    for (int k = 0; k < plan_.term_count; ++k) reduce(team, k, terms + k * n_out);
    team.sync();
    for (int64_t i = begin; loss && i < n_out; i += step) {
      double total = 0;
      for (int k = 0; k < plan_.term_count; ++k) total += coefficient(k) * terms[k * n_out + i];
      loss[i] = Real(total);
    }
    for (int64_t u = begin; u < layout_.units; u += step) point_slopes(u, slopes + u * layout_.unit_slopes());
    if (layout_.region_slopes == 0) return;
    for (int64_t i = begin; i < sizes_.samples * sizes_.classes; i += step) region_slopes(i, slopes);
  }

 private:
  // A pooled row: its loss and three slopes, its weight, and the largest factor of its classes.
  static constexpr int kRow = 6;

  HD double coefficient(int k) const { return coefficient_of(plan_, constants_, k); }
  HD double table(int row, int64_t c) const { return constants_.tables[row * sizes_.classes + c]; }
  HD const double* unit(int64_t u) const { return sums_ + u * layout_.unit_sums(); }
  HD int64_t unit_of(int64_t n, int64_t c) const { return plan_.joint ? n : n * sizes_.classes + c; }
  HD double* row(int region, int64_t i) const { return rows_ + (region * sizes_.samples * sizes_.classes + i) * kRow; }
  HD double& scale(int term, int64_t out) const { return scales_[term * outputs_.count() + out]; }

  HD void balance(const PointTerm& term, int64_t u, double& positive, double& negative) const {
    if (plan_.joint || term.balance != Balance::balanced)
      return fixed_balance(plan_, term, constants_, sizes_.classes, u % sizes_.classes, positive, negative);
    const double* s = unit(u);
    positive = s[0] == 0 ? 0 : 1 - s[1 + 2 * layout_.points] / s[0];
    negative = 1 - positive;
  }

  // Σ w ℓ and the denominator of the mean, of a pointwise term in a unit. Joint plans keep both in the sums.
  HD double point_value(int index, int64_t u) const {
    const double* s = unit(u) + 1 + 2 * index;
    if (plan_.joint) return s[0];
    double positive, negative;
    balance(plan_.points[index], u, positive, negative);
    return positive * s[0] + negative * s[1];
  }
  HD double point_weight(int index, int64_t u) const {
    if (!plan_.joint) return unit(u)[0];
    return unit(u)[2 + 2 * index] * double(plan_.points[index].every_class ? sizes_.classes : 1);
  }

  // The sums of row (n, c): of `term`'s statistics, in the order of RowSums.
  HD void row_sums(const RegionTerm& term, int64_t n, int64_t c, double* sums) const {
    const double* u = unit(unit_of(n, c));
    const double* s = u + layout_.group_sums() + (plan_.joint ? c : 0) * layout_.region_sums;
    for (int i = 0; i < 3; ++i) sums[i] = s[i];
    sums[3] = s[0] + s[2];
    sums[4] = layout_.region_sums > kRegionSums ? negatives(u, n, c, sums[3], s[3]) : 0;
    switch (term.statistics) {
      case Statistics::product:
        break;
      case Statistics::squared:  // d p = d (d + t)
        sums[1] = s[4] + s[5] - s[6], sums[2] = s[6];
        break;
      case Statistics::soft_label:
        sums[0] = sums[3] - s[8], sums[1] = s[7], sums[2] = s[8];
        break;
      case Statistics::squared_error:
        sums[1] = s[5], sums[2] = s[4];
        break;
    }
  }

  // Σ w (1-t) of a row: a difference where it is the larger part, else as summed, or the positives of the other
  // classes.
  HD double negatives(const double* u, int64_t n, int64_t c, double positives, double summed) const {
    if (positives <= u[0] / 2) return u[0] - positives;
    if (!plan_.one_label) return summed;
    double total = 0;
    for (int64_t k = 0; k < sizes_.classes; ++k) {
      const double* s = unit(n) + layout_.group_sums() + k * layout_.region_sums;
      if (k != c) total += s[0] + s[2];
    }
    return total;
  }

  // Of pooled row i: its samples [first, end).
  struct Span {
    int64_t first, end;
  };
  HD Span samples_of(const RegionTerm& term, int64_t i) const {
    const int64_t n = i / outputs_.pooled_classes(term);
    return term.pool_batch ? Span{0, sizes_.samples} : Span{n, n + 1};
  }
  // The factor of class c in a pooled row, before class weights; 0 where no label decides it.
  HD double own_factor(const RegionTerm& term, const Span& span, int64_t c) const {
    if (term.factor == ClassFactor::none) return 1;
    double labelled = 0, sums[5];
    for (int64_t n = span.first; n < span.end; ++n) row_sums(term, n, c, sums), labelled += sums[3];
    if (labelled == 0) return 0;
    return term.factor == ClassFactor::square ? 1 / (labelled * labelled) : 1 / labelled;
  }
  // largest: of the own factors of the row, which stands in where no label decides.
  HD double class_factor(const RegionTerm& term, const Span& span, int64_t c, double largest) const {
    if (!term.generalized) return 1;
    const double own = own_factor(term, span, c);
    return (own == 0 ? largest : own) * (term.table < 0 ? 1 : table(term.table, c));
  }
  // The pooled row i of a region term.
  HD void score(int region, int64_t i) const {
    const RegionTerm& term = plan_.regions[region];
    const Span span = samples_of(term, i);
    const int64_t j = i % outputs_.pooled_classes(term);
    const int64_t j0 = term.pool_classes ? 0 : j, j1 = term.pool_classes ? outputs_.scored(term) : j + 1;
    double sums[5] = {0, 0, 0, 0, 0}, present = 0, largest = 0;
    for (int64_t k = j0; term.generalized && k < j1; ++k)
      largest = max(largest, own_factor(term, span, outputs_.scored_class(term, k)));
    for (int64_t k = j0; k < j1; ++k) {
      const int64_t c = outputs_.scored_class(term, k);
      const double factor = class_factor(term, span, c, largest);
      for (int64_t n = span.first; n < span.end; ++n) {
        double own[5];
        row_sums(term, n, c, own);
        present += own[3];
        for (int s = 0; s < 5; ++s) sums[s] += factor * own[s];
      }
    }
    const bool absent = present == 0 && term.absent != Absent::score;
    const Slopes3 loss = absent ? constant<double, 3>(0) : region_loss(term, sums);
    double* out = row(region, i);
    out[0] = loss.v;
    for (int s = 0; s < 3; ++s) out[1 + s] = loss.d[s];
    out[4] = absent && term.absent == Absent::skip ? 0
             : term.table < 0 || term.generalized  ? 1
                                                   : table(term.table, outputs_.scored_class(term, j));
    out[5] = largest;
  }

  // The term's values, and what its slopes are scaled by. Rows and units lie in the order of the outputs.
  template <class Team>
  HD void reduce(const Team& team, int k, double* value) const {
    const Term& term = plan_.terms[k];
    const int64_t n_out = outputs_.count();
    const int64_t count = term.is_region ? outputs_.rows(plan_.regions[term.index]) : layout_.units;
    const auto weighted = [&](int64_t i) {
      if (!term.is_region) return point_value(term.index, i);
      const double* r = row(term.index, i);
      return r[4] == 0 ? 0.0 : r[4] * r[0];
    };
    const auto weight = [&](int64_t i) { return term.is_region ? row(term.index, i)[4] : point_weight(term.index, i); };
    const auto finish = [&](int64_t out, double sum, double total) {
      const double s = !outputs_.averages() ? 1 : total == 0 ? 0 : 1 / total;
      scale(k, out) = s;
      value[out] = s == 0 ? 0 : sum * s;
    };
    if (n_out == 1) {
      const double sum = team.sum(count, weighted), total = team.sum(count, weight);
      if (team.rank() == 0) finish(0, sum, total);
      return;
    }
    for (int64_t out = team.rank(); out < n_out; out += team.size()) {
      const int64_t each = count / n_out;
      const Alone alone;
      finish(out, alone.sum(each, [&](int64_t i) { return weighted(out * each + i); }),
             alone.sum(each, [&](int64_t i) { return weight(out * each + i); }));
    }
  }

  template <class Real>
  HD void point_slopes(int64_t u, Real* slope) const {
    const int64_t n = plan_.joint ? u : u / sizes_.classes, c = plan_.joint ? 0 : u % sizes_.classes;
    for (int k = 0; k < plan_.term_count; ++k) {
      if (plan_.terms[k].is_region) continue;
      const int index = plan_.terms[k].index;
      double positive, negative;
      balance(plan_.points[index], u, positive, negative);
      const double factor = coefficient(k) * scale(k, outputs_.of(n, c));
      slope[2 * index] = Real(factor * positive);
      slope[2 * index + 1] = Real(factor * negative);
    }
  }

  // The slopes of row i = n C + c: all region terms together.
  template <class Real>
  HD void region_slopes(int64_t i, Real* slopes) const {
    const int64_t n = i / sizes_.classes, c = i % sizes_.classes;
    double slope[kRegionSlopes] = {0, 0, 0, 0, 0, 0};
    for (int k = 0; k < plan_.term_count; ++k) {
      if (!plan_.terms[k].is_region) continue;
      const int region = plan_.terms[k].index;
      const RegionTerm& term = plan_.regions[region];
      const int64_t j = outputs_.scored_index(term, c);
      if (j < 0) continue;
      const int64_t pooled = (term.pool_batch ? 0 : n) * outputs_.pooled_classes(term) + (term.pool_classes ? 0 : j);
      const double* r = row(region, pooled);
      if (r[4] == 0) continue;
      const double factor =
          coefficient(k) * r[4] * scale(k, outputs_.of(n, c)) * class_factor(term, samples_of(term, pooled), c, r[5]);
      const double tp = factor * r[1], fp = factor * r[2], fn = factor * r[3];
      switch (term.statistics) {
        case Statistics::product:
          slope[0] += tp - fn;
          slope[1] += fp;
          break;
        case Statistics::squared:  // FP = Σ p d, FN = -Σ t d, so that dFP/dp = 2 d + t
          slope[0] += tp + fp - fn;
          slope[2] += fp;
          slope[3] += fp;
          break;
        case Statistics::soft_label:
          slope[4] += tp - fn;
          slope[5] += fp;
          break;
        case Statistics::squared_error:
          slope[0] += tp;
          slope[2] += fn;
          slope[3] += fp;
          break;
      }
    }
    Real* out = slopes + unit_of(n, c) * layout_.unit_slopes() + 2 * layout_.points +
                (plan_.joint ? c : 0) * layout_.region_slopes;
    for (int s = 0; s < kRegionSlopes; ++s) out[s] = Real(slope[s]);
  }

  const Plan& plan_;
  const Sizes sizes_;
  const Constants& constants_;
  const Layout layout_;
  const OutputMap outputs_;
  const double* sums_;
  double *rows_, *scales_;
};

}  // namespace
}  // namespace segfuse
