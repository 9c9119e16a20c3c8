// The CPU engine for softmax, class indices and sums of products. What depends on a pixel's label is computed once per
// pixel, not per class.
//
// Given:   a tile of a chunk of one sample (softmax.h), its labels and weights loaded.
// Assumes: Plan::fits_label_map, and slopes that are finite. `Pointwise` are the job's terms.
// Writes:  sums into Sum and ClassSums; the gradient to tile.out_at; Step::cache: the powers, there too.
// Called:  by SoftmaxSteps (softmax.h); chosen by find_softmax (isa.h), which sends other plans to softmax_general.h.
#pragma once

#include <type_traits>

#include "softmax.h"

namespace segfuse {
namespace {

template <class Real, class Pointwise>
struct LabelMap : SoftmaxSteps<LabelMap<Real, Pointwise>, Real> {
  using V = Vec<Real, kSoftmaxRegisters>;
  using Steps = SoftmaxSteps<LabelMap<Real, Pointwise>, Real>;
  static constexpr bool kEverything = false;

  // Where a step puts the powers of the vector at i. Step::cache keeps them in the gradient's place. Step::statistics
  // keeps them for the sums over classes. Other steps read them at once: the first cache holds tile.group.
  struct Powers {
    Real* at;
    int64_t step;
  };
  template <Step kStep>
  INLINE static Powers powers(const SoftmaxTile<Real>& tile, int64_t i) {
    if constexpr (kStep == Step::cache)
      return {tile.out_at + i, tile.out_step};
    else if constexpr (kStep == Step::statistics)
      return {tile.e + i, tile.size};
    else
      return {tile.group, V::lanes};
  }

  // The label's class of each pixel. The logits of the tile become powers (Exponents), and 0 in the label's class.
  // Step::cache leaves the exponent there instead of 0: the x of a gradient is made from it.
  struct LabelClass {
    V y, inverse, average;  // of the powers
    Pixel<V> x;
    typename V::Mask unlikely;  // where the label's power is below the average

    // kSelects: logits of pixels of weight 0 are replaced by 0, so that they have no effect, even NaN.
    template <Step kStep, bool kSelects>
    INLINE LabelClass(const SoftmaxTile<Real>& tile, int64_t i, std::integral_constant<Step, kStep>,
                      std::bool_constant<kSelects>) {
      y = V::load(tile.y + i);
      auto valid = tile.valid(i);
      const auto logit = [&](const Real* p) INLINE_LAMBDA {
        V z = V::load(p);
        return kSelects ? select(valid, z, V(0)) : z;
      };
      const Real* z = tile.z_at + i;
      int64_t z_step = tile.z_step;
      const int64_t classes = tile.classes;
      V log2_label = V(0), rest;
      if constexpr (kStep == Step::from_cache) {
        rest = sum_others<kStep>(tile, i, log2_label, [&](int64_t c) INLINE_LAMBDA { return V::load(z + c * z_step); });
      } else {
        V peak = logit(z);
        for (int64_t c = 1; c < classes; ++c) peak = max(peak, logit(z + c * z_step));
        if (any(V(Base2<Real>::largest) < abs(peak))) {
          const Powers differences = powers<kStep>(tile, i);
          subtract(z, z_step, peak, differences.at, differences.step, classes);
          z = differences.at, z_step = differences.step, peak = V(0);
        }
        const Exponents<Real, V> exponent(peak);
        rest = sum_others<kStep>(tile, i, log2_label, [&](int64_t c) INLINE_LAMBDA {
          prefetch<V>(z + c * z_step);
          return exponent.of(logit(z + c * z_step));
        });
      }
      V power = fast_exp2(log2_label);
      Pixel<V> found = Softmax::of_label<Real>(power, rest, log2_label, inverse);
      // Copied member by member: GCC 12 copies a whole pixel through memory.
      x.z = found.z, x.p = found.p, x.q = found.q;
      x.minus_log_p = found.minus_log_p, x.minus_log_q = found.minus_log_q;
      average = (power + rest) * V(1.0 / double(classes));
      unlikely = power < average;
    }

    // Stores the powers, and returns the sum of those of the other classes. exponent(c) is the exponent of class c; in
    // what Step::cache left it is the power, except in the label's class.
    template <Step kStep, class Exponent>
    INLINE V sum_others(const SoftmaxTile<Real>& tile, int64_t i, V& log2_label, const Exponent& exponent) const {
      const Powers e = powers<kStep>(tile, i);
      V label = V(0);
      return sum_classes(tile.classes, [&](int64_t c) INLINE_LAMBDA {
        V d = exponent(c), power = kStep == Step::from_cache ? d : fast_exp2(d);
        auto here = y == label;
        log2_label = select(here, d, log2_label);
        label = label + V(1);
        V other = select(here, V(0), power);
        (kStep == Step::cache ? select(here, d, power) : other).store(e.at + c * e.step);
        if (kStep == Step::cache) prefetch<V>(e.at + c * e.step);
        return other;
      });
    }
  };

