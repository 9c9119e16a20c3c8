// The engine for softmax, class indices and sums of products, with all classes of a pixel in registers: one read of
// each logit per pass, no scratch memory. One kernel per number of classes of a list (label_map.cu); tile.h takes the
// rest.
#pragma once

#include "../pixel.h"
#include "dense.h"
#include "points.h"

namespace segfuse {
namespace {

// Cross-entropy, or no pointwise term.
struct CrossEntropyOrNone {
  static constexpr int kCount = 1;
  template <class Real, class F>
  __device__ static void for_each(const Job& job, const F& f) {
    if (job.plan.point_count) f(CrossEntropy<Real>(job.plan.points[0].parameters(Real())), 0);
  }
};

// The factor of a label's class in a pointwise term.
__device__ inline float class_scale(const Job& job, int k, int y) {
  const int table = job.plan.points[k].table;
  return table < 0 ? 1.0f : float(job.constants.tables[table * job.problem.classes + y]);
}

template <class Element, int kClasses>
struct LabelMap {
  using Points = CrossEntropyOrNone;
  static constexpr int kVector = 16 / int(sizeof(Element));
  static constexpr int kBlock = kThreads, kBlocks = kClasses * kVector <= 16 ? 3 : kClasses * kVector <= 32 ? 2 : 1;
  static constexpr int64_t kGroup = kThreads * kVector;
  static constexpr int kGroupSums = 1 + 2 * Points::kCount;
  // Statistics: sums of the block, what warps hand over, and per thread two columns of one value per class.
  static constexpr int kSharedBytes = int(sizeof(double)) * (kGroupSums * (1 + kWarps) + 3 * kClasses) +
                                      int(sizeof(float)) * ((kClasses + 1) / 2 * 2 + 2 * kClasses * kThreads);

  // The pixels of a thread: logits of all classes, label, weight.
  struct Group {
    const Dense<kVector>& dense;
    int64_t i;
    Pack<Element, kVector> logits[kClasses];
    int y[kVector];
    float w[kVector];

    __device__ Group(const Dense<kVector>& d, int64_t at) : dense(d), i(at) {
#pragma unroll
      for (int c = 0; c < kClasses; ++c) logits[c] = dense.template load<Element>(dense.job.problem.logits, c, i);
      dense.load_weights(0, i, w);
      const View& target = dense.job.problem.target;
      if (target.dtype == Dtype::i64)
        take_labels(dense.template load<int64_t>(target, 0, i));
      else if (target.dtype == Dtype::i32)
        take_labels(dense.template load<int32_t>(target, 0, i));
      else
        take_labels(dense.template load<uint8_t>(target, 0, i));
    }
    // As load_class of source.h.
    template <class T>
    __device__ void take_labels(const Pack<T, kVector>& pack) {
      const T ignored = T(dense.job.plan.ignore_index);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const T label = pack.element[k];
        const bool inside = uint64_t(int64_t(label)) < uint64_t(kClasses);
        y[k] = inside ? int(label) : 0;
        if (!inside && w[k] != 0.0f) w[k] = not_a_number<float>();
        if (dense.job.can_ignore && label == ignored) w[k] = 0.0f;
      }
    }
    __device__ float logit(int c, int k) const { return Number<Element>::widened(logits[c].element[k]); }
    // One more read, from the first cache: with many classes it costs less than comparing with every one.
    __device__ float own_logit(int k) const {
      const View& v = dense.job.problem.logits;
      return Number<Element>::widened(*dense.template at<const Element>(v, y[k], i + k));
    }
    __device__ void store() const {
#pragma unroll
      for (int c = 0; c < kClasses; ++c) dense.store(dense.job.problem.output, c, i, logits[c]);
    }
    __device__ void clear(int k) {
#pragma unroll
      for (int c = 0; c < kClasses; ++c) logits[c].element[k] = Number<Element>::narrowed(0.0f);
    }
  };

  // A pixel: e = 2^(z log2(e) - s), 0 in the label's class. One multiplication and addition rounds once, where the
  // difference to the peak and its product would round twice; s, near the peak, is the same for all classes, so that
  // its own rounding drops out (see Base2::largest).
  struct At {
    static constexpr bool kCompares = kClasses <= 8;  // and reads nothing twice
    float e[kClasses], at_peak, own, inverse;
    Pixel<float> x;

