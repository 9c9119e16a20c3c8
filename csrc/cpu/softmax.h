// Multiclass: the classes share a pixel, so a tile holds all classes of some pixels of one sample. Here are the tile,
// the softmax normaliser and the loop over a chunk. The engines label_map.h and softmax_general.h fill in its steps.
#pragma once

#include "../pixel.h"
#include "any_pointwise.h"
#include "scratch.h"
#include "source.h"
#include "sum.h"
#include "vec_math.h"

namespace segfuse {
namespace {

template <class Real>
struct SoftmaxTile {
  using V = Vec<Real, kSoftmaxRegisters>;
  // Bytes of the arrays with one value per class. They fit into the second cache, not the first: planes lie far apart,
  // and runs of less than a page or two from each of them are read 1.2 to 1.4 times slower (measured against 24 KB).
  static constexpr int64_t kBytes = 131072;

  const Job& job;
  const Problem& p;
  int64_t classes, size, count = 0, padded = 0;
  Scratch scratch;
  // The logits of class c are at z_at + c z_step: in the tensor, or copied into the tile. So is the output.
  const Real* z_at;
  Real* out_at;
  int64_t z_step, out_step;
  bool left_out;  // whether any pixel has weight 0, those that fill up the last vector included
  Prefetcher next_labels, next_logits;
  // Arrays of the tile. group: of one vector of pixels.
  Real *e, *y, *w, *up, *out, *at_positive, *at_negative, *group, *z = nullptr, *t = nullptr;

  // everything: keep logits and labels beside the exponentials.
  SoftmaxTile(const Job& j, bool everything) : job(j), p(*j.problem), classes(p.classes) {
    size = kBytes / int64_t(sizeof(Real)) / ((everything ? 3 : 1) * classes) / V::lanes * V::lanes;
    size = smaller(smaller(4096, kAddsPerFlush * V::lanes), size < V::lanes ? V::lanes : size);
    e = scratch.get<Real>(classes * size);
    y = scratch.get<Real>(size);
    w = scratch.get<Real>(size);
    up = scratch.get<Real>((p.has_upstream && is_per_class() ? classes : 1) * size);
    out = scratch.get<Real>(size);
    at_positive = scratch.get<Real>(V::table_size(classes));
    at_negative = scratch.get<Real>(classes);
    group = scratch.get<Real>(classes * V::lanes);
    for (int64_t i = 0; i < size; ++i) y[i] = 0;  // soft labels do not fill it
    if (everything) {
      z = scratch.get<Real>(classes * size);
      t = scratch.get<Real>(classes * size);
    }
  }

  // Whether each class has an upstream gradient of its own (of an unreduced loss).
  bool is_per_class() const { return job.plan.pointwise_count > 0 && job.plan.pointwise[0].every_class; }

  // checks: as in RowTile (sigmoid.h).
  void load(const View& logits, int64_t n, int64_t first, int64_t n_pixels, bool checks, ValueReport& bad) {
    count = n_pixels;
    padded = (count + V::lanes - 1) / V::lanes * V::lanes;
    if (p.has_weight)
      load_weight(p.weight, n, 0, first, count, w);
    else
      for (int64_t i = 0; i < count; ++i) w[i] = 1;
    if (p.label_map && p.hard_target) {
      load_labels(p.target, n, 0, first, count, classes, job.plan.has_ignore, job.plan.ignore_index, y, w, bad);
    } else if (p.label_map) {
      load_float_labels(p.target, n, first, count, classes, job.plan.has_ignore, job.plan.ignore_index, y, w, bad);
    } else {
      if (!p.hard_target) load_classes(p.target, n, first, count, classes, t, size);
      for (int64_t c = 0; p.hard_target && c < classes; ++c)  // one-hot integers: 0 and 1, no ignore index
        load_labels(p.target, n, c, first, count, 2, false, 0, t + c * size, w, bad);
    }
    for (int64_t c = 0; p.has_upstream && c < (is_per_class() ? classes : 1); ++c) {
      load_floating(p.upstream, n, c, first, count, up + c * size);
      for (int64_t i = count; i < padded; ++i) up[c * size + i] = 0;
    }
    for (int64_t i = count; i < padded; ++i) y[i] = w[i] = 0;
    uint32_t any_left_out = padded != count;
    if (p.has_weight || job.plan.has_ignore)
      for (int64_t i = 0; i < padded; ++i) any_left_out |= uint32_t(w[i] == 0);
    left_out = any_left_out;
    const Real* in_memory = z || padded != count ? nullptr : in_place<Real>(logits, n, 0, first);
    Real* const copy = z ? z : e;
    z_at = in_memory ? in_memory : copy;
    z_step = in_memory ? logits.class_stride : size;
    if (!in_memory) load_classes(logits, n, first, count, classes, copy, size);
    next_labels = p.label_map ? Prefetcher(p.target, n, first + size, 1) : Prefetcher();
    next_logits = in_memory ? Prefetcher() : Prefetcher(logits, n, first + size, classes);
    // Pixels of weight 0 get 0, so that what they hold has no effect, even NaN.
    if (z && left_out) {
      clear_left_out(z);
      if (!p.label_map) clear_left_out(t);
    }
    for (int64_t c = 0; checks && z && c < classes; ++c) {
      if (!p.label_map && !p.hard_target)
        check_probabilities(t + c * size, w, n, c, first, count, ValueKind::soft_label, bad);
      if (job.plan.link == LinkKind::identity)
        check_probabilities(z + c * size, w, n, c, first, count, ValueKind::probability, bad);
    }
  }
  void clear_left_out(Real* rows) const {
    for (int64_t c = 0; c < classes; ++c, rows += size)
      for (int64_t i = 0; i < padded; ++i) rows[i] = w[i] != 0 ? rows[i] : Real(0);
  }
  INLINE void prefetch_next(int64_t i) const {
    next_labels.ask(i, V::lanes);
    next_logits.ask(i, V::lanes);
  }
  INLINE typename V::Mask valid(int64_t i) const { return V::load(w + i) != V(0); }

