// The head computes the loss, the terms and the slopes (the gradient pass multiplies by them) from the sums of the
// rows, in double. A region term differentiates its own expression with respect to (TP, FP, FN, TN).
//
// It has two halves. `gather` writes a short vector, which is as long for any number of samples: numerators and
// denominators of means, and the sums of rows that are pooled over the batch. `finish` goes on from there. In between,
// ranks that hold different samples may add their vectors.
//
// It is written for a team of threads: one thread on the CPU; one block, or all blocks of a grid, on a GPU. A team has
// rank() and size() (of all its threads), group() and groups() (of its blocks), leads() (true in one thread per block),
// sync() (of a block), and two sums of f(0) ... f(n - 1): sum() adds the numbers that fall to the block (rank, rank +
// size ...), group_sum() adds all of them. All threads of a block call a sum, and all receive it; its order depends on
// sizes only. A block can read what other blocks wrote only in the next launch: so there are phases, below.
#pragma once

#include "row_scores.h"

namespace segfuse {
namespace {

// A team of one thread.
struct Alone {
  HD int64_t rank() const { return 0; }
  HD int64_t size() const { return 1; }
  HD int64_t group() const { return 0; }
  HD int64_t groups() const { return 1; }
  HD bool leads() const { return true; }
  HD void sync() const {}
  template <class Function>
  HD double sum(int64_t n, const Function& f) const {
    double total = 0;
    for (int64_t i = 0; i < n; ++i) total += f(i);
    return total;
  }
  template <class Function>
  HD double group_sum(int64_t n, const Function& f) const {
    return sum(n, f);
  }
};

class Head : RowScores {
 public:
  // workspace: workspace_size() doubles, kept from `gather` to `finish`; vector: vector_size().
  HD Head(const Plan& plan, const Sizes& sizes, const Constants& constants, const double* sums, double* workspace,
          double* vector)
      : RowScores(plan, sizes, constants, sums, workspace, vector + totals_size(plan)),
        scales_(workspace + plan.region_count * row_count(sizes) * kRow),
        vector_(vector) {}

  HD static int64_t workspace_size(const Plan& plan, const Sizes& sizes, int64_t outputs) {
    return plan.region_count * row_count(sizes) * kRow + plan.term_count * outputs;
  }
  // Σ w; per term a numerator and a denominator; per class the sums of its rows.
  HD static int64_t vector_size(const Plan& plan, const Sizes& sizes) {
    return totals_size(plan) + (plan.pools_batch() ? sizes.classes * Layout(plan, sizes).region_sums : 0);
  }
  HD static int64_t totals_size(const Plan& plan) { return 1 + 2 * plan.term_count; }

  // The two halves. loss: a value per output, or null; terms: such an array per term; slopes: Layout::slopes() numbers.
  template <class Team>
  HD void gather(const Team& team) const {
    score(team, vector_);
  }
  template <class Real, class Team>
  HD void finish(const Team& team, Real* loss, double* terms, Real* slopes) const {
    pool(team);
    reduce(team, loss, terms);
    team.sync();
    write_slopes(team, slopes);
  }

  // Phase 1: scores the rows of single samples, pools sums, and writes this block's part of the vector's totals.
  template <class Team>
  HD void score(const Team& team, double* totals) const {
    const double valid_weight = team.sum(layout_.domains, [&](int64_t u) { return domain(u)[0]; });
    if (team.leads()) totals[0] = valid_weight;
    if (plan_.pools_batch()) pool_samples(team);
    score_rows(team, false);
    for (int k = 0; k < plan_.term_count; ++k) {
      double numerator = 0, denominator = 0;
      if (outputs_.count() == 1 && !is_pooled(k)) add_up(team, k, numerator, denominator);
      if (team.leads()) totals[1 + 2 * k] = numerator, totals[2 + 2 * k] = denominator;
    }
    team.sync();
  }

  // Phase 2, by one block, if phase 1 had several: adds their totals into the vector.
  template <class Team>
  HD void total(const Team& team, const double* totals, int64_t blocks) const {
    const int64_t size = totals_size(plan_);
    for (int64_t i = 0; i < size; ++i) {
      const double sum = team.group_sum(blocks, [&](int64_t b) { return totals[b * size + i]; });
      if (team.leads()) vector_[i] = sum;
    }
    team.sync();
  }

  // Phase 3, by one block: scores the rows that are pooled over the batch, and writes their totals.
  template <class Team>
  HD void pool(const Team& team) const {
    score_rows(team, true);
    for (int k = 0; k < plan_.term_count; ++k) {
      if (outputs_.count() != 1 || !is_pooled(k)) continue;
      double numerator, denominator;
      add_up(team, k, numerator, denominator);
      if (team.leads()) vector_[1 + 2 * k] = numerator, vector_[2 + 2 * k] = denominator;
    }
    team.sync();
  }

  // Phase 4: the values of the terms, the scales of their slopes, and the loss.
  template <class Real, class Team>
  HD void reduce(const Team& team, Real* loss, double* terms) const {
    const int64_t n_out = outputs_.count();
    for (int64_t out = team.rank(); out < n_out; out += team.size()) {
      double total = 0;
      for (int k = 0; k < plan_.term_count; ++k) total += coefficient(k) * (terms[k * n_out + out] = value_of(k, out));
      if (loss) loss[out] = Real(total);
    }
  }

  // Phase 5: the slopes.
  template <class Real, class Team>
  HD void write_slopes(const Team& team, Real* slopes) const {
    const int64_t begin = team.rank(), step = team.size();
    for (int64_t u = begin; u < layout_.domains; u += step) pointwise_slopes(u, slopes + u * layout_.domain_slopes());
    if (layout_.region_slopes == 0) return;
    for (int64_t i = begin; i < sizes_.samples * sizes_.classes; i += step) region_slopes(i, slopes);
  }

