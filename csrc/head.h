// The head: from the sums of the rows to the loss, the terms, and the slopes that the gradient pass multiplies by.
// A few rows, in double; a region term differentiates its own expression with respect to (I, FP, FN).
#pragma once

#include <vector>

#include "losses.h"
#include "math.h"
#include "problem.h"

namespace segfuse {
namespace {

// dispatch.h's way for the head: one region expression, run on dual numbers.
template <class Function>
void with_region(RegionKind kind, const Function& f) {
  switch (kind) {
#define SEGFUSE_CASE(name, type) \
  case RegionKind::name:         \
    return f(type{});
    SEGFUSE_REGION(SEGFUSE_CASE)
#undef SEGFUSE_CASE
  }
}
template <class Function>
void with_shape(ShapeKind kind, const Function& f) {
  switch (kind) {
#define SEGFUSE_CASE(name, type) \
  case ShapeKind::name:          \
    return f(type{});
    SEGFUSE_SHAPE(SEGFUSE_CASE)
#undef SEGFUSE_CASE
  }
}

using Slopes3 = Dual<double, 3>;

// The loss of one pooled row and its slopes.
inline Slopes3 region_loss(const RegionTerm& term, const double* sums) {
  const RegionParameters parameters{term.smooth_numerator, term.smooth_denominator, term.alpha, term.beta};
  RowSums<Slopes3> s;
  Slopes3* slot[3] = {&s.tp, &s.fp, &s.fn};
  for (int i = 0; i < 3; ++i) {
    *slot[i] = constant<double, 3>(sums[i]);
    slot[i]->d[i] = 1;
  }
  Slopes3 loss = constant<double, 3>(0), value = constant<double, 3>(1);  // 0/0: nothing to find and nothing found
  with_region(term.kind, [&](auto region) {
    Score<Slopes3> score = region.score(s, parameters);
    if (score.denominator.v < term.eps) {
      score.denominator = constant<double, 3>(term.eps);
      score.difference = score.denominator - score.numerator;
    }
    if (score.denominator.v == 0 && score.numerator.v == 0) return;
    loss = score.difference / score.denominator;
    value = score.numerator / score.denominator;
    // The slopes of both are the same but for the sign; those of the smaller one keep their digits.
    for (int i = 0; i < 3; ++i) {
      if (loss.v < 0.5)
        value.d[i] = -loss.d[i];
      else
        loss.d[i] = -value.d[i];
    }
  });
  with_shape(term.shape, [&](auto shape) { loss = shape.shape(loss, value, term.shape_parameter); });
  return loss;
}

class Head {
 public:
  // Without sums it only tells which output a row belongs to.
  Head(const Plan& plan, const Problem& problem, const double* sums = nullptr, const double* tables = nullptr)
      : plan_(plan), problem_(problem), layout_(plan, problem), sums_(sums), tables_(tables), valid_weight_(0) {
    if (!sums) return;
    for (int64_t u = 0; u < layout_.units; ++u) valid_weight_ += unit(u)[0];
  }

  // Number of elements of the loss (of a reduction other than an unreduced pointwise one).
  int64_t outputs() const {
    if (plan_.reduction == Reduction::sample) return problem_.samples;
    if (plan_.reduction != Reduction::none || plan_.regions.empty()) return 1;
    const RegionTerm& r = plan_.regions[0];
    return (r.pool_batch ? 1 : problem_.samples) * (r.pool_classes ? 1 : scored(r));
  }

  // Which of them the row (n, c) contributes to.
  int64_t output_of(int64_t n, int64_t c) const {
    if (plan_.reduction == Reduction::sample) return n;
    if (plan_.reduction != Reduction::none || plan_.regions.empty()) return 0;
    const RegionTerm& r = plan_.regions[0];
    const int64_t row = r.pool_batch ? 0 : n;
    return r.pool_classes ? row : row * scored(r) + scored_index(r, c);
  }

