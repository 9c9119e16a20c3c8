// The CPU engine for rows that stand alone (binary, multilabel): each (sample, channel) plane, a tile at a time.
//
// Given:   a job and a chunk of one row.
// Assumes: nothing about strides, types, weights or terms. `Pointwise` are the job's terms.
// Writes:  statistics: the chunk's sums, in the order of Layout. values, gradient, from_cache: its pixels of the
//          output. fused: both sums and gradient. cache: the sums, and Link::cached in the gradient's place. Bad labels
//          and probabilities go to the report.
// Called:  by steps.cpp, a chunk per task, through find_sigmoid (isa.h).
#pragma once

#include <type_traits>

#include "../pixel.h"
#include "any_pointwise.h"
#include "source.h"
#include "sum.h"
#include "vec_math.h"

namespace segfuse {
namespace {

template <class Real>
struct RowTile {
  // An array has at most 4 KB in float32, so that all of them stay in the first cache.
  static constexpr int64_t kSize = kAddsPerFlush * Vec<Real>::lanes < 1024 ? kAddsPerFlush * Vec<Real>::lanes : 1024;
  alignas(64) Real z[kSize], t[kSize], w[kSize], up[kSize], out[kSize];
  const Real *z_at, *t_at;
  Real* out_at;
  int64_t count, padded;

  // Loads positions [first, first + n_pixels). Returns whether there are weights: if asked for, or if the last vector
  // is not full. checks: reports values that are no probabilities; the first pass over the pixels does so.
  bool load(const Job& job, const View& logits, int64_t n, int64_t c, int64_t first, int64_t n_pixels, bool checks,
            ValueReport& bad) {
    constexpr int64_t lanes = Vec<Real>::lanes;
    const Problem& p = *job.problem;
    count = n_pixels;
    padded = (count + lanes - 1) / lanes * lanes;
    const bool whole = padded == count;
    const bool weighted = p.has_weight || job.plan.has_ignore || !whole;
    if (p.has_weight)
      load_weight(p.weight, n, c, first, count, w);
    else if (weighted)
      for (int64_t i = 0; i < count; ++i) w[i] = 1;
    z_at = whole ? in_place<Real>(logits, n, c, first) : nullptr;
    if (!z_at) {
      load_floating(logits, n, c, first, count, z);
      z_at = z;
    }
    t_at = t;
    if (p.hard_target) {
      load_labels(p.target, n, c, first, count, 2, job.plan.has_ignore, job.plan.ignore_index, t, w, bad);
    } else {
      const Real* direct = whole && !job.plan.has_ignore ? in_place<Real>(p.target, n, c, first) : nullptr;
      if (direct)
        t_at = direct;
      else
        load_soft_labels(p.target, n, c, first, count, job.plan.has_ignore, job.plan.ignore_value, t, w);
    }
    const Real* const counts = weighted ? w : nullptr;
    if (checks && !p.hard_target) check_probabilities(t_at, counts, n, c, first, count, ValueKind::soft_label, bad);
    if (checks && job.plan.link == LinkKind::identity)
      check_probabilities(z_at, counts, n, c, first, count, ValueKind::probability, bad);
    if (p.has_upstream) load_floating(p.upstream, n, c, first, count, up);
    for (int64_t i = count; i < padded; ++i) z[i] = t[i] = w[i] = up[i] = 0;
    return weighted;
  }

  void aim(const Job& job, int64_t n, int64_t c, int64_t first) {
    out_at = padded == count ? in_place<Real>(job.problem->output, n, c, first) : nullptr;
    if (!out_at) out_at = out;
  }
  void store(const Job& job, int64_t n, int64_t c, int64_t first) {
    if (out_at == out) store_floating(job.problem->output, n, c, first, count, out);
  }
};

// Pixels of weight 0 get 0 before the link, so that what they hold has no effect, even NaN.
template <bool kWeighted, class V>
inline void select_valid(const V& w, V& z, V& t) {
  if (!kWeighted) return;
  auto valid = w != V(0);
  z = select(valid, z, V(0));
  t = select(valid, t, V(0));
}

template <class Real, class Link, class Pointwise, bool kExtra>
struct SigmoidRows {
  using V = Vec<Real>;
  // Whether a gradient needs the probability only: no logarithm, and no logit.
  static constexpr bool kCaches =
      std::is_same_v<Link, Sigmoid> && sizeof(Real) == 4 && !kExtra &&
      (std::is_same_v<Pointwise, NoPointwise> || std::is_same_v<Pointwise, OnePointwise<BceWithLogits>>);

