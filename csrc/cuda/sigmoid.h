// The CUDA engine for rows that stand alone (binary, multilabel): each (sample, channel) plane, a chunk per block.
//
// Given:   a job, by value; the block's index is the chunk's (the gradient takes them in reverse: what was read last is
//          still in the second cache).
// Assumes: what `Source` assumes. DenseRow: planes that are arrays (all_arrays in policy.cu). StridedRow: nothing.
//          `Pointwise` are the job's terms, or AnyTerms.
// Writes:  statistics: the chunk's sums to Job::partial. values, gradient: the chunk's pixels of the output. fused:
//          both, the gradient with the assumed factor. A bad label: NaN in the sums.
// Called:  by kernel<> (kernels.h), as sigmoid.cu lists it; policy.cu chooses.
#pragma once

#include "../pixel.h"
#include "pointwise_terms.h"
#include "row_source.h"

namespace segfuse {
namespace {

// Kinds of groups of pixels. weighted: weights may differ from 1. plain: all are 1. mirrored: plain, hard labels, and
// half precision.
enum class Kind { weighted, plain, mirrored };

template <class T, T kValue>
struct Constant {
  static constexpr T value = kValue;
};

// What a thread adds up: Σ w, Σ w t, the region sums, two per pointwise term.
template <class Real, class Pointwise, bool kExtra>
struct RowTotals {
  static constexpr int kRegion = kExtra ? kExtraSums : kNegativeSums, kPointwise = 2 + kRegion,
                       kCount = kPointwise + 2 * Pointwise::kCount;
  Real value[kCount];
  // Sums of mirrored groups, which finish() adds to `value`. It adds the logarithm of `product`, for both parts of a
  // pointwise term. A pixel multiplies a product by at most 2, so it stays finite; rounding takes 6e-8 of it.
  HardLabelSum hard;
  Real product[2];
  static_assert(kAddsPerFlush < 128);
  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) value[i] = Real(0);
    hard.clear();
    product[0] = product[1] = Real(1);
  }
  __device__ void finish() {
    if (Pointwise::kBalanced) labels() += Real(hard.count());
    if constexpr (Pointwise::kCount == 1) {
#pragma unroll
      for (int i = 0; i < 2; ++i) value[kPointwise + i] += log_from_one(product[i]);
    }
    if (hard.valid()) return;
    for (Real& v : value) v = not_a_number<Real>();
  }
  __device__ void add_pointwise(int i, bool counts, Real v) {
    if (counts) value[kPointwise + i] += v;
  }
  __device__ void add_pointwise(int i, bool counts, const LinearLog<Real>& v) {
    if (counts) value[kPointwise + i] += v.linear;
    if (counts) product[i] = fma(product[i], v.e, product[i]);
  }
  __device__ Real& weight() { return value[0]; }
  __device__ Real& labels() { return value[1]; }
  __device__ Real& region(int s) { return value[2 + s]; }
};

template <class Source, class Link, class Pointwise, bool kExtra>
struct SigmoidRows {
  using Real = typename Source::Real;
  using Totals = RowTotals<Real, Pointwise, kExtra>;
  static constexpr int kVector = Source::kVector, kUnroll = Source::kUnroll;
  static constexpr int kBlock = kThreads, kBlocks = Pointwise::kBlocks, kFusedBlocks = kBlocks - 1,
                       kGroup = kThreads * kVector * kUnroll;
  static constexpr int kSharedBytes =
      int(sizeof(double)) * Totals::kCount * (kWarps + 1) + int(sizeof(Real)) * 2 * kMaxPointwise;

  // Pixels of weight 0 get 0 before the link, so that what they hold has no effect, even NaN.
  template <bool kWeighted>
  __device__ static Pixel<Real> pixel(Real w, Real& z, Real& t) {
    if (kWeighted && w == Real(0)) z = t = Real(0);
    return Link::pixel(z);
  }

  // Calls f(kind of the group, as a type). With AnyTerms all are weighted: the code of two kinds would be too large.
  template <class F>
  __device__ static void with_kind(const Source& source, int64_t last_mirrored, int64_t base, const F& f) {
    if constexpr (kMirrors)
      if (base <= last_mirrored) return f(Constant<Kind, Kind::mirrored>());
    if (Pointwise::kCount > 1 || source.weighted(base))
      f(Constant<Kind, Kind::weighted>());
    else if constexpr (Pointwise::kCount <= 1)
      f(Constant<Kind, Kind::plain>());
  }

