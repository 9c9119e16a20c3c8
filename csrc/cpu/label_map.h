// The engine for softmax, class indices and sums of products: what a pixel needs of its label is done once per pixel.
#pragma once

#include "joint.h"

namespace segfuse {
namespace {

template <class Real, class Points>
struct LabelMap : JointSteps<LabelMap<Real, Points>, Real> {
  using V = Vec<Real, kJointRegisters>;
  using Steps = JointSteps<LabelMap<Real, Points>, Real>;
  static constexpr bool kEverything = false;

  // The label's class of each pixel. The logits of the tile become exponentials, 0 in the label's class.
  struct Own {
    V y, exponential, inverse;
    Pixel<V> x;
  };
  static Own own_class(JointTile<Real>& tile, int64_t i) {
    const auto at = [&](int64_t c) { return tile.e + c * tile.size + i; };
    V peak = V::load(at(0));
    for (int64_t c = 1; c < tile.classes; ++c) peak = max(peak, V::load(at(c)));
    Own own{V::load(tile.y + i), V(0), V(0), {}};
    V log_own = V(0);
    const V rest = sum_classes(tile.classes, [&](int64_t c) {
      const V d = V::load(at(c)) - peak, x = exp_nonpositive(d);
      const auto here = own.y == V(double(c));
      log_own = select(here, d, log_own);
      own.exponential = select(here, x, own.exponential);
      const V other = select(here, V(0), x);
      other.store(at(c));
      return other;
    });
    own.x = Softmax::of_label(own.exponential, rest, log_own, own.inverse);
    return own;
  }

  static void sum_tile(const Job& job, JointTile<Real>& tile, Sum<Real>& weight, ClassSums<Real>& region,
                       Sum<Real> (*point)[2]) {
    for (int64_t i = 0; i < tile.padded; i += V::lanes) {
      const Own own = own_class(tile, i);
      const V w = V::load(tile.w + i);
      weight.add(w);
      Points::template for_each<Real>(job, [&](const auto& loss, int k) {
        const V scale = Steps::scale(job, k, own.y);
        point[k][0].add(w * scale * loss(own.x, V(1)).positive);
        point[k][1].add(job.point[k].weighs_the_mean ? w * scale : w);
      });
      (w * own.inverse).store(tile.up + i);
      (w * own.x.p).store(tile.w + i);
      (w * own.x.q).store(tile.out + i);
    }
    if (region.n == 0) return;
    for (int64_t c = 0; c < tile.classes; ++c) {
      const V label = V(double(c));
      V tp = V(0), fp = V(0), fn = V(0);
      for (int64_t i = 0; i < tile.padded; i += V::lanes) {
        const auto here = V::load(tile.y + i) == label;
        fp = fma(V::load(tile.e + c * tile.size + i), V::load(tile.up + i), fp);
        tp = add_where(here, tp, V::load(tile.w + i));
        fn = add_where(here, fn, V::load(tile.out + i));
      }
      Reg<Real>* sum = region.lanes + c * job.region_sums;  // a label map needs no sum of negatives: head.h
      sum[0] = sum[0] + tp.fold();
      sum[1] = sum[1] + fp.fold();
      sum[2] = sum[2] + fn.fold();
    }
  }

  // row[kRegionSlopes c] for the class c of each pixel. A gather costs as much as comparing with some twenty classes.
  static V entry(const Real* row, const V& c, int64_t classes) {
    if (classes > 20) return V::lookup(row, c * V(kRegionSlopes));
    V found = V(row[0]);
    for (int64_t k = 1; k < classes; ++k) found = select(c == V(double(k)), V(row[kRegionSlopes * k]), found);
    return found;
  }

  static void gradient_group(const Job& job, JointTile<Real>& tile, const Real* slopes, int64_t i) {
    const Own own = own_class(tile, i);
    const V w = Steps::weighted_upstream(job, tile, i);
    const Pixel<Dual<V>> dual = Softmax::seed(own.x);
    V d = V(0);
    Points::template for_each<Real>(job, [&](const auto& loss, int k) {
      d = d + V(slopes[2 * k]) * Steps::scale(job, k, own.y) * loss(dual, V(1)).positive.d[0];
    });
    const V scaled = w * own.inverse, zero = V(0);
    const auto at = [&](int64_t c) { return tile.e + c * tile.size + i; };
    if (job.region_slopes == 0) {
      const V others = -(scaled * d), at_label = w * d * own.x.q;
      for (int64_t c = 0; c < tile.classes; ++c)
        select(own.y == V(double(c)), at_label, V::load(at(c)) * others).store(at(c));
      return;
    }
    // Per class [present, absent, ...]: see RowSlopes.
    const Real* row = slopes + 2 * job.points;
    const V present = entry(row, own.y, tile.classes);
    const V reference = reference_of(own, tile, row, present, i);
    const V others = sum_classes(
        tile.classes, [&](int64_t c) { return V::load(at(c)) * (V(row[kRegionSlopes * c + 1]) - reference); });
    const V mean = own.x.p * (present - reference) + others * own.inverse;
    const V at_label = w * softmax_pull_back(own.x.p, own.x.q, present - reference, mean, d, zero);
    for (int64_t c = 0; c < tile.classes; ++c) {
      const V g = softmax_pull_back(V::load(at(c)) * scaled, V(row[kRegionSlopes * c + 1]) - reference, mean + d);
      select(own.y == V(double(c)), at_label, g).store(at(c));
    }
  }

  // The slope of the class that reaches the peak: see softmax_pull_back.
  static V reference_of(const Own& own, const JointTile<Real>& tile, const Real* row, const V& present, int64_t i) {
    V reference = present;
    if (!(own.exponential < V(1)).any()) return reference;
    for (int64_t c = 0; c < tile.classes; ++c)
      reference = select(V::load(tile.e + c * tile.size + i) == V(1), V(row[kRegionSlopes * c + 1]), reference);
    return reference;
  }
};

}  // namespace
}  // namespace segfuse
