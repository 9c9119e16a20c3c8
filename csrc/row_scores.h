// The rows of a region loss: their sums, of a sample or pooled over the batch, and their scores. Also what rows and
// domains add to a mean. All in double.
#pragma once

#include "outputs.h"
#include "score.h"

namespace segfuse {
namespace {

// The score of a row.
struct ScoredRow {
  double loss, slope[kRowSlopes];  // slope: in TP, FP, FN and TN
  double weight, largest_factor;   // weight in a mean; largest label_factor of its classes
};

class RowScores {
 public:
  static constexpr int64_t kRow = int64_t(sizeof(ScoredRow) / sizeof(double));
  // Rows that are pooled over the batch exist without a sample, too.
  HD static int64_t row_count(const Sizes& sizes) { return (sizes.samples ? sizes.samples : 1) * sizes.classes; }

  // sums: of all domains; rows: region_count * row_count * kRow doubles; pooled: per class the region sums over the
  // batch.
  HD RowScores(const Plan& plan, const Sizes& sizes, const Constants& constants, const double* sums, double* rows,
               double* pooled)
      : plan_(plan),
        sizes_(sizes),
        constants_(constants),
        layout_(plan, sizes),
        outputs_{plan, sizes, constants.classes},
        sums_(sums),
        rows_(reinterpret_cast<ScoredRow*>(rows)),
        pooled_(pooled) {}

 protected:
  HD double coefficient(int k) const { return coefficient_of(plan_, constants_, k); }
  HD double class_value(int row, int64_t c) const { return constants_.class_values[row * sizes_.classes + c]; }
  HD const double* domain(int64_t u) const { return sums_ + u * layout_.domain_sums(); }
  HD int64_t domain_of(int64_t n, int64_t c) const { return plan_.multiclass ? n : n * sizes_.classes + c; }
  // The region sums of row (n, c).
  HD const double* of_row(int64_t n, int64_t c) const {
    return domain(domain_of(n, c)) + layout_.group_sums() + (plan_.multiclass ? c : 0) * layout_.region_sums;
  }
  HD ScoredRow& row(int region, int64_t i) const { return rows_[region * row_count(sizes_) + i]; }
  HD bool is_pooled(int k) const { return plan_.terms[k].is_region && plan_.regions[plan_.terms[k].index].pool_batch; }

  HD void balance(const PointwiseTerm& term, int64_t u, double& positive, double& negative) const {
    if (plan_.multiclass || term.balance != Balance::balanced)
      return fixed_balance(plan_, term, constants_, sizes_.classes, u % sizes_.classes, positive, negative);
    const double* s = domain(u);
    positive = s[0] == 0 ? 0 : 1 - s[1 + 2 * layout_.pointwise_count] / s[0];
    negative = 1 - positive;
  }

  // For a pointwise term in a domain: Σ w ℓ, and below it the denominator of the mean. Multiclass plans have both as
  // sums.
  HD double pointwise_value(int index, int64_t u) const {
    const double* s = domain(u) + 1 + 2 * index;
    if (plan_.multiclass) return s[0];
    double positive, negative;
    balance(plan_.pointwise[index], u, positive, negative);
    return positive * s[0] + negative * s[1];
  }
  HD double pointwise_weight(int index, int64_t u) const {
    if (!plan_.multiclass) return domain(u)[0];
    return domain(u)[2 + 2 * index] * double(plan_.pointwise[index].every_class ? sizes_.classes : 1);
  }

  // The sums of row (n, c) for the statistics of `term`. n < 0: of class c pooled over the batch.
  HD RowSums<double> row_sums(const RegionTerm& term, int64_t n, int64_t c) const {
    const bool has_negatives = layout_.region_sums > kRegionSums;
    const double* s = n < 0 ? pooled_ + c * layout_.region_sums : of_row(n, c);
    const double tn = !has_negatives ? 0 : n < 0 ? s[kTn] : true_negatives(n, c);
    RowSums<double> sums{s[kTp], s[kFp], s[kFn], tn, s[kTp] + s[kFn], s[kFp] + tn};
    switch (term.statistics) {
      case Statistics::product:
        break;
      case Statistics::squared:  // FP = Σ w p d, and p d = d² + t d
        sums.fp = s[kPositiveSquares] + s[kNegativeSquares] - s[kPositiveErrors], sums.fn = s[kPositiveErrors];
        break;
      case Statistics::soft_label:
        sums.tp = s[kMinimum], sums.fp = s[kOver], sums.fn = s[kUnder];
        break;
      case Statistics::squared_error:
        sums.tp = s[kPositiveRest], sums.fp = s[kNegativeSquares];
        sums.fn = s[kPositiveSquares], sums.tn = s[kNegativeRest];
        break;
    }
    return sums;
  }

