// The engine for every other multiclass plan: soft labels, smoothing, squared and L1 statistics, probabilities.
#pragma once

#include "joint.h"

namespace segfuse {
namespace {

template <class Real, class Link, bool kExtra>
struct AnyJoint : JointSteps<AnyJoint<Real, Link, kExtra>, Real> {
  using V = Vec<Real, kJointRegisters>;
  using Steps = JointSteps<AnyJoint<Real, Link, kExtra>, Real>;
  static constexpr bool kEverything = true;

  // The pixels of a vector, class by class.
  struct Group {
    const JointTile<Real>& tile;
    int64_t i;
    V w, y;
    Normaliser<V> n;

    Group(JointTile<Real>& t, int64_t at) : tile(t), i(at), w(V::load(t.w + at)), y(V::load(t.y + at)) {
      if constexpr (kSoftmax) n = t.normalise(t.z, at);
    }
    Pixel<V> pixel(int64_t c) const {
      V z = V::load(tile.z + c * tile.size + i);
      if constexpr (kSoftmax) {
        return Softmax::pixel(n, V::load(tile.e + c * tile.size + i), z - n.peak, n.peak_class == V(double(c)));
      } else {
        return Link::pixel(z);
      }
    }
    V label(int64_t c) const {
      if (tile.p.label_map) return select(y == V(double(c)), V(1), V(0));
      return V::load(tile.t + c * tile.size + i);
    }
  };
  static constexpr bool kSoftmax = Link::kShared;

  static V class_scale(const Job& job, int k, int64_t c) {
    return job.class_scale[k] ? V(static_cast<const Real*>(job.class_scale[k])[c]) : V(1);
  }

  template <Step>
  static void sum_tile(const Job& job, JointTile<Real>& tile, const Real*, Sum<Real>& weight, ClassSums<Real>& region,
                       Sum<Real> (*point)[2]) {
    for (int64_t i = 0; i < tile.padded; i += V::lanes) {
      tile.prefetch_next(i);
      Group group(tile, i);
      ClassTotal<V> loss_of[kMaxPoints];
      weight.add(group.w);
      for (int64_t c = 0; c < tile.classes; ++c) {
        Pixel<V> x = group.pixel(c);
        V t = group.label(c);
        if (job.region_sums)
          region_sums<kExtra>(group.w, x.p, x.q, t, job.region_sums > kRegionSums, [&](int s, const V& v) {
            Reg<Real>& sum = region.lanes[c * job.region_sums + s];
            sum = sum + v.fold();
          });
        AnyPoints::for_each<Real>(
            job, [&](const auto& loss, int k) { loss_of[k].add(class_scale(job, k, c) * loss(x, t).positive); });
      }
      for (int k = 0; k < job.points; ++k) {
        point[k][0].add(masked_product(group.w, loss_of[k].total()));
        point[k][1].add(job.point[k].weighs_the_mean ? group.w * Steps::scale(job, k, group.y) : group.w);
      }
    }
  }

  static void prepare_gradient(const Job&, JointTile<Real>&, const Real*) {}

  template <Step>
  static void gradient_group(const Job& job, JointTile<Real>& tile, const Real* slopes, int64_t i) {
    Group group(tile, i);
    V w = Steps::weighted_upstream(job, tile, i), zero = V(0);
    const bool regions = job.region_slopes > 0;
    V reference = zero, largest = zero, largest_class = zero;  // of the own slopes
    // Each class's slopes take the place of its logit and label.
    for (int64_t c = 0; c < tile.classes; ++c) {
      Pixel<V> x = group.pixel(c);
      V t = group.label(c);
      V slope = zero, own = zero;
      if (regions) {
        const Real* r = slopes + 2 * job.points + c * job.region_slopes;
        slope = region_slope<kExtra>(RowSlopes<V>{V(r[0]), V(r[1]), V(r[2]), V(r[3]), V(r[4]), V(r[5])}, x.p, x.q, t);
      }
      V upstream = job.problem->has_upstream && tile.is_per_class() ? V::load(tile.up + c * tile.size + i) : V(1);
      AnyPoints::for_each<Real>(job, [&](const auto& loss, int k) {
        const bool of_probability = kSoftmax && job.point[k].every_class;
        V& sum = of_probability ? slope : own;
        Pixel<Dual<V>> dual = of_probability ? Identity::seed(x) : Link::seed(x);
        sum = sum + upstream * (V(slopes[2 * k]) * class_scale(job, k, c) * loss(dual, t).positive.d[0]);
      });
      if constexpr (kSoftmax) {
        reference = select(group.n.peak_class == V(double(c)), slope, reference);
        auto larger = abs(own) > abs(largest);
        largest = select(larger, own, largest);
        largest_class = select(larger, V(double(c)), largest_class);
        slope.store(tile.t + c * tile.size + i);
        own.store(tile.z + c * tile.size + i);
      } else {
        masked_product(w, slope + own).store(tile.out_at + c * tile.out_step + i);
      }
    }
    if constexpr (kSoftmax) {
      const auto at = [&](int64_t c) { return c * tile.size + i; };
      // Σ_{c≠k} D_c: the largest is added last, or not at all, so that the small ones keep their digits.
      V rest = zero;
      if (job.points) {
        rest = sum_classes(tile.classes, [&](int64_t c) {
          return select(largest_class == V(double(c)), V(0), V::load(tile.z + at(c)));
        });
      }
      V sum = sum_classes(tile.classes,
                          [&](int64_t c) { return V::load(tile.e + at(c)) * (V::load(tile.t + at(c)) - reference); });
      V mean = sum * group.n.inverse;
      for (int64_t c = 0; c < tile.classes; ++c) {
        V own = V::load(tile.z + at(c));
        Pixel<V> x = Softmax::pixel(group.n, V::load(tile.e + at(c)), zero, group.n.peak_class == V(double(c)));
        V others = select(largest_class == V(double(c)), rest, largest + (rest - own));
        V g = softmax_pull_back(x.p, x.q, V::load(tile.t + at(c)) - reference, mean, own, others);
        masked_product(w, g).store(tile.out_at + c * tile.out_step + i);
      }
    }
  }

  // The loss of each pixel, its classes added, or of each class.
  static void values(const Job& job, const Chunk& chunk, double*, ValueReport& bad) {
    JointTile<Real> tile(job, true);
    const Real* slopes = static_cast<const Real*>(job.slopes) + chunk.unit * job.unit_slopes;
    for (int64_t done = 0; done < chunk.count; done += tile.size) {
      tile.first_stored = chunk.first + done;
      tile.load(tile.p.logits, chunk.unit, tile.first_stored, smaller(tile.size, chunk.count - done), false, bad);
      if (tile.is_per_class()) tile.aim(chunk.unit);
      for (int64_t i = 0; i < tile.padded; i += V::lanes) {
        Group group(tile, i);
        ClassTotal<V> sum;
        for (int64_t c = 0; c < tile.classes; ++c)
          AnyPoints::for_each<Real>(job, [&](const auto& loss, int k) {
            V own = V(slopes[2 * k]) * class_scale(job, k, c) * loss(group.pixel(c), group.label(c)).positive;
            if (tile.is_per_class())
              masked_product(group.w, own).store(tile.out_at + c * tile.out_step + i);
            else
              sum.add(own);
          });
        masked_product(group.w, sum.total()).store(tile.out + i);
      }
      if (tile.is_per_class())
        tile.store(chunk.unit);
      else
        store_floating(job.problem->output, chunk.unit, 0, tile.first_stored, tile.count, tile.out);
    }
  }
};

}  // namespace
}  // namespace segfuse
