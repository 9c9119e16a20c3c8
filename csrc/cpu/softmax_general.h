// The CPU engine for every other multiclass plan: soft labels, smoothing, squared and L1 statistics, probabilities.
//
// Given:   a tile of a chunk of one sample (softmax.h), logits and labels of all classes loaded.
// Assumes: pixels of weight 0 have logits and labels of 0.
// Writes:  sums into Sum and ClassSums; the gradient to tile.out_at; values to tile.out, or per class to tile.out_at.
// Called:  by SoftmaxSteps (softmax.h); chosen by find_softmax (isa.h).
#pragma once

#include "softmax.h"

namespace segfuse {
namespace {

template <class Real, class Link, bool kExtra>
struct SoftmaxGeneral : SoftmaxSteps<SoftmaxGeneral<Real, Link, kExtra>, Real> {
  using V = Vec<Real, kSoftmaxRegisters>;
  using Steps = SoftmaxSteps<SoftmaxGeneral<Real, Link, kExtra>, Real>;
  static constexpr bool kEverything = true;

  // The pixels of a vector, class by class.
  struct Group {
    const SoftmaxTile<Real>& tile;
    int64_t i;
    V w, y;
    Normaliser<V> n;

    Group(SoftmaxTile<Real>& t, int64_t at) : tile(t), i(at), w(V::load(t.w + at)), y(V::load(t.y + at)) {
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
  static void sum_tile(const Job& job, SoftmaxTile<Real>& tile, const Real*, Sum<Real>& weight, ClassSums<Real>& region,
                       Sum<Real> (*pointwise)[2]) {
    for (int64_t i = 0; i < tile.padded; i += V::lanes) {
      tile.prefetch_next(i);
      Group group(tile, i);
      ClassTotal<V> loss_of[kMaxPointwise];
      weight.add(group.w);
      for (int64_t c = 0; c < tile.classes; ++c) {
        Pixel<V> x = group.pixel(c);
        V t = group.label(c);
        if (job.layout.region_sums)
          region_sums<kExtra>(group.w, x.p, x.q, t, job.layout.region_sums > kRegionSums, [&](int s, const V& v) {
            Reg<Real>& sum = region.lanes[c * job.layout.region_sums + s];
            sum = sum + v.fold();
          });
        AnyPointwise::for_each<Real>(
            job.plan, [&](const auto& loss, int k) { loss_of[k].add(class_scale(job, k, c) * loss(x, t).positive); });
      }
      for (int k = 0; k < job.plan.pointwise_count; ++k) {
        pointwise[k][0].add(masked_product(group.w, loss_of[k].total()));
        pointwise[k][1].add(job.plan.pointwise[k].weight_in_denominator ? group.w * Steps::scale(job, k, group.y)
                                                                        : group.w);
      }
    }
  }

  static void prepare_gradient(const Job&, SoftmaxTile<Real>&, const Real*) {}

  template <Step>
  static void gradient_group(const Job& job, SoftmaxTile<Real>& tile, const Real* slopes, int64_t i) {
    Group group(tile, i);
    V w = Steps::weighted_upstream(job, tile, i), zero = V(0);
    const bool regions = job.layout.region_slopes > 0;
    V reference = zero, largest = zero, largest_class = zero;  // largest: of the slopes of log p
    // The slopes of each class are stored in place of its logit and label.
    for (int64_t c = 0; c < tile.classes; ++c) {
      Pixel<V> x = group.pixel(c);
      V t = group.label(c);
      V slope = zero, log_slope = zero;
      if (regions) {
        const Real* r = slopes + 2 * job.plan.pointwise_count + c * job.layout.region_slopes;
        slope = region_slope<kExtra>(RowSlopes<V>::of(r), x.p, x.q, t);
      }
      V upstream = job.problem->has_upstream && tile.is_per_class() ? V::load(tile.up + c * tile.size + i) : V(1);
      AnyPointwise::for_each<Real>(job.plan, [&](const auto& loss, int k) {
        const bool of_probability = kSoftmax && job.plan.pointwise[k].every_class;
        V& sum = of_probability ? slope : log_slope;
        Pixel<Dual<V>> dual = of_probability ? Identity::seed(x) : Link::seed(x);
        sum = sum + upstream * (V(slopes[2 * k]) * class_scale(job, k, c) * loss(dual, t).positive.d[0]);
      });
      if constexpr (kSoftmax) {
        reference = select(group.n.peak_class == V(double(c)), slope, reference);
        auto larger = abs(log_slope) > abs(largest);
        largest = select(larger, log_slope, largest);
        largest_class = select(larger, V(double(c)), largest_class);
        slope.store(tile.t + c * tile.size + i);
        log_slope.store(tile.z + c * tile.size + i);
      } else {
        masked_product(w, slope + log_slope).store(tile.out_at + c * tile.out_step + i);
      }
    }
    if constexpr (kSoftmax) {
      const auto at = [&](int64_t c) { return c * tile.size + i; };
      // Σ_{c≠k} D_c. The largest D is added last, or not at all, so that the small ones keep their digits.
      V rest = zero;
      if (job.plan.pointwise_count) {
        rest = sum_classes(tile.classes, [&](int64_t c) {
          return select(largest_class == V(double(c)), V(0), V::load(tile.z + at(c)));
        });
      }
      V sum = sum_classes(tile.classes,
                          [&](int64_t c) { return V::load(tile.e + at(c)) * (V::load(tile.t + at(c)) - reference); });
      V mean = sum * group.n.inverse;
      for (int64_t c = 0; c < tile.classes; ++c) {
        V log_slope = V::load(tile.z + at(c));
        Pixel<V> x = Softmax::pixel(group.n, V::load(tile.e + at(c)), zero, group.n.peak_class == V(double(c)));
        V others = select(largest_class == V(double(c)), rest, largest + (rest - log_slope));
        V g = softmax_pull_back(x.p, x.q, V::load(tile.t + at(c)) - reference, mean, log_slope, others);
        masked_product(w, g).store(tile.out_at + c * tile.out_step + i);
      }
    }
  }

  // The loss of each pixel, as the sum over its classes, or the loss of each class.
  static void values(const Job& job, const Chunk& chunk, double*, ValueReport& bad) {
    SoftmaxTile<Real> tile(job, true);
    const Real* slopes = static_cast<const Real*>(job.slopes) + chunk.domain * job.layout.domain_slopes();
    for (int64_t done = 0; done < chunk.count; done += tile.size) {
      tile.first_stored = chunk.first + done;
      tile.load(tile.p.logits, chunk.domain, tile.first_stored, smaller(tile.size, chunk.count - done), false, bad);
      if (tile.is_per_class()) tile.aim(chunk.domain);
      for (int64_t i = 0; i < tile.padded; i += V::lanes) {
        Group group(tile, i);
        ClassTotal<V> sum;
        for (int64_t c = 0; c < tile.classes; ++c)
          AnyPointwise::for_each<Real>(job.plan, [&](const auto& loss, int k) {
            V value = V(slopes[2 * k]) * class_scale(job, k, c) * loss(group.pixel(c), group.label(c)).positive;
            if (tile.is_per_class())
              masked_product(group.w, value).store(tile.out_at + c * tile.out_step + i);
            else
              sum.add(value);
          });
        masked_product(group.w, sum.total()).store(tile.out + i);
      }
      if (tile.is_per_class())
        tile.store(chunk.domain);
      else
        store_floating(job.problem->output, chunk.domain, 0, tile.first_stored, tile.count, tile.out);
    }
  }
};

}  // namespace
}  // namespace segfuse
