// The head: from the sums of the rows to the loss, the terms, and the slopes that the gradient pass multiplies by.
// A few rows, in double; a region term differentiates its own expression with respect to (TP, FP, FN, TN).
//
// It has two halves. `gather` leaves a short vector, which is the same for any number of samples: numerators and
// denominators of means, and the sums of rows that are pooled over the batch. `finish` goes on from there. Vectors of
// ranks that hold different samples may be added in between.
//
// It is written for a team of threads: one on the CPU, a block on a GPU. A team has rank(), size(), sync(), and
// sum(n, f): f(0) + ... + f(n - 1) in an order that the team's size alone decides, called and received by all.
#pragma once

#include "outputs.h"
#include "score.h"

namespace segfuse {
namespace {

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

class Head {
 public:
  // workspace: workspace_size() doubles, kept from `gather` to `finish`; vector: vector_size().
  HD Head(const Plan& plan, const Sizes& sizes, const Constants& constants, const double* sums, double* workspace,
          double* vector)
      : plan_(plan),
        sizes_(sizes),
        constants_(constants),
        layout_(plan, sizes),
        outputs_{plan, sizes, constants.classes},
        sums_(sums),
        rows_(workspace),
        scales_(workspace + plan.region_count * row_count(sizes) * kRow),
        vector_(vector),
        pooled_(vector + 1 + 2 * plan.term_count) {}

  HD static int64_t workspace_size(const Plan& plan, const Sizes& sizes, int64_t outputs) {
    return plan.region_count * row_count(sizes) * kRow + plan.term_count * outputs;
  }
  // Σ w; per term a numerator and a denominator; per class the sums of its rows.
  HD static int64_t vector_size(const Plan& plan, const Sizes& sizes) {
    return 1 + 2 * plan.term_count + (plan.pools_batch() ? sizes.classes * Layout(plan, sizes).region_sums : 0);
  }

  // From the sums to the vector.
  template <class Team>
  HD void gather(const Team& team) const {
    const double valid_weight = team.sum(layout_.units, [&](int64_t u) { return unit(u)[0]; });
    if (team.rank() == 0) vector_[0] = valid_weight;
    const int64_t per_class = layout_.region_sums;
    for (int64_t i = team.rank(); plan_.pools_batch() && i < sizes_.classes * per_class; i += team.size()) {
      const int64_t c = i / per_class, s = i - c * per_class;
      double total = 0;
      for (int64_t n = 0; n < sizes_.samples; ++n) total += s == kRegionSums ? true_negatives(n, c) : of_row(n, c)[s];
      pooled_[i] = total;
    }
    score_rows(team, false);
    for (int k = 0; k < plan_.term_count; ++k) {
      double numerator = 0, denominator = 0;
      if (outputs_.count() == 1 && !is_pooled(k)) add_up(team, k, numerator, denominator);
      if (team.rank() == 0) vector_[1 + 2 * k] = numerator, vector_[2 + 2 * k] = denominator;
    }
    team.sync();
  }