  // For huge logits only. It is not inlined, so that usual logits do not pay for it.
  [[gnu::noinline]] static void subtract(const Real* z, int64_t z_step, V peak, Real* out, int64_t step,
                                         int64_t classes) {
    for (int64_t c = 0; c < classes; ++c) (V::load(z + c * z_step) - peak).store(out + c * step);
  }

  template <Step kStep>
  static void sum_tile(const Job& job, const SoftmaxTile<Real>& tile, const Real* slopes, Sum<Real>& weight,
                       ClassSums<Real>& region, Sum<Real> (*pointwise)[2]) {
    if (tile.left_out)
      sum_pixels<kStep>(job, tile, slopes, weight, pointwise, std::true_type());
    else
      sum_pixels<kStep>(job, tile, slopes, weight, pointwise, std::false_type());
    if (region.n) sum_classes_of<kStep>(job, tile, region);
  }

  // Here and below the tile's members are read before a loop, not in it: a store of a vector may alias them, so the
  // compiler would read them again.
  template <Step kStep, class Selects>
  static void sum_pixels(const Job& job, const SoftmaxTile<Real>& tile, const Real* slopes, Sum<Real>& weight,
                         Sum<Real> (*pointwise)[2], Selects selects) {
    Real *const w_at = tile.w, *const inverse_at = tile.up, *const q_at = tile.out;
    const int64_t padded = tile.padded;
    for (int64_t i = 0; i < padded; i += V::lanes) {
      tile.prefetch_next(i);
      LabelClass label(tile, i, std::integral_constant<Step, kStep>(), selects);
      V w = V::load(w_at + i);
      weight.add(w);
      Pointwise::template for_each<Real>(job.plan, [&](const auto& loss, int k) INLINE_LAMBDA {
        V scale = Steps::scale(job, k, label.y);
        pointwise[k][0].add(w * scale * loss(label.x, V(1)).positive);
        pointwise[k][1].add(job.plan.pointwise[k].weight_in_denominator ? w * scale : w);
      });
      if constexpr (kStep == Step::fused)
        write_pointwise<kStep>(tile, label, w, pointwise_slope(job, slopes, label), i);
      if (job.layout.region_sums == 0) continue;
      (w * label.inverse).store(inverse_at + i);
      (w * label.x.p).store(w_at + i);
      (w * label.x.q).store(q_at + i);
    }
  }

  template <Step kStep>
  static void sum_classes_of(const Job& job, const SoftmaxTile<Real>& tile, ClassSums<Real>& region) {
    const int64_t rest = tile.classes % kClassBlock, whole = tile.classes - rest;
    for (int64_t c = 0; c < whole; c += kClassBlock) sum_block<kStep, kClassBlock>(job, tile, c, region);
    if (rest >= 2) sum_block<kStep, 2>(job, tile, whole, region);
    if (rest % 2) sum_block<kStep, 1>(job, tile, tile.classes - 1, region);
  }

  // TP, FP and FN of some classes, in a register each. What a pixel has for all of these classes is loaded once.
  template <Step kStep, int kClasses>
  static void sum_block(const Job& job, const SoftmaxTile<Real>& tile, int64_t c, ClassSums<Real>& region) {
    using Block = Vec<Real, kClasses>;
    using Register = Reg<Real>;
    constexpr int64_t lanes = Register::lanes;
    const int64_t padded = tile.padded, sums = job.layout.region_sums;
    const Real *const w_at = tile.w, *const inverse_at = tile.up, *const q_at = tile.out, *const y_at = tile.y;
    const Powers kept = powers<kStep>(tile, 0);
    const Real* const e = kept.at + c * kept.step;
    alignas(64) Real label[kClasses * lanes];
    for (int64_t i = 0; i < kClasses * lanes; ++i) label[i] = Real(c + i / lanes);
    const Block labels = Block::load(label);
    Real* const at = reinterpret_cast<Real*>(region.lanes + c * sums);  // a label map needs no kTn: row_scores.h
    for (int64_t i = 0; i < padded;) {
      Block tp = Block(0), fp = Block(0), fn = Block(0);
      for (const int64_t end = smaller(padded, i + kAddsPerFlush * lanes); i < end; i += lanes) {
        auto here = Block::same(Register::load(y_at + i)) == labels;
        Block more = fma(Block::load(e + i, kept.step), Block::same(Register::load(inverse_at + i)), fp);
        fp = kStep == Step::cache ? select(here, fp, more) : more;
        tp = add_where(here, tp, Block::same(Register::load(w_at + i)));
        fn = add_where(here, fn, Block::same(Register::load(q_at + i)));
      }
      const auto add = [&](int64_t s, const Block& more) INLINE_LAMBDA {
        (Block::load(at + s * lanes, sums * lanes) + more).store(at + s * lanes, sums * lanes);
      };
      add(kTp, tp), add(kFp, fp), add(kFn, fn);
    }
  }