    __device__ At(const Group& group, int k) {
      float own_logit = 0.0f;
      if constexpr (!kCompares) own_logit = group.own_logit(k);
#pragma unroll
      for (int c = 0; c < kClasses; ++c) e[c] = group.logit(c, k);
      float peak = e[0];
#pragma unroll
      for (int c = 1; c < kClasses; ++c) peak = max(peak, e[c]);
      if constexpr (!std::is_same_v<Element, Half>) {  // which has none of these
        if (abs(peak) > Base2<float>::largest) {
#pragma unroll
          for (int c = 0; c < kClasses; ++c) e[c] -= peak;
          if constexpr (!kCompares) own_logit -= peak;
          peak = 0.0f;
        }
      }
      const float shift = -(peak * Base2<float>::log2_e);
      float rest = 0.0f, log2_own = shift;
      if constexpr (!kCompares) log2_own = fma(own_logit, Base2<float>::log2_e, shift);
#pragma unroll
      for (int c = 0; c < kClasses; ++c) {
        const float d = fma(e[c], Base2<float>::log2_e, shift);
        const bool here = c == group.y[k];
        if (kCompares && here) log2_own = d;
        e[c] = here ? 0.0f : fast_exp2(d);
        rest += e[c];
      }
      at_peak = fast_exp2(fma(peak, Base2<float>::log2_e, shift));
      own = fast_exp2(log2_own);
      x = Softmax::of_label<float>(own, rest, log2_own, inverse);
    }
    // The slope of the class that reaches the peak: see softmax_pull_back.
    __device__ float reference(float present, const float* absent) const {
      float s = present;
      if (own < at_peak) {
#pragma unroll
        for (int c = 0; c < kClasses; ++c)
          if (e[c] == at_peak) s = absent[c];
      }
      return s;
    }
  };

  __device__ static void statistics(const Job& job) { add_chunk<false>(job, blockIdx.x); }
  __device__ static void both(const Job& job) { add_chunk<true>(job, blockIdx.x); }

  // The class factors of the pointwise term.
  __device__ static void load_scales(const Job& job, float* scales) {
    for (int c = threadIdx.x; c < kClasses; c += kThreads)
      scales[c] = job.plan.point_count ? class_scale(job, 0, c) : 1.0f;
  }

  // kWrites: and, of pointwise losses, the gradient with the factor of the mean that is foreseen.
  template <bool kWrites>
  __device__ static void add_chunk(const Job& job, int64_t chunk) {
    double* totals = reinterpret_cast<double*>(shared_memory());
    double* staging = totals + kGroupSums;
    double* of_class = staging + kGroupSums * kWarps;  // I, FN of all classes, then FP
    float* scales = reinterpret_cast<float*>(of_class + 3 * kClasses);
    float* columns = scales + kClasses;  // [class][I, FN][thread]
    if (threadIdx.x < kGroupSums) totals[threadIdx.x] = 0;
    for (int s = threadIdx.x; s < 3 * kClasses; s += kThreads) of_class[s] = 0;
    load_scales(job, scales);
    const Span span = chunk_of(job.cut, chunk);
    const Dense<kVector> dense{job, span.unit, span.first, span.count};
    const bool regions = !kWrites && job.plan.region_count > 0;
    if constexpr (kWrites)
      foresee_slopes(job, span.unit, columns);
    else
      for (int r = 0; r < 2 * kClasses; ++r) columns[r * kThreads + threadIdx.x] = 0.0f;
    __syncthreads();
    float group_sums[kGroupSums] = {}, fp[kClasses] = {};
    int adds = 0;
    const auto flush = [&] {
      add_over_block(group_sums, kGroupSums, totals, staging);
      if (regions) {
        add_columns(columns, 2 * kClasses, of_class);
#pragma unroll
        for (int c = 0; c < kClasses; ++c) columns[c * kThreads + threadIdx.x] = fp[c];
        __syncthreads();
        add_columns(columns, kClasses, of_class + 2 * kClasses);
      }
#pragma unroll
      for (int s = 0; s < kGroupSums; ++s) group_sums[s] = 0.0f;
#pragma unroll
      for (int c = 0; c < kClasses; ++c) fp[c] = 0.0f;
      adds = 0;
    };
    for (int64_t base = 0; base < span.count; base += kGroup) {
      const int64_t i = base + int64_t(threadIdx.x) * kVector;
      if (dense.holds(i)) {
        Group group(dense, i);
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          const float w = group.w[k];
          if (w == 0.0f) {  // not read into anything
            if constexpr (kWrites) group.clear(k);
            continue;
          }
          const At at(group, k);
          const float scaled = w * scales[group.y[k]];
          group_sums[0] += w;
          Points::template for_each<float>(job, [&](const auto& loss, int) {
            group_sums[1] += scaled * loss(at.x, 1.0f).positive;
            group_sums[2] += job.plan.points[0].weighs_the_mean ? scaled : w;
          });
          if constexpr (kWrites) write_pixel(job, group, k, at, w, columns[0] * scales[group.y[k]], nullptr, nullptr);
          if (!regions) continue;
          const float factor = w * at.inverse;
#pragma unroll
          for (int c = 0; c < kClasses; ++c) fp[c] += factor * at.e[c];
          float* mine = columns + group.y[k] * 2 * kThreads + threadIdx.x;
          mine[0] += w * at.x.p;
          mine[kThreads] += w * at.x.q;
        }
        if constexpr (kWrites) group.store();
      }
      if ((adds += kVector) >= kAddsPerFlush) flush();
    }
    if (adds > 0) flush();
    // In the order of Layout.
    const ChunkSums out = sums_of_chunk(job, chunk);
    const int group_count = int(job.layout.group_sums());
    if (int(threadIdx.x) < group_count) out[threadIdx.x] = totals[threadIdx.x];
    for (int c = threadIdx.x; regions && c < kClasses; c += kThreads) {
      const ChunkSums own = out.from(group_count + c * job.layout.region_sums);
      own[0] = of_class[2 * c];
      own[1] = of_class[2 * kClasses + c];
      own[2] = of_class[2 * c + 1];
      if (job.layout.region_sums > kRegionSums) own[3] = 0;  // a label map needs no sum of negatives: head.h
    }
  }

