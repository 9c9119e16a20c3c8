// The CUDA engine for every multiclass plan: any strides, types and number of classes, soft labels, smoothing, squared
// and L1 statistics, probabilities. It reads each logit a few times; common plans have engines of their own.
//
// Given:   a job, by value; the block's index is the chunk's (in reverse for the gradient).
// Assumes: only that the plan is multiclass.
// Writes:  statistics: the chunk's sums to Job::partial; values, gradient: the chunk's pixels of the output. A bad
// label
//          or probability: NaN in the sums.
// Called:  by kernel<> (kernels.h), as softmax_general.cu lists it; policy.cu sends it what no other engine takes.
#pragma once

#include "../pixel.h"
#include "pointwise_terms.h"
#include "source.h"

namespace segfuse {
namespace {

template <class Real, class Link>
struct SoftmaxGeneral {
  static constexpr bool kSoftmax = Link::kShared;
  static constexpr int kBlock = kThreads, kBlocks = 2;
  static constexpr int kPixels = 4;  // of a thread, in a round
  static constexpr int kSums = kExtraSums > 1 + 2 * kMaxPointwise ? kExtraSums : 1 + 2 * kMaxPointwise;
  static constexpr int kSharedBytes =
      int(sizeof(double)) * kSums * (kWarps + 1) + int(sizeof(Real)) * kPixels * kThreads * 5;

  // A pixel of a sample, class by class.
  struct At {
    const Job& job;
    int64_t n, i;
    Real w;
    int y;
    Normaliser<Real> shared;

    __device__ Real logit(int64_t c) const { return w == Real(0) ? Real(0) : load_logit<Real>(job, n, c, i); }
    __device__ void load() {
      w = load_weight<Real>(job, n, 0, i);
      y = job.problem.label_map ? load_class<Real>(job, n, i, w) : 0;
      if constexpr (!kSoftmax) {  // also for a class that no term reads; NaN reaches the loss by itself
        for (int64_t c = 0; c < job.problem.classes; ++c) {
          const Real p = logit(c);
          if (!is_probability(p) && p == p) w = not_a_number<Real>();
        }
      }
    }
    __device__ void normalise() {
      if constexpr (kSoftmax) {
        shared.peak = logit(0);
        shared.peak_class = Real(0);
        for (int64_t c = 1; c < job.problem.classes; ++c) {
          const Real z = logit(c);
          if (z > shared.peak) shared.peak = z, shared.peak_class = Real(c);
        }
        double rest = 0;
        for (int64_t c = 0; c < job.problem.classes; ++c) {
          const Real d = logit(c) - shared.peak;
          // The peak class adds its difference, not its exponential: 0, or the NaN of inf - inf.
          rest += double(shared.peak_class == Real(c) ? d : exp_nonpositive(d));
        }
        shared.rest = Real(rest);
        shared.finish();
      }
    }
    __device__ Pixel<Real> pixel(int64_t c) const {
      const Real z = logit(c);
      if constexpr (kSoftmax) {
        const Real d = z - shared.peak;
        return Softmax::pixel(shared, exp_nonpositive(d), d, shared.peak_class == Real(c));
      } else {
        return Link::pixel(z);
      }
    }
    __device__ Real label(int64_t c) const {
      if (job.problem.label_map) return y == c ? Real(1) : Real(0);
      if (w == Real(0)) return Real(0);
      Real weight = Real(1);
      return load_label<Real>(job, n, c, i, weight);
    }
  };

  __device__ static void statistics(const Job& job) {
    double* totals = reinterpret_cast<double*>(shared_memory());
    double* staging = totals + kSums;
    Real* column = reinterpret_cast<Real*>(staging + kSums * kWarps) + threadIdx.x;
    const Chunk chunk = job.chunks.at(blockIdx.x);
    const Layout& layout = job.layout;
    const ChunkSums out = sums_of_chunk(job, blockIdx.x);
    const auto bring = [&](const auto& value, int count, const ChunkSums& to, bool first) {
      if (int(threadIdx.x) < count) totals[threadIdx.x] = first ? 0 : to[threadIdx.x];
      add_over_block(value, count, totals, staging);
      if (int(threadIdx.x) < count) to[threadIdx.x] = totals[threadIdx.x];
    };
    for (int64_t base = 0; base < chunk.count; base += kPixels * kThreads) {
      const auto visit = [&](int k, const auto& f) {
        const int64_t i = base + k * kThreads + threadIdx.x;
        if (i < chunk.count) f(At{job, chunk.domain, chunk.first + i, Real(0), 0, {}});
      };
      Real group[1 + 2 * kMaxPointwise] = {};
#pragma unroll 1
      for (int k = 0; k < kPixels; ++k)
        visit(k, [&](At at) {
          at.load();
          at.normalise();
          Real* kept = column + k * 5 * kThreads;
          kept[0] = at.w;
          kept[kThreads] = Real(at.y);
          kept[2 * kThreads] = at.shared.peak;
          kept[3 * kThreads] = at.shared.peak_class;
          kept[4 * kThreads] = at.shared.rest;
          group[0] += at.w;
#pragma unroll
          for (int p = 0; p < kMaxPointwise; ++p)
            if (p < job.plan.pointwise_count)
              group[2 + 2 * p] +=
                  job.plan.pointwise[p].weight_in_denominator ? at.w * class_scale<Real>(job, p, at.y) : at.w;
        });
      double losses[kMaxPointwise] = {};
      for (int64_t c = 0; c < job.problem.classes; ++c) {
        Real region[kExtraSums] = {};
#pragma unroll 1
        for (int k = 0; k < kPixels; ++k)
          visit(k, [&](At at) {
            const Real* kept = column + k * 5 * kThreads;
            at.w = kept[0];
            at.y = int(kept[kThreads]);
            at.shared.peak = kept[2 * kThreads];
            at.shared.peak_class = kept[3 * kThreads];
            at.shared.rest = kept[4 * kThreads];
            at.shared.finish();
            const Pixel<Real> x = at.pixel(c);
            const Real t = at.label(c);
            const auto add = [&](int s, Real v) { region[s] += v; };
            if (layout.region_sums == kExtraSums)
              region_sums<true>(at.w, x.p, x.q, t, true, add);
            else if (layout.region_sums)
              region_sums<false>(at.w, x.p, x.q, t, layout.region_sums > kRegionSums, add);
            AnyTerms::for_each<Real>(job.plan, [&](const auto& loss, int p) {
              add_at<0, kMaxPointwise>(
                  losses, p, double(masked_product(at.w, class_scale<Real>(job, p, c) * loss(x, t).positive)));
            });
          });
        if (layout.region_sums)
          bring(region, layout.region_sums, out.from(layout.group_sums() + c * layout.region_sums), base == 0);
      }
      double wide[1 + 2 * kMaxPointwise];
#pragma unroll
      for (int i = 0; i < 1 + 2 * kMaxPointwise; ++i) wide[i] = i % 2 ? losses[i / 2] : double(group[i]);
      bring(wide, 1 + 2 * job.plan.pointwise_count, out, base == 0);
    }
  }