  // loss: outputs() values; terms: one such block per term; slopes: layout.units * layout.unit_slopes().
  // coefficients: one per term.
  template <class Real>
  void run(const double* coefficients, double* loss, double* terms, Real* slopes) {
    const int64_t n_out = outputs(), n_slopes = layout_.units * layout_.unit_slopes();
    slopes_.assign(size_t(n_slopes), 0.0);
    for (int64_t i = 0; i < n_out; ++i) loss[i] = 0;
    for (size_t k = 0; k < plan_.terms.size(); ++k) {
      const Term& term = plan_.terms[k];
      double* value = terms + int64_t(k) * n_out;
      for (int64_t i = 0; i < n_out; ++i) value[i] = 0;
      // Nothing valid in the whole call: loss 0 and gradient 0, whatever the smoothing.
      if (valid_weight_ == 0) continue;
      if (term.is_region)
        region(plan_.regions[size_t(term.index)], coefficients[k], value);
      else
        point(term.index, coefficients[k], value);
      for (int64_t i = 0; i < n_out; ++i) loss[i] += coefficients[k] * value[i];
    }
    for (int64_t i = 0; i < n_slopes; ++i) slopes[i] = Real(slopes_[size_t(i)]);
  }

 private:
  const double* unit(int64_t u) const { return sums_ + u * layout_.unit_sums(); }
  const double* region_row(int64_t n, int64_t c) const {
    const int64_t u = plan_.joint ? n : n * problem_.classes + c;
    return unit(u) + layout_.group_sums() + (plan_.joint ? c : 0) * layout_.region_sums;
  }
  double* region_slopes(int64_t n, int64_t c) {
    const int64_t u = plan_.joint ? n : n * problem_.classes + c;
    return slopes_.data() + u * layout_.unit_slopes() + 2 * layout_.points +
           (plan_.joint ? c : 0) * layout_.region_slopes;
  }
  int64_t scored(const RegionTerm& r) const { return r.classes.empty() ? problem_.classes : int64_t(r.classes.size()); }
  int64_t scored_class(const RegionTerm& r, int64_t i) const { return r.classes.empty() ? i : r.classes[size_t(i)]; }
  int64_t scored_index(const RegionTerm& r, int64_t c) const {
    if (r.classes.empty()) return c;
    for (size_t i = 0; i < r.classes.size(); ++i)
      if (r.classes[i] == c) return int64_t(i);
    return 0;  // a class that is not scored has slopes of 0
  }
  double table(int row, int64_t c) const { return tables_[row * problem_.classes + c]; }

  // Factors of the positive and the negative part in unit u.
  void balance(const PointTerm& term, int64_t u, double& positive, double& negative) const {
    positive = negative = 1;
    if (plan_.joint || term.balance == Balance::none) return;
    if (term.balance == Balance::balanced) {
      const double* s = unit(u);
      positive = s[0] == 0 ? 0 : 1 - s[1 + 2 * layout_.points] / s[0];
      negative = 1 - positive;
      return;
    }
    positive = term.table < 0 ? term.balance_value : table(term.table, u % problem_.classes);
    if (term.balance == Balance::alpha) negative = 1 - positive;
  }

  void point(int index, double coefficient, double* value) {
    const PointTerm& term = plan_.points[size_t(index)];
    const int64_t per_sample = plan_.joint ? 1 : problem_.classes;
    std::vector<double> total(size_t(outputs()), 0.0);
    for (int64_t u = 0; u < layout_.units; ++u) {
      double positive, negative;
      balance(term, u, positive, negative);
      const double* s = unit(u) + 1 + 2 * index;
      const int64_t out = output_of(u / per_sample, u % per_sample);
      // Joint plans keep Σ loss and the denominator there.
      if (plan_.joint) {
        value[out] += s[0];
        total[size_t(out)] += s[1];
      } else {
        value[out] += positive * s[0] + negative * s[1];
        total[size_t(out)] += unit(u)[0];
      }
    }
    const bool averages = plan_.reduction == Reduction::mean || plan_.reduction == Reduction::sample;
    for (size_t i = 0; i < total.size(); ++i) {
      total[i] = averages ? (total[i] == 0 ? 0 : 1 / total[i]) : 1;
      value[i] = total[i] == 0 ? 0 : value[i] * total[i];
    }
    for (int64_t u = 0; u < layout_.units; ++u) {
      double positive, negative;
      balance(term, u, positive, negative);
      const double factor = coefficient * total[size_t(output_of(u / per_sample, u % per_sample))];
      double* slope = slopes_.data() + u * layout_.unit_slopes() + 2 * index;
      slope[0] += factor * positive;
      slope[1] += factor * negative;
    }
  }

