// The rows of a region loss: their sums, of a sample or pooled over the batch, and their scores; what rows and units
// add to a mean. In double.
#pragma once

#include "outputs.h"
#include "score.h"

namespace segfuse {
namespace {

class RowScores {
 public:
  // A scored row: its loss and the slopes, its weight, and the largest factor of its classes.
  static constexpr int kRowWeight = 1 + kRowSlopes, kLargest = kRowWeight + 1, kRow = kLargest + 1;
  // Rows pooled over the batch are there without a sample, too.
  HD static int64_t row_count(const Sizes& sizes) { return (sizes.samples ? sizes.samples : 1) * sizes.classes; }

  // sums: of the units; rows: region_count * row_count * kRow doubles; pooled: per class the region sums over the
  // batch.
  HD RowScores(const Plan& plan, const Sizes& sizes, const Constants& constants, const double* sums, double* rows,
               double* pooled)
      : plan_(plan),
        sizes_(sizes),
        constants_(constants),
        layout_(plan, sizes),
        outputs_{plan, sizes, constants.classes},
        sums_(sums),
        rows_(rows),
        pooled_(pooled) {}

 protected:
  static constexpr int kRowSums = 6;  // those of RowSums

  HD double coefficient(int k) const { return coefficient_of(plan_, constants_, k); }
  HD double table(int row, int64_t c) const { return constants_.tables[row * sizes_.classes + c]; }
  HD const double* unit(int64_t u) const { return sums_ + u * layout_.unit_sums(); }
  HD int64_t unit_of(int64_t n, int64_t c) const { return plan_.joint ? n : n * sizes_.classes + c; }
  // The region sums of row (n, c).
  HD const double* of_row(int64_t n, int64_t c) const {
    return unit(unit_of(n, c)) + layout_.group_sums() + (plan_.joint ? c : 0) * layout_.region_sums;
  }
  HD double* row(int region, int64_t i) const { return rows_ + (region * row_count(sizes_) + i) * kRow; }
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

  // Row i of a region term.
  HD void score_row(int region, int64_t i) const {
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

  const Plan& plan_;
  const Sizes sizes_;
  const Constants& constants_;
  const Layout layout_;
  const OutputMap outputs_;
  const double* sums_;
  double *rows_, *pooled_;
};

}  // namespace
}  // namespace segfuse
