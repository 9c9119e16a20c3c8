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

  struct Own {  // the label's class of each pixel
    V y;
    typename V::Mask is_peak;
    Pixel<V> x;
  };
  static Own own_class(JointTile<Real>& tile, Normaliser<V>& n, int64_t i) {
    Own own;
    own.y = V::load(tile.y + i);
    V z;
    n = tile.normalise(tile.e, i, own.y, z);
    own.is_peak = own.y == n.peak_class;
    own.x = Softmax::pixel(n, exp_nonpositive(z - n.peak), z - n.peak, own.is_peak);
    return own;
  }

  static void sum_tile(const Job& job, JointTile<Real>& tile, Sum<Real>& weight, ClassSums<Real>& region,
                       Sum<Real> (*point)[2]) {
    for (int64_t i = 0; i < tile.padded; i += V::lanes) {
      Normaliser<V> n;
      const Own own = own_class(tile, n, i);
      const V w = V::load(tile.w + i);
      weight.add(w);
      Points::template for_each<Real>(job, [&](const auto& loss, int k) {
        const V scale = Steps::scale(job, k, own.y);
        point[k][0].add(w * scale * loss(own.x, V(1)).positive);
        point[k][1].add(job.point[k].weighs_the_mean ? w * scale : w);
      });
      (w * n.inverse).store(tile.up + i);
      (w * own.x.q).store(tile.out + i);
    }
    if (region.n == 0) return;
    for (int64_t c = 0; c < tile.classes; ++c) {
      const V label = V(double(c));
      V tp = V(0), fp = V(0), fn = V(0);
      for (int64_t i = 0; i < tile.padded; i += V::lanes) {
        const auto here = V::load(tile.y + i) == label;
        const V p = V::load(tile.e + c * tile.size + i) * V::load(tile.up + i);
        tp = add_where(here, tp, p);
        fp = add_unless(here, fp, p);
        fn = add_where(here, fn, V::load(tile.out + i));
      }
      Reg<Real>* sum = region.lanes + c * 3;
      sum[0] = sum[0] + tp.fold();
      sum[1] = sum[1] + fp.fold();
      sum[2] = sum[2] + fn.fold();
    }
  }

  // row[5 c] for the class c of each pixel. A gather costs as much as comparing with some twenty classes.
  static V entry(const Real* row, const V& c, int64_t classes) {
    if (classes > 20) return V::lookup(row, c * V(5));
    V found = V(row[0]);
    for (int64_t k = 1; k < classes; ++k) found = select(c == V(double(k)), V(row[5 * k]), found);
    return found;
  }

  static void gradient_group(const Job& job, JointTile<Real>& tile, const Real* slopes, int64_t i) {
    Normaliser<V> n;
    const Own own = own_class(tile, n, i);
    const V w = Steps::weighted_upstream(job, tile, i);
    const Pixel<Dual<V>> dual = Softmax::seed(own.x);
    V d = V(0);
    Points::template for_each<Real>(job, [&](const auto& loss, int k) {
      d = d + V(slopes[2 * k]) * Steps::scale(job, k, own.y) * loss(dual, V(1)).positive.d[0];
    });
    const V scaled = w * n.inverse, zero = V(0);
    if (job.region_slopes == 0) {
      const V others = -(scaled * d), at_label = w * d * own.x.q;
      for (int64_t c = 0; c < tile.classes; ++c) {
        Real* e = tile.e + c * tile.size + i;
        select(own.y == V(double(c)), at_label, V::load(e) * others).store(e);
      }
      return;
    }
    // Per class [present, absent, ...]: see RowSlopes.
    const Real* row = slopes + 2 * job.points;
    const V present = entry(row, own.y, tile.classes);
    const V reference = select(own.is_peak, present, entry(row + 1, n.peak_class, tile.classes));
    const V others = sum_classes(tile.classes, [&](int64_t c) {
      const V e = V::load(tile.e + c * tile.size + i);
      return select(own.y == V(double(c)), zero, e * (V(row[5 * c + 1]) - reference));
    });
    const V mean = own.x.p * (present - reference) + others * n.inverse;
    const V at_label = w * softmax_pull_back(own.x.p, own.x.q, present - reference, mean, d, zero);
    for (int64_t c = 0; c < tile.classes; ++c) {
      Real* e = tile.e + c * tile.size + i;
      const V p = V::load(e) * scaled;
      const V g = softmax_pull_back(p, zero, V(row[5 * c + 1]) - reference, mean, zero, d);
      select(own.y == V(double(c)), at_label, g).store(e);
    }
  }
};

}  // namespace
}  // namespace segfuse
