// The engine for softmax, class indices and sums of products: what a pixel needs of its label is done once per pixel.
#pragma once

#include <type_traits>

#include "joint.h"

namespace segfuse {
namespace {

template <class Real, class Points>
struct LabelMap : JointSteps<LabelMap<Real, Points>, Real> {
  using V = Vec<Real, kJointRegisters>;
  using Steps = JointSteps<LabelMap<Real, Points>, Real>;
  static constexpr bool kEverything = false;

  // The label's class of each pixel. The logits of the tile become powers 2^(z log2(e) - s), 0 in the label's class.
  // One multiplication and addition rounds once, where the difference to the peak and its product would round twice; s,
  // near the peak, is the same for all classes, so that its own rounding drops out.
  struct Own {
    V y, power, at_peak, inverse;
    Pixel<V> x;

    // kSelects: logits of pixels of weight 0 are not read into anything.
    template <bool kSelects>
    INLINE Own(const JointTile<Real>& tile, int64_t i, std::bool_constant<kSelects>) {
      const auto valid = tile.valid(i);
      const auto logit = [&](const Real* p) INLINE_LAMBDA {
        const V z = V::load(p);
        return kSelects ? select(valid, z, V(0)) : z;
      };
      const Real* const z = tile.z_at + i;
      Real* const e = tile.e + i;
      const int64_t step = tile.size, z_step = tile.z_step, classes = tile.classes;
      V peak = logit(z);
      prefetch<V, false>(z);
      for (int64_t c = 1; c < classes; ++c) {
        peak = max(peak, logit(z + c * z_step));
        prefetch<V, false>(z + c * z_step);
      }
      const V log2_e = V(Base2<Real>::log2_e), shift = -(peak * log2_e);
      y = V::load(tile.y + i);
      V log2_own = V(0), label = V(0);
      const V rest = sum_classes(classes, [&](int64_t c) INLINE_LAMBDA {
        const V d = fma(logit(z + c * z_step), log2_e, shift);
        const auto here = y == label;
        log2_own = select(here, d, log2_own);
        label = label + V(1);
        const V other = select(here, V(0), fast_exp2(d));
        other.store(e + c * step);
        return other;
      });
      power = fast_exp2(log2_own);
      at_peak = fast_exp2(fma(peak, log2_e, shift));
      const Pixel<V> found = Softmax::of_label<Real>(power, rest, log2_own, inverse);
      // Member by member: as a whole, GCC 12 copies it through memory.
      x.z = found.z, x.p = found.p, x.q = found.q, x.log_p = found.log_p, x.log_q = found.log_q;
    }
  };

  template <bool kWrites>
  static void sum_tile(const Job& job, const JointTile<Real>& tile, const Real* slopes, Sum<Real>& weight,
                       ClassSums<Real>& region, Sum<Real> (*point)[2]) {
    if (tile.left_out)
      sum_pixels<kWrites>(job, tile, slopes, weight, point, std::true_type());
    else
      sum_pixels<kWrites>(job, tile, slopes, weight, point, std::false_type());
    if (region.n) sum_classes_of(job, tile, region);
  }

  // Here and below the tile's members are read before a loop, not in it: a store of a vector may alias them.
  template <bool kWrites, class Selects>
  static void sum_pixels(const Job& job, const JointTile<Real>& tile, const Real* slopes, Sum<Real>& weight,
                         Sum<Real> (*point)[2], Selects selects) {
    Real *const w_at = tile.w, *const inverse_at = tile.up, *const q_at = tile.out;
    const int64_t padded = tile.padded;
    for (int64_t i = 0; i < padded; i += V::lanes) {
      const Own own(tile, i, selects);
      const V w = V::load(w_at + i);
      weight.add(w);
      Points::template for_each<Real>(job, [&](const auto& loss, int k) INLINE_LAMBDA {
        const V scale = Steps::scale(job, k, own.y);
        point[k][0].add(w * scale * loss(own.x, V(1)).positive);
        point[k][1].add(job.point[k].weighs_the_mean ? w * scale : w);
      });
      if constexpr (kWrites) write_points(tile, own, w, point_slope(job, slopes, own), i);
      if (job.region_sums == 0) continue;
      (w * own.inverse).store(inverse_at + i);
      (w * own.x.p).store(w_at + i);
      (w * own.x.q).store(q_at + i);
    }
  }