  // totals[r] += the sum of column r over the threads, for r < rows; the columns become 0. A barrier stands before and
  // after.
  __device__ static void add_columns(float* columns, int rows, double* totals) {
    const int lane = threadIdx.x % kWarp;
    for (int r = threadIdx.x / kWarp; r < rows; r += kWarps) {
      float sum = 0.0f;
#pragma unroll
      for (int t = 0; t < kThreads; t += kWarp) {
        sum += columns[r * kThreads + t + lane];
        columns[r * kThreads + t + lane] = 0.0f;
      }
      sum = warp_sum(sum);
      if (lane == 0) totals[r] += double(sum);
    }
    __syncthreads();
  }

  // The gradient of pixel k takes its logits' place. slope: of the pointwise term; present, absent: null without
  // regions.
  __device__ static void write_pixel(const Job& job, Group& group, int k, const At& at, float w, float slope,
                                     const float* present, const float* absent) {
    const Pixel<Dual<float>> dual = Softmax::seed(at.x);
    float d = 0.0f;
    Points::template for_each<float>(job, [&](const auto& loss, int) { d = slope * loss(dual, 1.0f).positive.d[0]; });
    const float scaled = w * at.inverse;
    // Compared as a float, for a second time: of a comparison that it has made already the compiler would carry the
    // outcome along, class by class, at three instructions.
    const float y = opaque_float(group.y[k]);
    if (job.plan.region_count == 0) {
      const float at_label = w * d * at.x.q, others = -(scaled * d);
#pragma unroll
      for (int c = 0; c < kClasses; ++c)
        group.logits[c].element[k] = Number<Element>::narrowed(float(c) == y ? at_label : at.e[c] * others);
      return;
    }
    const float s = present[group.y[k]], reference = at.reference(s, absent);
    float others = 0.0f;
#pragma unroll
    for (int c = 0; c < kClasses; ++c) others += at.e[c] * (absent[c] - reference);
    const float mean = at.x.p * (s - reference) + others * at.inverse;
    const float at_label = w * softmax_pull_back(at.x.p, at.x.q, s - reference, mean, d, 0.0f);
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      const float g = softmax_pull_back(at.e[c] * scaled, absent[c] - reference, mean + d);
      group.logits[c].element[k] = Number<Element>::narrowed(float(c) == y ? at_label : g);
    }
  }

  __device__ static void gradient(const Job& job) {
    // The chunks that the statistics read last are those that the second cache still holds.
    const Span span = chunk_of(job.cut, int64_t(gridDim.x) - 1 - blockIdx.x);
    const float* slopes = static_cast<const float*>(job.slopes) + span.unit * job.layout.unit_slopes();
    float* scales = reinterpret_cast<float*>(shared_memory());
    float* present = scales + kClasses;
    float* absent = present + kClasses;
    const Dense<kVector> dense{job, span.unit, span.first, span.count};
    const bool regions = job.plan.region_count > 0;
    load_scales(job, scales);
    for (int c = threadIdx.x; c < kClasses; c += kThreads) {
      const float* row = slopes + 2 * job.plan.point_count + kRegionSlopes * c;
      const float upstream = regions ? upstream_of<float>(job, span.unit, c) : 0.0f;
      present[c] = regions ? row[0] * upstream : 0.0f;
      absent[c] = regions ? row[1] * upstream : 0.0f;
    }
    __syncthreads();
    const float slope = job.plan.point_count ? slopes[0] * upstream_of<float>(job, span.unit, 0) : 0.0f;
    for (int64_t i = int64_t(threadIdx.x) * kVector; dense.holds(i); i += kGroup) {
      Group group(dense, i);
      Pack<float, kVector> upstream;
      if (job.problem.has_upstream) upstream = dense.template load<float>(job.problem.upstream, 0, i);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const float w = job.problem.has_upstream ? masked_product(group.w[k], upstream.element[k]) : group.w[k];
        if (w == 0.0f)  // not read into anything
          group.clear(k);
        else
          write_pixel(job, group, k, At(group, k), w, slope * scales[group.y[k]], present, absent);
      }
      group.store();
    }
  }
};

}  // namespace
}  // namespace segfuse