  void region(const RegionTerm& term, double coefficient, double* value) {
    const int64_t samples = problem_.samples, classes = scored(term);
    const int64_t row_samples = term.pool_batch ? 1 : samples, row_classes = term.pool_classes ? 1 : classes;
    const int64_t n_out = outputs();
    struct Row {
      Slopes3 loss;
      double weight;
    };
    std::vector<Row> rows(size_t(row_samples * row_classes));
    std::vector<double> total(size_t(n_out), 0.0);
    for (int64_t i = 0; i < row_samples; ++i)
      for (int64_t j = 0; j < row_classes; ++j) {
        double sums[3] = {0, 0, 0}, present = 0;
        members(term, i, j, [&](int64_t n, int64_t c) {
          double own[3];
          row_sums(term, region_row(n, c), own, present);
          for (int s = 0; s < 3; ++s) sums[s] += own[s];
        });
        Row& row = rows[size_t(i * row_classes + j)];
        row.weight = term.table < 0 ? 1 : table(term.table, scored_class(term, j));
        const bool absent = present == 0 && term.absent != Absent::score;
        row.loss = absent ? constant<double, 3>(0) : region_loss(term, sums);
        if (absent && term.absent == Absent::skip) row.weight = 0;
        const int64_t out = output_of(i, scored_class(term, j));
        if (row.weight != 0) value[out] += row.weight * row.loss.v;
        total[size_t(out)] += row.weight;
      }
    const bool averages = plan_.reduction == Reduction::mean || plan_.reduction == Reduction::sample;
    for (int64_t i = 0; i < n_out; ++i) {
      double& scale = total[size_t(i)];
      scale = averages ? (scale == 0 ? 0 : 1 / scale) : 1;
      value[i] = scale == 0 ? 0 : value[i] * scale;
    }
    if (layout_.region_slopes == 0) return;
    for (int64_t i = 0; i < row_samples; ++i)
      for (int64_t j = 0; j < row_classes; ++j) {
        const Row& row = rows[size_t(i * row_classes + j)];
        if (row.weight == 0) continue;
        const double factor = coefficient * row.weight * total[size_t(output_of(i, scored_class(term, j)))];
        const double tp = factor * row.loss.d[0], fp = factor * row.loss.d[1], fn = factor * row.loss.d[2];
        members(term, i, j, [&](int64_t n, int64_t c) {
          double* slope = region_slopes(n, c);
          switch (term.statistics) {
            case Statistics::product:
              slope[0] += tp - fn;
              slope[1] += fp;
              break;
            case Statistics::squared:  // FP = Σ p d, FN = -Σ t d, so that dFP/dp = 2 d + t
              slope[0] += tp + fp - fn;
              slope[2] += fp;
              break;
            case Statistics::soft_label:
              slope[3] += tp - fn;
              slope[4] += fp;
              break;
          }
        });
      }
  }

  template <class Function>
  void members(const RegionTerm& term, int64_t i, int64_t j, const Function& f) const {
    const int64_t n0 = term.pool_batch ? 0 : i, n1 = term.pool_batch ? problem_.samples : i + 1;
    const int64_t j0 = term.pool_classes ? 0 : j, j1 = term.pool_classes ? scored(term) : j + 1;
    for (int64_t n = n0; n < n1; ++n)
      for (int64_t k = j0; k < j1; ++k) f(n, scored_class(term, k));
  }

  // (I, FP, FN) as the term counts them, and the mass of the label.
  static void row_sums(const RegionTerm& term, const double* s, double* own, double& present) {
    present += s[0] + s[2];
    own[0] = s[0];
    own[1] = s[1];
    own[2] = s[2];
    if (term.statistics == Statistics::squared) {
      own[1] = s[3] - s[4];
      own[2] = s[4];
    } else if (term.statistics == Statistics::soft_label) {
      own[0] = s[0] + s[2] - s[6];
      own[1] = s[5];
      own[2] = s[6];
    }
  }

  const Plan& plan_;
  const Problem& problem_;
  Layout layout_;
  const double* sums_;
  const double* tables_;
  double valid_weight_;
  std::vector<double> slopes_;
};

}  // namespace
}  // namespace segfuse
