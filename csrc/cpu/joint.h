// The engine for classes that share a pixel (multiclass): a tile holds all classes of some pixels of one sample.
//   JointTile   the tile and the softmax normaliser
//   LabelMap    softmax, class indices, sums of products: everything a pixel needs of its label is done once per pixel
//   AnyJoint    every other plan: soft labels, smoothing, squared and L1 statistics, probabilities
#pragma once

#include "../pixel.h"
#include "points.h"
#include "scratch.h"
#include "source.h"
#include "sum.h"
#include "vec.h"

namespace segfuse {
namespace {

template <class Real>
struct JointTile {
  using V = Vec<Real, kJointRegisters>;
  static constexpr int64_t kBytes = 24576;  // of logits in a tile: with what is beside it, inside the second cache

  const Job& job;
  const Problem& p;
  int64_t classes, size, count = 0, padded = 0;
  Scratch scratch;
  Real *e, *y, *w, *up, *out, *z = nullptr, *t = nullptr;

  // kEverything: keep logits and labels beside the exponentials.
  JointTile(const Job& j, bool everything) : job(j), p(*j.problem), classes(p.classes) {
    size = kBytes / int64_t(sizeof(Real)) / classes / V::lanes * V::lanes;
    size = size < V::lanes ? V::lanes : size > 512 ? 512 : size;
    e = scratch.get<Real>(classes * size);
    y = scratch.get<Real>(size);
    w = scratch.get<Real>(size);
    up = scratch.get<Real>(size);
    out = scratch.get<Real>(size);
    if (everything) {
      z = scratch.get<Real>(classes * size);
      t = scratch.get<Real>(classes * size);
    }
  }

  void load(int64_t n, int64_t first, int64_t n_pixels, LabelReport& bad) {
    count = n_pixels;
    padded = (count + V::lanes - 1) / V::lanes * V::lanes;
    if (p.has_weight)
      load_weight(p.weight, n, 0, first, count, w);
    else
      for (int64_t i = 0; i < count; ++i) w[i] = 1;
    if (p.label_map) {
      load_labels(p.target, n, 0, first, count, classes, job.has_ignore, job.ignore_index, y, w, bad);
    } else {
      for (int64_t c = 0; c < classes; ++c)
        if (p.hard_target) {
          // One-hot integers: 0 and 1, no ignore index.
          load_labels(p.target, n, c, first, count, 2, false, 0, t + c * size, w, bad);
        } else {
          load_floating(p.target, n, c, first, count, t + c * size);
        }
    }
    if (p.has_upstream) load_floating(p.upstream, n, 0, first, count, up);
    for (int64_t i = count; i < padded; ++i) y[i] = w[i] = up[i] = 0;
    Real* logits = z ? z : e;
    bool all = padded == count;
    for (int64_t i = 0; i < padded; ++i) all = all && w[i] != 0;
    for (int64_t c = 0; c < classes; ++c) {
      Real* row = logits + c * size;
      load_floating(p.logits, n, c, first, count, row);
      if (all) continue;
      // Pixels of weight 0 are selected out: what stands there is not read into anything.
      for (int64_t i = 0; i < padded; ++i) row[i] = w[i] != 0 ? row[i] : Real(0);
      if (!p.label_map)
        for (int64_t i = 0; i < padded; ++i) t[c * size + i] = w[i] != 0 ? t[c * size + i] : Real(0);
    }
  }

  // Exponentials into `e` (from `logits`, which may be `e`), and what the classes of each pixel share. On the way,
  // own_logit gets the logit of class y.
  Normaliser<V> normalise(const Real* logits, int64_t i, const V& y, V& own_logit) {
    Normaliser<V> n;
    n.peak = own_logit = V::load(logits + i);
    n.peak_class = V(0);
    for (int64_t c = 1; c < classes; ++c) {
      const V x = V::load(logits + c * size + i), label = V(double(c));
      const auto higher = x > n.peak;
      n.peak = select(higher, x, n.peak);
      n.peak_class = select(higher, label, n.peak_class);
      own_logit = select(y == label, x, own_logit);
    }
    n.rest = sum_classes(classes, [&](int64_t c) {
      const V d = V::load(logits + c * size + i) - n.peak;
      const V x = exp_nonpositive(d);
      x.store(e + c * size + i);
      // Of the peak class only its difference is added: 0, or the NaN of inf - inf.
      return select(n.peak_class == V(double(c)), d, x);
    });
    n.finish();
    return n;
  }