  // The gradient of a pixel's pointwise terms.
  INLINE static V pointwise_gradient(const Job& job, const Real* slopes, const Pixel<Dual<V>>& dual, const V& t) {
    V out = V(0);
    Pointwise::template for_each<Real>(job.plan, [&](const auto& loss, int k) INLINE_LAMBDA {
      Parts<Dual<V>> parts = loss(dual, t);
      out = out + V(slopes[2 * k]) * parts.positive.d[0] + V(slopes[2 * k + 1]) * parts.negative.d[0];
    });
    return out;
  }

  template <Step kStep, bool kWeighted>
  static void sum_tile(const Job& job, const RowTile<Real>& tile, const Real* slopes, Sum<Real>& weight,
                       Sum<Real>& labels, Sum<Real>* region, Sum<Real> (*pointwise)[2]) {
    const bool regions = job.layout.region_sums > 0, negatives = job.layout.region_sums > kRegionSums;
    for (int64_t i = 0; i < tile.padded; i += V::lanes) {
      V z = V::load(tile.z_at + i), t = V::load(tile.t_at + i);
      V w = kWeighted ? V::load(tile.w + i) : V(1);
      select_valid<kWeighted>(w, z, t);
      Pixel<V> x = Link::pixel(z);
      if (kWeighted) weight.add(w);
      if (job.layout.label_sums) labels.add(kWeighted ? w * t : t);
      if (regions)
        region_sums<kExtra>(w, x.p, x.q, t, negatives, [&](int s, const V& v) INLINE_LAMBDA { region[s].add(v); });
      Pointwise::template for_each<Real>(job.plan, [&](const auto& loss, int k) INLINE_LAMBDA {
        Parts<V> parts = loss(x, t);
        pointwise[k][0].add(kWeighted ? w * parts.positive : parts.positive);
        pointwise[k][1].add(kWeighted ? w * parts.negative : parts.negative);
      });
      if constexpr (kStep == Step::cache) Link::cached(x).store(tile.out_at + i);
      if constexpr (kStep == Step::fused) {
        V out = pointwise_gradient(job, slopes, Link::seed(x), t);
        (kWeighted ? select(w != V(0), w * out, V(0)) : out).store(tile.out_at + i);
      }
    }
  }

  template <Step kStep>
  static void statistics(const Job& job, const Chunk& chunk, double* sums, ValueReport& bad) {
    const int64_t classes = job.problem->classes, n = chunk.domain / classes, c = chunk.domain % classes;
    Sum<Real> weight, labels, region[kExtraSums], pointwise[kMaxPointwise][2];
    constexpr bool kWrites = kStep != Step::statistics;
    const Real* slopes =
        static_cast<const Real*>(job.slopes) + (kStep == Step::fused ? chunk.domain * job.layout.domain_slopes() : 0);
    double whole = 0;
    int64_t groups = 0;
    RowTile<Real> tile;
    const auto flush = [&] {
      weight.flush();
      labels.flush();
      for (int s = 0; s < job.layout.region_sums; ++s) region[s].flush();
      for (int k = 0; k < job.plan.pointwise_count; ++k) pointwise[k][0].flush(), pointwise[k][1].flush();
      groups = 0;
    };
    for (int64_t done = 0; done < chunk.count; done += RowTile<Real>::kSize) {
      const int64_t count = smaller(RowTile<Real>::kSize, chunk.count - done);
      if (groups + RowTile<Real>::kSize / V::lanes > kAddsPerFlush) flush();
      const bool weighted = tile.load(job, job.problem->logits, n, c, chunk.first + done, count, true, bad);
      if (kWrites) tile.aim(job, n, c, chunk.first + done);
      if (weighted) {
        sum_tile<kStep, true>(job, tile, slopes, weight, labels, region, pointwise);
      } else {
        sum_tile<kStep, false>(job, tile, slopes, weight, labels, region, pointwise);
        whole += double(count);
      }
      if (kWrites) tile.store(job, n, c, chunk.first + done);
      groups += tile.padded / V::lanes;
    }
    flush();
    *sums++ = whole + weight.total;
    for (int k = 0; k < job.plan.pointwise_count; ++k) *sums++ = pointwise[k][0].total, *sums++ = pointwise[k][1].total;
    if (job.layout.label_sums) *sums++ = labels.total;
    for (int s = 0; s < job.layout.region_sums; ++s) *sums++ = region[s].total;
  }