  // Σ w (1-t) q of row (n, c). If a label map has no sum of it, it is the labelled weight of the other classes less FP.
  HD double true_negatives(int64_t n, int64_t c) const {
    const double* s = of_row(n, c);
    if (!plan_.one_label || layout_.region_sums == kExtraSums || plan_.magnifies_negatives()) return s[kTn];
    const double all = domain(domain_of(n, c))[0], positives = s[kTp] + s[kFn];
    if (positives <= all / 2) return all - positives - s[kFp];
    double total = 0;
    for (int64_t k = 0; k < sizes_.classes; ++k)
      if (k != c) total += of_row(n, k)[kTp] + of_row(n, k)[kFn];
    return total - s[kFp];
  }

  // The factor of class c in a row of sample n (n < 0: pooled), before class weights. 0 if the class has no label.
  HD double label_factor(const RegionTerm& term, int64_t n, int64_t c) const {
    if (term.factor == ClassFactor::none) return 1;
    const double positives = row_sums(term, n, c).positives;
    if (positives == 0) return 0;
    return term.factor == ClassFactor::square ? 1 / (positives * positives) : 1 / positives;
  }
  // largest: the largest label_factor of the row. It is the factor of a class without a label.
  HD double class_factor(const RegionTerm& term, int64_t n, int64_t c, double largest) const {
    if (!term.generalized) return 1;
    const double factor = label_factor(term, n, c);
    return (factor == 0 ? largest : factor) * (term.class_values < 0 ? 1 : class_value(term.class_values, c));
  }

  // Scores row i of a region term.
  HD void score_row(int region, int64_t i) const {
    const RegionTerm& term = plan_.regions[region];
    const int64_t per_sample = outputs_.pooled_classes(term), j = i % per_sample;
    const int64_t n = term.pool_batch ? -1 : i / per_sample;
    const int64_t j0 = term.pool_classes ? 0 : j, j1 = term.pool_classes ? outputs_.scored(term) : j + 1;
    RowSums<double> sums{};
    double labelled = 0, largest = 0;
    for (int64_t k = j0; term.generalized && k < j1; ++k)
      largest = max(largest, label_factor(term, n, outputs_.scored_class(term, k)));
    for (int64_t k = j0; k < j1; ++k) {
      const int64_t c = outputs_.scored_class(term, k);
      const double factor = class_factor(term, n, c, largest);
      const RowSums<double> of_class = row_sums(term, n, c);
      labelled += of_class.positives;
      sums.tp += factor * of_class.tp, sums.fp += factor * of_class.fp;
      sums.fn += factor * of_class.fn, sums.tn += factor * of_class.tn;
      sums.positives += factor * of_class.positives, sums.negatives += factor * of_class.negatives;
    }
    const bool absent = labelled == 0 && term.absent != Absent::score;
    const RowDual loss = absent ? constant<double, kRowSlopes>(0) : region_loss(term, sums);
    ScoredRow& out = row(region, i);
    out.loss = loss.v;
    for (int s = 0; s < kRowSlopes; ++s) out.slope[s] = loss.d[s];
    out.weight = absent && term.absent == Absent::skip ? 0
                 : term.class_values < 0 || term.generalized
                     ? 1
                     : class_value(term.class_values, outputs_.scored_class(term, j));
    out.largest_factor = largest;
  }

  // For row or domain i of a term: what it adds to a mean, and below it its weight in the mean.
  HD double weighted(const Term& term, int64_t i) const {
    if (!term.is_region) return pointwise_value(term.index, i);
    const ScoredRow& r = row(term.index, i);
    return r.weight == 0 ? 0.0 : r.weight * r.loss;
  }
  HD double weight_of(const Term& term, int64_t i) const {
    return term.is_region ? row(term.index, i).weight : pointwise_weight(term.index, i);
  }
  HD int64_t count_of(const Term& term) const {
    return term.is_region ? outputs_.rows(plan_.regions[term.index]) : layout_.domains;
  }

  const Plan& plan_;
  const Sizes sizes_;
  const Constants& constants_;
  const Layout layout_;
  const OutputMap outputs_;
  const double* sums_;
  ScoredRow* rows_;
  double* pooled_;
};

}  // namespace
}  // namespace segfuse