  // The scale of the slopes of a term's output, after phase 4.
  HD double scale_of(int term, int64_t out) const { return scale(term, out); }

 private:
  static constexpr int64_t kFewSamples = 32;  // up to so many, one thread adds all samples

  template <class Team>
  HD void pool_samples(const Team& team) const {
    const int64_t per_class = layout_.region_sums, count = sizes_.classes * per_class;
    const auto pooled = [&](const auto& sum, int64_t i) {
      const int64_t c = i / per_class, s = i - c * per_class;
      return sum(sizes_.samples, [&](int64_t n) { return s == kTn ? true_negatives(n, c) : of_row(n, c)[s]; });
    };
    if (sizes_.samples <= kFewSamples) {
      const auto alone = [](int64_t n, const auto& f) { return Alone().sum(n, f); };
      for (int64_t i = team.rank(); i < count; i += team.size()) pooled_[i] = pooled(alone, i);
      return;
    }
    const auto together = [&](int64_t n, const auto& f) { return team.group_sum(n, f); };
    for (int64_t i = team.group(); i < count; i += team.groups()) {
      const double total = pooled(together, i);
      if (team.leads()) pooled_[i] = total;
    }
  }

  HD double& scale(int term, int64_t out) const { return scales_[term * outputs_.count() + out]; }

  template <class Team>
  HD void score_rows(const Team& team, bool pooled) const {
    for (int k = 0; k < plan_.region_count; ++k)
      if (plan_.regions[k].pool_batch == pooled)
        for (int64_t i = team.rank(); i < outputs_.rows(plan_.regions[k]); i += team.size()) score_row(k, i);
    team.sync();
  }

  template <class Team>
  HD void add_up(const Team& team, int k, double& numerator, double& denominator) const {
    const Term& term = plan_.terms[k];
    numerator = team.sum(count_of(term), [&](int64_t i) { return weighted(term, i); });
    denominator = team.sum(count_of(term), [&](int64_t i) { return weight_of(term, i); });
  }

  // The value of a term's output. Also sets the scale of its slopes. Rows and domains are in the order of the outputs.
  HD double value_of(int k, int64_t out) const {
    const Term& term = plan_.terms[k];
    const int64_t n_out = outputs_.count();
    double sum = vector_[1 + 2 * k], weight = vector_[2 + 2 * k];
    if (n_out != 1) {
      const int64_t each = count_of(term) / n_out;
      const Alone alone;
      sum = alone.sum(each, [&](int64_t i) { return weighted(term, out * each + i); });
      weight = alone.sum(each, [&](int64_t i) { return weight_of(term, out * each + i); });
    }
    // If no pixel of the call counts, a region loss and its gradient are 0, with any smoothing.
    const bool nothing = term.is_region && vector_[0] == 0;
    // For an infinite weight the term in brackets makes NaN: 1 / weight alone would make loss and gradient 0.
    const double s = nothing ? 0 : !outputs_.averages() ? 1 : weight == 0 ? 0 : 1 / weight + (weight - weight);
    scale(k, out) = s;
    return s == 0 ? 0 : sum * s;
  }

  template <class Real>
  HD void pointwise_slopes(int64_t u, Real* slope) const {
    const int64_t n = plan_.multiclass ? u : u / sizes_.classes, c = plan_.multiclass ? 0 : u % sizes_.classes;
    for (int k = 0; k < plan_.term_count; ++k) {
      if (plan_.terms[k].is_region) continue;
      const int index = plan_.terms[k].index;
      double positive, negative;
      balance(plan_.pointwise[index], u, positive, negative);
      const double factor = coefficient(k) * scale(k, outputs_.of(n, c));
      slope[2 * index] = Real(factor * positive);
      slope[2 * index + 1] = Real(factor * negative);
    }
  }

  // The slopes of row i = n C + c, for all region terms together.
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
      const ScoredRow& r = row(region, pooled);
      const double weight = r.weight, reduced = scale(k, outputs_.of(n, c));
      if (weight == 0 || reduced == 0) continue;
      const double factor =
          coefficient(k) * weight * reduced * class_factor(term, term.pool_batch ? -1 : n, c, r.largest_factor);
      const double tp = factor * r.slope[kTp], fp = factor * r.slope[kFp];
      const double fn = factor * r.slope[kFn], tn = factor * r.slope[kTn];
      switch (term.statistics) {
        case Statistics::product:
          slope[kAtPositive] += tp - fn;
          slope[kAtNegative] += fp - tn;
          break;
        case Statistics::squared:  // FP = Σ p d, FN = -Σ t d, so that dFP/dp = 2 d + t
          slope[kAtPositive] += tp + fp - fn;
          slope[kSquaredAtPositive] += fp;
          slope[kSquaredAtNegative] += fp;
          break;
        case Statistics::soft_label:
          slope[kBelow] += tp - fn;
          slope[kAbove] += fp;
          break;
        case Statistics::squared_error:
          slope[kSquaredAtPositive] += fn - tp;
          slope[kSquaredAtNegative] += fp - tn;
          break;
      }
    }
    Real* out = slopes + domain_of(n, c) * layout_.domain_slopes() + 2 * layout_.pointwise_count +
                (plan_.multiclass ? c : 0) * layout_.region_slopes;
    for (int s = 0; s < kRegionSlopes; ++s) out[s] = Real(slope[s]);
  }

  double *scales_, *vector_;
};

}  // namespace
}  // namespace segfuse