  // The loss of each pixel (Step::values) or its gradient.
  template <Step kStep, bool kWeighted>
  static void write_tile(const Job& job, const RowTile<Real>& tile, const Real* slopes) {
    constexpr bool kGradient = kStep != Step::values;
    const bool regions = kGradient && job.layout.region_slopes > 0,
               has_upstream = kGradient && job.problem->has_upstream;
    const Real* r = slopes + 2 * job.plan.pointwise_count;
    RowSlopes<V> row = regions ? RowSlopes<V>::of(r) : RowSlopes<V>{};
    for (int64_t i = 0; i < tile.padded; i += V::lanes) {
      V z = V::load(tile.z_at + i), t = V::load(tile.t_at + i);
      V w = kWeighted ? V::load(tile.w + i) : V(1);
      select_valid<kWeighted>(w, z, t);
      Pixel<V> x = pixel<kStep>(z);
      V out = V(0);
      if constexpr (kGradient) {
        Pixel<Dual<V>> dual = Link::seed(x);
        if (regions) out = region_slope<kExtra>(row, x.p, x.q, t) * dual.p.d[0];
        out = out + pointwise_gradient(job, slopes, dual, t);
        if (has_upstream) out = out * V::load(tile.up + i);
      } else {
        Pointwise::template for_each<Real>(job.plan, [&](const auto& loss, int k) INLINE_LAMBDA {
          Parts<V> parts = loss(x, t);
          out = out + V(slopes[2 * k]) * parts.positive + V(slopes[2 * k + 1]) * parts.negative;
        });
      }
      if (kWeighted) out = select(w != V(0), w * out, V(0));
      out.store(tile.out_at + i);
    }
  }

  template <Step kStep>
  INLINE static Pixel<V> pixel(const V& z) {
    if constexpr (kStep == Step::from_cache)
      return Link::from_cache(z);
    else
      return Link::pixel(z);
  }

  template <Step kStep>
  static void write(const Job& job, const Chunk& chunk, double*, ValueReport& bad) {
    const int64_t classes = job.problem->classes, n = chunk.domain / classes, c = chunk.domain % classes;
    const Real* slopes = static_cast<const Real*>(job.slopes) + chunk.domain * job.layout.domain_slopes();
    const View& logits = kStep == Step::from_cache ? job.problem->output : job.problem->logits;
    RowTile<Real> tile;
    for (int64_t done = 0; done < chunk.count; done += RowTile<Real>::kSize) {
      const int64_t first = chunk.first + done, count = smaller(RowTile<Real>::kSize, chunk.count - done);
      const bool weighted = tile.load(job, logits, n, c, first, count, false, bad);
      tile.aim(job, n, c, first);
      if (weighted)
        write_tile<kStep, true>(job, tile, slopes);
      else
        write_tile<kStep, false>(job, tile, slopes);
      tile.store(job, n, c, first);
    }
  }

  static ChunkFunction step(Step s) {
    switch (s) {
      case Step::statistics:
        return &statistics<Step::statistics>;
      case Step::values:
        return &write<Step::values>;
      case Step::gradient:
        return &write<Step::gradient>;
      case Step::fused:
        if constexpr (sizeof(Real) == 4 && !kExtra) return &statistics<Step::fused>;
        return nullptr;
      case Step::cache:
        if constexpr (kCaches) return &statistics<Step::cache>;
        return nullptr;
      case Step::from_cache:
        if constexpr (kCaches) return &write<Step::from_cache>;
        return nullptr;
    }
    __builtin_unreachable();
  }
};

}  // namespace
}  // namespace segfuse