  // Mirrored groups: hard labels without weights, in half precision. A pixel with label 0 is that of -z with label 1.
  // So all is computed for label 1; the real label only selects sums and slopes.
  static constexpr bool kMirrors = Source::kNarrow && Pointwise::kMirrored && !kExtra;
  // Where the last such group may start; -1: there is none.
  __device__ static int64_t last_mirrored(const Job& job, const Source& source) {
    if constexpr (kMirrors)
      if (source.plain_bytes() && Pointwise::can_mirror(job)) return source.count - kGroup;
    return -1;
  }
  template <bool kSums, bool kGradient>
  __device__ static void mirrored_group(const Job& job, const Source& source, int64_t base, Totals* totals,
                                        const RowSlopes<Real>& row, const Real* slope, Real upstream) {
    Real z[kVector], out[kUnroll][kVector];
    HardLabels label;
    source.template load_hard<kGradient>(base, z, label);
#pragma unroll
    for (int k = 0; k < kVector; ++k) z[k] = label[k] ? z[k] : -z[k];
    if constexpr (kSums) {
      totals->weight() += Real(kVector);
      totals->hard.add(label);
    }
    if constexpr (kSums)
      with_regions<kGradient>(job, [&](auto regions) {
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          const auto x = Link::template pixel<typename Pointwise::Log>(z[k]);
          if (regions.value)
            mirrored_region_sums(x.p, x.q, label[k], [&](int s, bool counts, Real v) {
              if (counts) totals->region(s) += v;
            });
          Pointwise::template of_label_1<Real>([&](const auto& loss) {
            const auto v = loss(x, Real(1)).positive;
            totals->add_pointwise(0, label[k], v);
            totals->add_pointwise(1, !label[k], v);
          });
        }
      });
    if constexpr (kGradient) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const Pixel<Dual<Real>> x = Link::seed(Link::template pixel<HalfLog>(z[k]));
        Real g = kSums ? Real(0) : (label[k] ? row.at_positive : row.at_negative) * x.p.d[0];
        Pointwise::template of_label_1<Real>([&](const auto& loss) {
          const Real part = label[k] ? upstream * slope[0] : -(upstream * slope[1]);
          g += part * loss(x, Real(1)).positive.d[0];
        });
        out[0][k] = g;
      }
      if (job.problem.has_upstream) source.template scale<false>(base, out);
      source.template store<false>(base, out);
    }
  }
  // Calls f(whether the plan has region terms, as a type). kNone: the plan of a fused step has none.
  template <bool kNone, class F>
  __device__ static void with_regions(const Job& job, const F& f) {
    if constexpr (kNone)
      f(Constant<bool, false>());
    else if (Pointwise::kCount == 0 || job.plan.region_count > 0)
      f(Constant<bool, true>());
    else if constexpr (Pointwise::kCount > 0)
      f(Constant<bool, false>());
  }

  // kRegions: there may be region terms. Kernels for one pointwise term or none then add region sums without asking the
  // plan.
  template <bool kWeighted, bool kRegions>
  __device__ static void add_group(const Job& job, Real (&z)[kUnroll][kVector], Real (&t)[kUnroll][kVector],
                                   const Real (&w)[kUnroll][kVector], Totals& totals) {
    const bool regions = kRegions && (Pointwise::kCount <= 1 || job.plan.region_count > 0);
    if (!kWeighted) totals.weight() += Real(kUnroll * kVector);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const Real weight = kWeighted ? w[u][k] : Real(1);
        const Pixel<Real> x = pixel<kWeighted>(weight, z[u][k], t[u][k]);
        if (kWeighted) totals.weight() += weight;
        if (Pointwise::kBalanced) totals.labels() += weight * t[u][k];
        if (regions)
          region_sums<kExtra>(weight, x.p, x.q, t[u][k], true, [&](int s, Real v) { totals.region(s) += v; });
        Pointwise::template for_each<Real>(job.plan, [&](const auto& loss, int i) {
          const Parts<Real> parts = loss(x, t[u][k]);
          add_at<Totals::kPointwise, 2 * Pointwise::kCount>(totals.value, 2 * i, weight * parts.positive);
          add_at<Totals::kPointwise, 2 * Pointwise::kCount>(totals.value, 2 * i + 1, weight * parts.negative);
        });
      }
  }

  __device__ static void statistics(const Job& job) { add_chunk<false>(job, blockIdx.x); }
  __device__ static void fused(const Job& job) { add_chunk<true>(job, blockIdx.x); }

  // Adds up a chunk. kWrites: also writes the gradient of pointwise losses, with the assumed factor of the mean.
  template <bool kWrites>
  __device__ static void add_chunk(const Job& job, int64_t index) {
    double* totals = reinterpret_cast<double*>(shared_memory());
    double* staging = totals + Totals::kCount;
    Real* slopes = reinterpret_cast<Real*>(staging + Totals::kCount * kWarps);
    const Chunk chunk = job.chunks.at(index);
    if (threadIdx.x < Totals::kCount) totals[threadIdx.x] = 0;
    if constexpr (kWrites) assume_slopes(job, chunk.domain, slopes);
    __syncthreads();
    const int64_t classes = job.problem.classes;
    const Source source{job, chunk.domain / classes, chunk.domain % classes, chunk.first, chunk.count};
    const int64_t last_mirrored = kept(SigmoidRows::last_mirrored(job, source));
    Totals sums;
    sums.clear();
    int adds = 0;
    for (int64_t base = 0; base < chunk.count; base += kGroup) {
      with_kind(source, last_mirrored, base, [&](auto kind) {
        if constexpr (kind.value == Kind::mirrored) {
          mirrored_group<true, kWrites>(job, source, base, &sums, {}, slopes, Real(1));
        } else {
          constexpr bool kWeighted = kind.value == Kind::weighted;
          Real z[kUnroll][kVector], t[kUnroll][kVector], w[kUnroll][kVector];
          source.template load<kWeighted>(base, z, t, w);
          add_group<kWeighted, !kWrites>(job, z, t, w, sums);
          if constexpr (kWrites) compute_group<true, kWeighted, false>(job, source, base, {}, slopes, Real(1), z, t, w);
        }
      });
      if ((adds += kUnroll * kVector) < kAddsPerFlush) continue;
      if constexpr (kMirrors) sums.finish();
      add_over_block(sums.value, Totals::kCount, totals, staging);
      sums.clear();
      adds = 0;
    }
    if constexpr (kMirrors) sums.finish();
    if (adds > 0) add_over_block(sums.value, Totals::kCount, totals, staging);
    if (threadIdx.x != 0) return;
    // In the order of Layout.
    const ChunkSums out = sums_of_chunk(job, index);
    int next = 0;
    out[next++] = totals[0];
    for (int i = 0; i < 2 * job.plan.pointwise_count; ++i) out[next++] = totals[Totals::kPointwise + i];
    if (job.plan.sums_labels()) out[next++] = totals[1];
    for (int s = 0; s < job.layout.region_sums; ++s) out[next++] = totals[2 + s];
  }

  // The loss of each pixel (kGradient = false) or its gradient.
  template <bool kGradient, bool kWeighted, bool kRegions>
  __device__ static void compute_group(const Job& job, const Source& source, int64_t base, const RowSlopes<Real>& row,
                                       const Real* slope, Real upstream, Real (&z)[kUnroll][kVector],
                                       Real (&t)[kUnroll][kVector], const Real (&w)[kUnroll][kVector]) {
    const bool regions = kRegions && (Pointwise::kCount <= 1 || job.plan.region_count > 0);
    Real out[kUnroll][kVector];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const Real weight = kWeighted ? w[u][k] : Real(1);
        const Pixel<Real> x = pixel<kWeighted>(weight, z[u][k], t[u][k]);
        Real g = Real(0);
        if constexpr (kGradient) {
          const Pixel<Dual<Real>> dual = Link::seed(x);
          if (regions) g = region_slope<kExtra>(row, x.p, x.q, t[u][k]) * dual.p.d[0];
          Pointwise::template for_each<Real>(job.plan, [&](const auto& loss, int i) {
            const Parts<Dual<Real>> parts = loss(dual, t[u][k]);
            g += upstream * (slope[2 * i] * parts.positive.d[0] + slope[2 * i + 1] * parts.negative.d[0]);
          });
        } else {
          Pointwise::template for_each<Real>(job.plan, [&](const auto& loss, int i) {
            const Parts<Real> parts = loss(x, t[u][k]);
            g += slope[2 * i] * parts.positive + slope[2 * i + 1] * parts.negative;
          });
        }
        out[u][k] = g;
      }
    if (kGradient && job.problem.has_upstream) source.template scale<kWeighted>(base, out);
    if (kWeighted) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