  template <class Function>
  __device__ static void for_pixels(const Job& job, const Function& f) {
    const Chunk chunk = job.chunks.at(int64_t(gridDim.x) - 1 - blockIdx.x);
    for (int64_t i = threadIdx.x; i < chunk.count; i += kThreads) {
      At at{job, chunk.domain, chunk.first + i, Real(0), 0, {}};
      at.load();
      at.normalise();
      f(at, static_cast<const Real*>(job.slopes) + chunk.domain * job.layout.domain_slopes());
    }
  }

  __device__ static void gradient(const Job& job) {
    const bool extra = job.plan.sums_extra();
    const View& output = job.problem.output;
    for_pixels(job, [&](const At& at, const Real* slopes) {
      const View& v = job.problem.upstream;
      const bool per_class = job.problem.has_upstream && job.plan.unreduced_classes();
      Real w = at.w;
      if (job.problem.has_upstream && !per_class)
        w = masked_product(w, load_number<Real>(v, offset_of(v, at.n, 0, at.i)));
      const Real upstream = upstream_of<Real>(job, at.n, 0);
      // The slopes in class c: dL/dp and dL/dlog p (see softmax_pull_back). With probabilities both are dL/dp.
      const auto slope = [&](int64_t c, const Pixel<Real>& x, Real& region, Real& log_slope) {
        const Real t = at.label(c);
        region = log_slope = Real(0);
        if (job.plan.region_count) {
          const Real* r = slopes + 2 * job.plan.pointwise_count + c * kRegionSlopes;
          const auto row = RowSlopes<Real>::of(r);
          region = (extra ? region_slope<true>(row, x.p, x.q, t) : region_slope<false>(row, x.p, x.q, t)) *
                   upstream_of<Real>(job, at.n, c);
        }
        const Real factor = per_class ? load_number<Real>(v, offset_of(v, at.n, c, at.i)) : upstream;
        AnyTerms::for_each<Real>(job.plan, [&](const auto& loss, int k) {
          const bool of_probability = kSoftmax && job.plan.pointwise[k].every_class;
          const Pixel<Dual<Real>> dual = of_probability ? Identity::seed(x) : Link::seed(x);
          (of_probability ? region : log_slope) +=
              slopes[2 * k] * factor * class_scale<Real>(job, k, c) * loss(dual, t).positive.d[0];
        });
      };
      Real reference = Real(0), mean = Real(0), region, log_slope;
      double log_slopes = 0;
      if constexpr (kSoftmax) {
        slope(int64_t(at.shared.peak_class), at.pixel(int64_t(at.shared.peak_class)), reference, log_slope);
        double sum = 0;
        for (int64_t c = 0; c < job.problem.classes; ++c) {
          const Pixel<Real> x = at.pixel(c);
          slope(c, x, region, log_slope);
          sum += double(x.p * (region - reference));
          log_slopes += double(log_slope);
        }
        mean = Real(sum);
      }
      for (int64_t c = 0; c < job.problem.classes; ++c) {
        const Pixel<Real> x = at.pixel(c);
        slope(c, x, region, log_slope);
        const Real g = kSoftmax ? softmax_pull_back(x.p, x.q, region - reference, mean, log_slope,
                                                    Real(log_slopes - double(log_slope)))
                                : region + log_slope;
        store_number(output, offset_of(output, at.n, c, at.i), masked_product(w, g));
      }
    });
  }

  // The loss of each pixel, as the sum over its classes, or the loss of each class.
  __device__ static void values(const Job& job) {
    const View& output = job.problem.output;
    const bool per_class = job.plan.unreduced_classes();
    for_pixels(job, [&](const At& at, const Real* slopes) {
      double sum = 0;
      for (int64_t c = 0; c < job.problem.classes; ++c) {
        const Pixel<Real> x = at.pixel(c);
        const Real t = at.label(c);
        AnyTerms::for_each<Real>(job.plan, [&](const auto& loss, int k) {
          const Real value = slopes[2 * k] * class_scale<Real>(job, k, c) * loss(x, t).positive;
          if (per_class)
            store_number(output, offset_of(output, at.n, c, at.i), masked_product(at.w, value));
          else
            sum += double(value);
        });
      }
      if (per_class) return;
      store_number(output, offset_of(output, at.n, 0, at.i), masked_product(at.w, Real(sum)));
    });
  }
};

}  // namespace
}  // namespace segfuse