  // loss: one value per output, or null; terms: one such block per term; slopes: layout.units * layout.unit_slopes().
  template <class Real, class Team>
  HD void finish(const Team& team, Real* loss, double* terms, Real* slopes) const {
    const int64_t n_out = outputs_.count(), begin = team.rank(), step = team.size();
    score_rows(team, true);
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
  static constexpr int kRowSums = 6;  // those of RowSums
  // A scored row: its loss and the slopes, its weight, and the largest factor of its classes.
  static constexpr int kRowWeight = 1 + kRowSlopes, kLargest = kRowWeight + 1, kRow = kLargest + 1;
  // Rows pooled over the batch are there without a sample, too.
  HD static int64_t row_count(const Sizes& sizes) { return (sizes.samples ? sizes.samples : 1) * sizes.classes; }

  HD double coefficient(int k) const { return coefficient_of(plan_, constants_, k); }
  HD double table(int row, int64_t c) const { return constants_.tables[row * sizes_.classes + c]; }
  HD const double* unit(int64_t u) const { return sums_ + u * layout_.unit_sums(); }
  HD int64_t unit_of(int64_t n, int64_t c) const { return plan_.joint ? n : n * sizes_.classes + c; }
  // The region sums of row (n, c).
  HD const double* of_row(int64_t n, int64_t c) const {
    return unit(unit_of(n, c)) + layout_.group_sums() + (plan_.joint ? c : 0) * layout_.region_sums;
  }
  HD double* row(int region, int64_t i) const { return rows_ + (region * row_count(sizes_) + i) * kRow; }
  HD double& scale(int term, int64_t out) const { return scales_[term * outputs_.count() + out]; }
  HD bool is_pooled(int k) const { return plan_.terms[k].is_region && plan_.regions[plan_.terms[k].index].pool_batch; }

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

  // The sums of row (n, c), or with n < 0 of class c pooled over the batch, of `term`'s statistics, in the order of
  // RowSums.
  HD void row_sums(const RegionTerm& term, int64_t n, int64_t c, double* sums) const {
    const bool has_negatives = layout_.region_sums > kRegionSums;
    const double* s = n < 0 ? pooled_ + c * layout_.region_sums : of_row(n, c);
    for (int i = 0; i < 3; ++i) sums[i] = s[i];
    sums[3] = !has_negatives ? 0 : n < 0 ? s[kRegionSums] : true_negatives(n, c);
    sums[4] = sums[0] + sums[2];
    sums[5] = sums[1] + sums[3];
    switch (term.statistics) {
      case Statistics::product:
        break;
      case Statistics::squared:  // d p = d (d + t)
        sums[1] = s[4] + s[5] - s[6], sums[2] = s[6];
        break;
      case Statistics::soft_label:
        sums[0] = s[9], sums[1] = s[7], sums[2] = s[8];
        break;
      case Statistics::squared_error:
        sums[0] = s[10], sums[1] = s[5], sums[2] = s[4], sums[3] = s[11];
        break;
    }
  }

  // Σ w (1-t) q of row (n, c). Of a label map without a sum of its own it is what FP leaves of the labels of the other
  // classes.
  HD double true_negatives(int64_t n, int64_t c) const {
    const double* s = of_row(n, c);
    if (!plan_.one_label || layout_.region_sums == kExtraSums || plan_.magnifies_negatives()) return s[kRegionSums];
    const double all = unit(unit_of(n, c))[0], positives = s[0] + s[2];
    if (positives <= all / 2) return all - positives - s[1];
    double total = 0;
    for (int64_t k = 0; k < sizes_.classes; ++k)
      if (k != c) total += of_row(n, k)[0] + of_row(n, k)[2];
    return total - s[1];
  }

  // The factor of class c in a row of sample n (n < 0: pooled), before class weights; 0 where no label decides it.
  HD double own_factor(const RegionTerm& term, int64_t n, int64_t c) const {
    if (term.factor == ClassFactor::none) return 1;
    double sums[kRowSums];
    row_sums(term, n, c, sums);
    const double positives = sums[4];
    if (positives == 0) return 0;
    return term.factor == ClassFactor::square ? 1 / (positives * positives) : 1 / positives;
  }
  // largest: of the own factors of the row, which stands in where no label decides.
  HD double class_factor(const RegionTerm& term, int64_t n, int64_t c, double largest) const {
    if (!term.generalized) return 1;
    const double own = own_factor(term, n, c);
    return (own == 0 ? largest : own) * (term.table < 0 ? 1 : table(term.table, c));
  }

  template <class Team>
  HD void score_rows(const Team& team, bool pooled) const {
    for (int k = 0; k < plan_.region_count; ++k)
      if (plan_.regions[k].pool_batch == pooled)
        for (int64_t i = team.rank(); i < outputs_.rows(plan_.regions[k]); i += team.size()) score(k, i);
    team.sync();
  }

  // Row i of a region term.
  HD void score(int region, int64_t i) const {
    const RegionTerm& term = plan_.regions[region];
    const int64_t per_sample = outputs_.pooled_classes(term), j = i % per_sample;
    const int64_t n = term.pool_batch ? -1 : i / per_sample;
    const int64_t j0 = term.pool_classes ? 0 : j, j1 = term.pool_classes ? outputs_.scored(term) : j + 1;
    double sums[kRowSums] = {}, present = 0, largest = 0;
    for (int64_t k = j0; term.generalized && k < j1; ++k)
      largest = max(largest, own_factor(term, n, outputs_.scored_class(term, k)));
    for (int64_t k = j0; k < j1; ++k) {
      const int64_t c = outputs_.scored_class(term, k);
      const double factor = class_factor(term, n, c, largest);
      double own[kRowSums];
      row_sums(term, n, c, own);
      present += own[4];
      for (int s = 0; s < kRowSums; ++s) sums[s] += factor * own[s];
    }
    const bool absent = present == 0 && term.absent != Absent::score;
    const RowDual loss = absent ? constant<double, kRowSlopes>(0) : region_loss(term, sums);
    double* out = row(region, i);
    out[0] = loss.v;
    for (int s = 0; s < kRowSlopes; ++s) out[1 + s] = loss.d[s];
    out[kRowWeight] = absent && term.absent == Absent::skip ? 0
                      : term.table < 0 || term.generalized  ? 1
                                                            : table(term.table, outputs_.scored_class(term, j));
    out[kLargest] = largest;
  }

  // Of row or unit i of a term: what it adds to a mean, and its weight there.
  HD double weighted(const Term& term, int64_t i) const {
    if (!term.is_region) return point_value(term.index, i);
    const double* r = row(term.index, i);
    return r[kRowWeight] == 0 ? 0.0 : r[kRowWeight] * r[0];
  }
  HD double weight_of(const Term& term, int64_t i) const {
    return term.is_region ? row(term.index, i)[kRowWeight] : point_weight(term.index, i);
  }
  HD int64_t count_of(const Term& term) const {
    return term.is_region ? outputs_.rows(plan_.regions[term.index]) : layout_.units;
  }
  template <class Team>
  HD void add_up(const Team& team, int k, double& numerator, double& denominator) const {
    const Term& term = plan_.terms[k];
    numerator = team.sum(count_of(term), [&](int64_t i) { return weighted(term, i); });
    denominator = team.sum(count_of(term), [&](int64_t i) { return weight_of(term, i); });
  }

  // The term's values, and what its slopes are scaled by. Rows and units lie in the order of the outputs.
  template <class Team>
  HD void reduce(const Team& team, int k, double* value) const {
    const Term& term = plan_.terms[k];
    const int64_t n_out = outputs_.count();
    if (n_out == 0) return;  // a rank without samples
    // Nothing valid in the whole call: a region loss is 0 and so is its gradient, whatever the smoothing.
    const bool nothing = term.is_region && vector_[0] == 0;
    const auto finish = [&](int64_t out, double sum, double total) {
      // Of an infinite total the term in brackets makes NaN: 1 / total would make it a loss and a gradient of 0.
      const double s = nothing ? 0 : !outputs_.averages() ? 1 : total == 0 ? 0 : 1 / total + (total - total);
      scale(k, out) = s;
      value[out] = s == 0 ? 0 : sum * s;
    };
    if (n_out == 1) {
      double sum = vector_[1 + 2 * k], total = vector_[2 + 2 * k];
      if (is_pooled(k)) add_up(team, k, sum, total);
      if (team.rank() == 0) finish(0, sum, total);
      return;
    }
    const int64_t each = count_of(term) / n_out;
    for (int64_t out = team.rank(); out < n_out; out += team.size()) {
      const Alone alone;
      finish(out, alone.sum(each, [&](int64_t i) { return weighted(term, out * each + i); }),
             alone.sum(each, [&](int64_t i) { return weight_of(term, out * each + i); }));
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
      const double weight = r[kRowWeight], reduced = scale(k, outputs_.of(n, c));
      if (weight == 0 || reduced == 0) continue;
      const double factor =
          coefficient(k) * weight * reduced * class_factor(term, term.pool_batch ? -1 : n, c, r[kLargest]);
      const double tp = factor * r[1], fp = factor * r[2], fn = factor * r[3], tn = factor * r[4];
      switch (term.statistics) {
        case Statistics::product:
          slope[0] += tp - fn;
          slope[1] += fp - tn;
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
          slope[2] += fn - tp;
          slope[3] += fp - tn;
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
  double *rows_, *scales_, *vector_, *pooled_;
};

}  // namespace
}  // namespace segfuse