#pragma unroll
        for (int k = 0; k < kVector; ++k) out[u][k] = masked_product(w[u][k], out[u][k]);
    }
    source.template store<kWeighted>(base, out);
  }

  __device__ static void values(const Job& job) { write<false>(job); }
  __device__ static void gradient(const Job& job) { write<true>(job); }

  template <bool kGradient>
  __device__ static void write(const Job& job) {
    // In reverse: the second cache still holds the chunks that the statistics read last.
    const Chunk chunk = job.chunks.at(int64_t(gridDim.x) - 1 - blockIdx.x);
    const int64_t classes = job.problem.classes;
    const Real upstream = kGradient ? upstream_of<Real>(job, chunk.domain / classes, chunk.domain % classes) : Real(1);
    const Real* slopes = static_cast<const Real*>(job.slopes) + chunk.domain * job.layout.domain_slopes();
    const Source source{job, chunk.domain / classes, chunk.domain % classes, chunk.first, chunk.count};
    const int64_t last_mirrored = kGradient ? kept(SigmoidRows::last_mirrored(job, source)) : -1;
    RowSlopes<Real> row{};
    if (kGradient && job.plan.region_count) {
      const Real* r = slopes + 2 * job.plan.pointwise_count;
      row = RowSlopes<Real>::of(r).times(upstream);
    }
    for (int64_t base = 0; base < chunk.count; base += kGroup) {
      with_kind(source, last_mirrored, base, [&](auto kind) {
        if constexpr (kind.value == Kind::mirrored) {
          mirrored_group<false, true>(job, source, base, nullptr, row, slopes, upstream);
        } else {
          constexpr bool kWeighted = kind.value == Kind::weighted;
          Real z[kUnroll][kVector], t[kUnroll][kVector], w[kUnroll][kVector];
          source.template load<kWeighted>(base, z, t, w);
          compute_group<kGradient, kWeighted, kGradient>(job, source, base, row, slopes, upstream, z, t, w);
        }
      });
    }
  }
};

}  // namespace
}  // namespace segfuse