  // I, FP and FN, class by class.
  static void sum_classes_of(const Job& job, const JointTile<Real>& tile, ClassSums<Real>& region) {
    const int64_t padded = tile.padded, classes = tile.classes;
    const Real *const w_at = tile.w, *const inverse_at = tile.up, *const q_at = tile.out, *const y_at = tile.y;
    const Real* e = tile.e;
    V label = V(0);
    for (int64_t c = 0; c < classes; ++c, e += tile.size) {
      V tp = V(0), fp = V(0), fn = V(0);
      for (int64_t i = 0; i < padded; i += V::lanes) {
        const auto here = V::load(y_at + i) == label;
        fp = fma(V::load(e + i), V::load(inverse_at + i), fp);
        tp = add_where(here, tp, V::load(w_at + i));
        fn = add_where(here, fn, V::load(q_at + i));
      }
      Reg<Real>* sum = region.lanes + c * job.region_sums;  // a label map needs no sum of negatives: head.h
      sum[0] = sum[0] + tp.fold();
      sum[1] = sum[1] + fp.fold();
      sum[2] = sum[2] + fn.fold();
      label = label + V(1);
    }
  }

  // The slopes of the regions, each class's beside its neighbour's.
  static void prepare_gradient(const Job& job, JointTile<Real>& tile, const Real* slopes) {
    const Real* row = slopes + 2 * job.points;  // per class [present, absent, ...]: see RowSlopes
    for (int64_t c = 0; job.region_slopes && c < tile.classes; ++c) {
      tile.present[c] = row[kRegionSlopes * c];
      tile.absent[c] = row[kRegionSlopes * c + 1];
    }
  }

  static void gradient_group(const Job& job, const JointTile<Real>& tile, const Real* slopes, int64_t i) {
    if (tile.left_out)
      write_group(job, tile, slopes, i, std::true_type());
    else
      write_group(job, tile, slopes, i, std::false_type());
  }

  // dL/dlog p of the label's class.
  INLINE static V point_slope(const Job& job, const Real* slopes, const Own& own) {
    const Pixel<Dual<V>> dual = Softmax::seed(own.x);
    V d = V(0);
    Points::template for_each<Real>(job, [&](const auto& loss, int k) INLINE_LAMBDA {
      d = d + V(slopes[2 * k]) * Steps::scale(job, k, own.y) * loss(dual, V(1)).positive.d[0];
    });
    return d;
  }

  INLINE static void write_points(const JointTile<Real>& tile, const Own& own, const V& w, const V& d, int64_t i) {
    const int64_t classes = tile.classes, step = tile.size, out_step = tile.out_step;
    const V others = -(w * own.inverse * d), at_label = w * d * own.x.q;
    const Real* e = tile.e + i;
    Real* out = tile.out_at + i;
    V label = V(0);
    for (int64_t c = 0; c < classes; ++c, e += step, out += out_step) {
      select(own.y == label, at_label, V::load(e) * others).store(out);
      prefetch<V, true>(out);
      label = label + V(1);
    }
  }

  template <class Selects>
  static void write_group(const Job& job, const JointTile<Real>& tile, const Real* slopes, int64_t i, Selects selects) {
    const Own own(tile, i, selects);
    const V w = Steps::weighted_upstream(job, tile, i);
    const V d = point_slope(job, slopes, own);
    if (job.region_slopes == 0) return write_points(tile, own, w, d, i);
    const V scaled = w * own.inverse, zero = V(0), one = V(1);
    const int64_t classes = tile.classes, step = tile.size, out_step = tile.out_step;
    const Real* e = tile.e + i;
    Real* out = tile.out_at + i;
    V label = zero;
    const Real* const absent = tile.absent;
    const V present = V::lookup(tile.present, own.y, classes), reference = reference_of(own, tile, present, i);
    const V others = sum_classes(
        classes, [&](int64_t c) INLINE_LAMBDA { return V::load(e + c * step) * (V(absent[c]) - reference); });
    const V mean = own.x.p * (present - reference) + others * own.inverse, mean_and_d = mean + d;
    const V at_label = w * softmax_pull_back(own.x.p, own.x.q, present - reference, mean, d, zero);
    for (int64_t c = 0; c < classes; ++c, e += step, out += out_step) {
      const V g = softmax_pull_back(V::load(e) * scaled, V(absent[c]) - reference, mean_and_d);
      select(own.y == label, at_label, g).store(out);
      prefetch<V, true>(out);
      label = label + one;
    }
  }

  // The slope of the class that reaches the peak: see softmax_pull_back.
  INLINE static V reference_of(const Own& own, const JointTile<Real>& tile, const V& present, int64_t i) {
    V reference = present;
    if (!any(own.power < own.at_peak)) return reference;
    const Real *e = tile.e + i, *const absent = tile.absent;
    for (int64_t c = 0; c < tile.classes; ++c, e += tile.size)
      reference = select(V::load(e) == own.at_peak, V(absent[c]), reference);
    return reference;
  }
};

}  // namespace
}  // namespace segfuse