  // Copies the region slopes, so that those of neighbouring classes are neighbours in memory.
  static void prepare_gradient(const Job& job, SoftmaxTile<Real>& tile, const Real* slopes) {
    const Real* row = slopes + 2 * job.plan.pointwise_count;
    for (int64_t c = 0; job.layout.region_slopes && c < tile.classes; ++c) {
      tile.at_positive[c] = row[kRegionSlopes * c + kAtPositive];
      tile.at_negative[c] = row[kRegionSlopes * c + kAtNegative];
    }
  }

  template <Step kStep>
  static void gradient_group(const Job& job, const SoftmaxTile<Real>& tile, const Real* slopes, int64_t i) {
    if (kStep != Step::from_cache && tile.left_out)
      write_group<kStep>(job, tile, slopes, i, std::true_type());
    else
      write_group<kStep>(job, tile, slopes, i, std::false_type());
  }

  // dL/dlog p of the label's class.
  INLINE static V pointwise_slope(const Job& job, const Real* slopes, const LabelClass& label) {
    LabelSlope<V> slope(label.x);
    Pointwise::template for_each<Real>(job.plan, [&](const auto& loss, int k) INLINE_LAMBDA {
      slope.add(loss, V(slopes[2 * k]) * Steps::scale(job, k, label.y));
    });
    return slope.sum;
  }

  template <Step kStep>
  INLINE static void write_pointwise(const SoftmaxTile<Real>& tile, const LabelClass& label, const V& w, const V& slope,
                                     int64_t i) {
    const Powers power = powers<kStep>(tile, i);
    const int64_t classes = tile.classes, step = power.step, out_step = tile.out_step;
    PointwiseGradient<V> dz(w, label.x, label.inverse, slope);
    const Real* e = power.at;
    Real* out = tile.out_at + i;
    V this_class = V(0);
    for (int64_t c = 0; c < classes; ++c, e += step, out += out_step) {
      select(label.y == this_class, dz.at_label, dz.of(V::load(e))).store(out);
      prefetch<V>(out);
      this_class = this_class + V(1);
    }
  }

  template <Step kStep, class Selects>
  static void write_group(const Job& job, const SoftmaxTile<Real>& tile, const Real* slopes, int64_t i,
                          Selects selects) {
    LabelClass label(tile, i, std::integral_constant<Step, kStep>(), selects);
    V w = Steps::weighted_upstream(job, tile, i);
    V slope = pointwise_slope(job, slopes, label);
    if (job.layout.region_slopes == 0) return write_pointwise<kStep>(tile, label, w, slope, i);
    const Powers power = powers<kStep>(tile, i);
    const int64_t classes = tile.classes, step = power.step, out_step = tile.out_step;
    const Real* e = power.at;
    Real* out = tile.out_at + i;
    const Real* const at_negative = tile.at_negative;
    V at_positive = V::lookup(tile.at_positive, label.y, classes),
      reference = reference_of<kStep>(label, tile, at_positive, i);
    V others = sum_classes(
        classes, [&](int64_t c) INLINE_LAMBDA { return V::load(e + c * step) * (V(at_negative[c]) - reference); });
    RegionGradient<V> dz(w, label.x, label.inverse, slope, at_positive, reference, others);
    V this_class = V(0);
    for (int64_t c = 0; c < classes; ++c, e += step, out += out_step) {
      select(label.y == this_class, dz.at_label, dz.of(V::load(e), V(at_negative[c]))).store(out);
      prefetch<V>(out);
      this_class = this_class + V(1);
    }
  }

  // The slope of a class of at least average probability: see softmax_pull_back.
  template <Step kStep>
  INLINE static V reference_of(const LabelClass& label, const SoftmaxTile<Real>& tile, const V& at_positive,
                               int64_t i) {
    V reference = at_positive;
    if (!any(label.unlikely)) return reference;
    const Powers power = powers<kStep>(tile, i);
    const Real *e = power.at, *const at_negative = tile.at_negative;
    for (int64_t c = 0; c < tile.classes; ++c, e += power.step)
      reference = select(V::load(e) < label.average, reference, V(at_negative[c]));
    return select(label.unlikely, reference, at_positive);
  }
};

}  // namespace
}  // namespace segfuse