  void store(const View& view, int64_t n) const {
    for (int64_t c = 0; c < classes; ++c) store_floating(view, n, c, first_stored, count, e + c * size);
  }
  int64_t first_stored = 0;
};

// Sums per class, kept as one register each between tiles.
template <class Real>
struct ClassSums {
  int64_t n;
  Reg<Real>* lanes;
  double* total;

  ClassSums(Scratch& scratch, int64_t n_sums) : n(n_sums) {
    lanes = scratch.get<Reg<Real>>(n);
    total = scratch.get<double>(n);
    for (int64_t i = 0; i < n; ++i) lanes[i] = Reg<Real>::set(Real(0)), total[i] = 0;
  }
  void flush() {
    for (int64_t i = 0; i < n; ++i) total[i] += sum_lanes(lanes[i]), lanes[i] = Reg<Real>::set(Real(0));
  }
};

// The walk over the tiles of a chunk that both engines share: Engine::sum_tile, Engine::gradient_tile.
template <class Engine, class Real>
struct JointSteps {
  using V = Vec<Real, kJointRegisters>;

  static void statistics(const Job& job, const Chunk& chunk, double* sums, LabelReport& bad) {
    JointTile<Real> tile(job, Engine::kEverything);
    ClassSums<Real> region(tile.scratch, tile.classes * job.region_sums);
    Sum<Real> weight, point[kMaxPoints][2];
    int64_t groups = 0;
    const auto flush = [&] {
      weight.flush();
      region.flush();
      for (int k = 0; k < job.points; ++k) point[k][0].flush(), point[k][1].flush();
      groups = 0;
    };
    for (int64_t done = 0; done < chunk.count; done += tile.size) {
      if (groups + tile.size / V::lanes > kAddsPerFlush) flush();
      tile.load(chunk.unit, chunk.first + done, smaller(tile.size, chunk.count - done), bad);
      Engine::sum_tile(job, tile, weight, region, point);
      groups += tile.padded / V::lanes;
    }
    flush();
    *sums++ = weight.total;
    for (int k = 0; k < job.points; ++k) *sums++ = point[k][0].total, *sums++ = point[k][1].total;
    for (int64_t i = 0; i < region.n; ++i) *sums++ = region.total[i];
  }

  static void gradient(const Job& job, const Chunk& chunk, double*, LabelReport& bad) {
    JointTile<Real> tile(job, Engine::kEverything);
    const Real* slopes = static_cast<const Real*>(job.slopes) + chunk.unit * job.unit_slopes;
    for (int64_t done = 0; done < chunk.count; done += tile.size) {
      tile.first_stored = chunk.first + done;
      tile.load(chunk.unit, tile.first_stored, smaller(tile.size, chunk.count - done), bad);
      for (int64_t i = 0; i < tile.padded; i += V::lanes) Engine::gradient_group(job, tile, slopes, i);
      tile.store(job.problem->output, chunk.unit);
    }
  }