  // Writes exponentials to `e` (from `logits`, which may be `e`). Returns what the classes of each pixel share.
  Normaliser<V> normalise(const Real* logits, int64_t i) {
    Normaliser<V> n;
    n.peak = V::load(logits + i);
    n.peak_class = V(0);
    for (int64_t c = 1; c < classes; ++c) {
      V x = V::load(logits + c * size + i);
      auto higher = x > n.peak;
      n.peak = select(higher, x, n.peak);
      n.peak_class = select(higher, V(double(c)), n.peak_class);
    }
    n.rest = sum_classes(classes, [&](int64_t c) {
      V d = V::load(logits + c * size + i) - n.peak;
      V x = exp_nonpositive(d);
      x.store(e + c * size + i);
      // The peak class adds its difference, not its exponential: 0, or the NaN of inf - inf.
      return select(n.peak_class == V(double(c)), d, x);
    });
    n.finish();
    return n;
  }

  void aim(int64_t n) {
    Real* in_memory = padded == count ? in_place<Real>(p.output, n, 0, first_stored) : nullptr;
    out_at = in_memory ? in_memory : e;
    out_step = in_memory ? p.output.class_stride : size;
  }
  void store(int64_t n) const {
    if (out_at == e) store_classes(p.output, n, first_stored, count, classes, e, size);
  }
  int64_t first_stored = 0;
};

// Sums per class. Between tiles each is one register of partial sums.
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

// The loop over the tiles of a chunk. It calls Engine::sum_tile and Engine::gradient_group.
template <class Engine, class Real>
struct SoftmaxSteps {
  using V = Vec<Real, kSoftmaxRegisters>;

  template <Step kStep>
  static void statistics(const Job& job, const Chunk& chunk, double* sums, ValueReport& bad) {
    SoftmaxTile<Real> tile(job, Engine::kEverything);
    ClassSums<Real> region(tile.scratch, tile.classes * job.layout.region_sums);
    Sum<Real> weight, pointwise[kMaxPointwise][2];
    constexpr bool kWrites = kStep != Step::statistics;
    const Real* slopes =
        static_cast<const Real*>(job.slopes) + (kStep == Step::fused ? chunk.domain * job.layout.domain_slopes() : 0);
    int64_t groups = 0;
    const auto flush = [&] {
      weight.flush();
      region.flush();
      for (int k = 0; k < job.plan.pointwise_count; ++k) pointwise[k][0].flush(), pointwise[k][1].flush();
      groups = 0;
    };
    for (int64_t done = 0; done < chunk.count; done += tile.size) {
      if (groups + tile.size / V::lanes > kAddsPerFlush) flush();
      tile.first_stored = chunk.first + done;
      tile.load(tile.p.logits, chunk.domain, tile.first_stored, smaller(tile.size, chunk.count - done), true, bad);
      if (kWrites) tile.aim(chunk.domain);
      Engine::template sum_tile<kStep>(job, tile, slopes, weight, region, pointwise);
      if (kWrites) tile.store(chunk.domain);
      groups += tile.padded / V::lanes;
    }
    flush();
    *sums++ = weight.total;
    for (int k = 0; k < job.plan.pointwise_count; ++k) *sums++ = pointwise[k][0].total, *sums++ = pointwise[k][1].total;
    for (int64_t i = 0; i < region.n; ++i) *sums++ = region.total[i];
  }

  template <Step kStep>
  static void gradient(const Job& job, const Chunk& chunk, double*, ValueReport& bad) {
    SoftmaxTile<Real> tile(job, Engine::kEverything);
    const View& logits = kStep == Step::from_cache ? tile.p.output : tile.p.logits;
    const Real* slopes = static_cast<const Real*>(job.slopes) + chunk.domain * job.layout.domain_slopes();
    Engine::prepare_gradient(job, tile, slopes);
    for (int64_t done = 0; done < chunk.count; done += tile.size) {
      tile.first_stored = chunk.first + done;
      tile.load(logits, chunk.domain, tile.first_stored, smaller(tile.size, chunk.count - done), false, bad);
      tile.aim(chunk.domain);
      for (int64_t i = 0; i < tile.padded; i += V::lanes) {
        tile.prefetch_next(i);
        Engine::template gradient_group<kStep>(job, tile, slopes, i);
      }
      tile.store(chunk.domain);
    }
  }

  INLINE static V scale(const Job& job, int k, const V& y) {
    return job.class_scale[k] ? V::gather(static_cast<const Real*>(job.class_scale[k]), y) : V(1);
  }
  INLINE static V weighted_upstream(const Job& job, const SoftmaxTile<Real>& tile, int64_t i) {
    V w = V::load(tile.w + i);
    return job.problem->has_upstream && !tile.is_per_class() ? select(w != V(0), w * V::load(tile.up + i), V(0)) : w;
  }
};

}  // namespace
}  // namespace segfuse