  static V scale(const Job& job, int k, const V& y) {
    return job.class_scale[k] ? V::lookup(static_cast<const Real*>(job.class_scale[k]), y) : V(1);
  }
  static V weighted_upstream(const Job& job, const JointTile<Real>& tile, int64_t i) {
    const V w = V::load(tile.w + i);
    return job.problem->has_upstream ? select(w != V(0), w * V::load(tile.up + i), V(0)) : w;
  }
};

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
    const V present = V::lookup(row, own.y * V(5));
    const V reference = select(own.is_peak, present, V::lookup(row + 1, n.peak_class * V(5)));
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
      V unused;
      if constexpr (kSoftmax) n = t.normalise(t.z, at, y, unused);
    }
    Pixel<V> pixel(int64_t c) const {
      const V z = V::load(tile.z + c * tile.size + i);
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
  struct IsSoftmax {
    static constexpr bool test(Softmax*) { return true; }
    static constexpr bool test(Identity*) { return false; }
  };
  static constexpr bool kSoftmax = IsSoftmax::test(static_cast<Link*>(nullptr));

  static V class_scale(const Job& job, int k, int64_t c) {
    return job.class_scale[k] ? V(static_cast<const Real*>(job.class_scale[k])[c]) : V(1);
  }

  static void sum_tile(const Job& job, JointTile<Real>& tile, Sum<Real>& weight, ClassSums<Real>& region,
                       Sum<Real> (*point)[2]) {
    for (int64_t i = 0; i < tile.padded; i += V::lanes) {
      const Group group(tile, i);
      ClassTotal<V> loss_of[kMaxPoints];
      weight.add(group.w);
      for (int64_t c = 0; c < tile.classes; ++c) {
        const Pixel<V> x = group.pixel(c);
        const V t = group.label(c);
        if (job.region_sums)
          region_sums<kExtra>(group.w, x.p, x.q, t, [&](int s, const V& v) {
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

  static void gradient_group(const Job& job, JointTile<Real>& tile, const Real* slopes, int64_t i) {
    const Group group(tile, i);
    const V w = Steps::weighted_upstream(job, tile, i), zero = V(0);
    const bool regions = job.region_slopes > 0;
    V reference = zero;
    ClassTotal<V> owns;
    // Each class's slopes take the place of its logit and label.
    for (int64_t c = 0; c < tile.classes; ++c) {
      const Pixel<V> x = group.pixel(c);
      const Pixel<Dual<V>> dual = Link::seed(x);
      const V t = group.label(c);
      V slope = zero, own = zero;
      if (regions) {
        const Real* r = slopes + 2 * job.points + c * job.region_slopes;
        slope = region_slope<kExtra>(RowSlopes<V>{V(r[0]), V(r[1]), V(r[2]), V(r[3]), V(r[4])}, x.p, x.q, t);
      }
      AnyPoints::for_each<Real>(job, [&](const auto& loss, int k) {
        own = own + V(slopes[2 * k]) * class_scale(job, k, c) * loss(dual, t).positive.d[0];
      });
      if constexpr (kSoftmax) {
        reference = select(group.n.peak_class == V(double(c)), slope, reference);
        owns.add(own);
        slope.store(tile.t + c * tile.size + i);
        own.store(tile.z + c * tile.size + i);
      } else {
        masked_product(w, slope + own).store(tile.e + c * tile.size + i);
      }
    }
    if constexpr (kSoftmax) {
      const V total = owns.total();
      ClassTotal<V> sum;
      const auto at = [&](int64_t c) { return c * tile.size + i; };
      for (int64_t c = 0; c < tile.classes; ++c)
        sum.add(V::load(tile.e + at(c)) * (V::load(tile.t + at(c)) - reference));
      const V mean = sum.total() * group.n.inverse;
      for (int64_t c = 0; c < tile.classes; ++c) {
        const V own = V::load(tile.z + at(c));
        const Pixel<V> x = Softmax::pixel(group.n, V::load(tile.e + at(c)), zero, group.n.peak_class == V(double(c)));
        const V g = softmax_pull_back(x.p, x.q, V::load(tile.t + at(c)) - reference, mean, own, total - own);
        masked_product(w, g).store(tile.e + at(c));
      }
    }
  }

  // The loss of each pixel, its classes added.
  static void values(const Job& job, const Chunk& chunk, double*, LabelReport& bad) {
    JointTile<Real> tile(job, true);
    const Real* slopes = static_cast<const Real*>(job.slopes) + chunk.unit * job.unit_slopes;
    for (int64_t done = 0; done < chunk.count; done += tile.size) {
      tile.load(chunk.unit, chunk.first + done, smaller(tile.size, chunk.count - done), bad);
      for (int64_t i = 0; i < tile.padded; i += V::lanes) {
        const Group group(tile, i);
        ClassTotal<V> sum;
        for (int64_t c = 0; c < tile.classes; ++c)
          AnyPoints::for_each<Real>(job, [&](const auto& loss, int k) {
            sum.add(V(slopes[2 * k]) * class_scale(job, k, c) * loss(group.pixel(c), group.label(c)).positive);
          });
        masked_product(group.w, sum.total()).store(tile.out + i);
      }
      store_floating(job.problem->output, chunk.unit, 0, chunk.first + done, tile.count, tile.out);
    }
  }
};

}  // namespace
}  // namespace segfuse
