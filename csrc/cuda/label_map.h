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
  static constexpr int kBlock = kThreads, kBlocks = kClasses * kVector <= 20 ? 3 : kClasses <= 8 ? 2 : 1;
  static constexpr int64_t kGroup = kThreads * kVector;
  static constexpr int kGroupSums = 1 + 2 * Points::kCount;
  // Statistics: sums of the block, what warps hand over, and per thread two columns of one value per class.
  static constexpr int kSharedBytes =
      int(sizeof(double)) * (kGroupSums + 3 * kClasses) * (1 + kWarps) + int(sizeof(float)) * 2 * kClasses * kThreads;

  // The pixels of a thread: logits of all classes, label, weight.
  struct Group {
    Dense<kVector> dense;
    int64_t i;
    Pack<Element, kVector> logits[kClasses];
    int y[kVector];
    float w[kVector];

    __device__ Group(const Dense<kVector>& d, int64_t base) : dense(d), i(base + int64_t(threadIdx.x) * kVector) {
#pragma unroll
      for (int c = 0; c < kClasses; ++c) dense.load(dense.job.problem.logits, c, i, logits[c]);
      dense.load_weights(0, i, w);
      const View& target = dense.job.problem.target;
      if (target.dtype == Dtype::i64)
        take_labels(dense.template load_as<int64_t>(target, 0, i));
      else if (target.dtype == Dtype::i32)
        take_labels(dense.template load_as<int32_t>(target, 0, i));
      else
        take_labels(dense.template load_as<uint8_t>(target, 0, i));
    }
    // As load_class of source.h.
    template <class T>
    __device__ void take_labels(const Pack<T, kVector>& pack) {
      const T ignored = T(dense.job.plan.ignore_index);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const T label = pack.element[k];
        const bool ignore = dense.job.can_ignore && label == ignored;
        const bool inside = uint64_t(int64_t(label)) < uint64_t(kClasses);
        if (ignore) w[k] = 0.0f;
        if (!ignore && !inside && w[k] != 0.0f) w[k] = not_a_number<float>();
        y[k] = inside && !ignore ? int(label) : 0;
      }
    }
  };

  // A pixel: exponentials of all classes, what they share, and the label's class.
  struct At {
    float e[kClasses], w, reference;
    int y;
    bool is_peak;  // the label's class reaches the peak
    Normaliser<float> shared;
    Pixel<float> own;

    // reference: `absent` of a class that reaches the peak.
    __device__ At(const Group& group, int k, const float* absent) : w(group.w[k]), reference(0.0f), y(group.y[k]) {
      float peak = 0.0f;
#pragma unroll
      for (int c = 0; c < kClasses; ++c) {
        e[c] = w == 0.0f ? 0.0f : Number<Element>::widened(group.logits[c].element[k]);
        if (c == 0 || e[c] > peak) peak = e[c];
      }
      float rest = 0.0f, ties = -1.0f;
#pragma unroll
      for (int c = 0; c < kClasses; ++c) {
        const bool at_peak = e[c] == peak;
        const float d = e[c] - peak;
        e[c] = exp_nonpositive(d);
        // Of a class at the peak only its difference is added: 0, or the NaN of inf - inf.
        rest += at_peak ? d : e[c];
        if (at_peak) ties += 1.0f;
        if (absent && at_peak) reference = absent[c];
      }
      shared.peak = peak;
      shared.rest = rest + max(0.0f, ties);  // no class reaches a peak of NaN
      shared.finish();
      // One more read of the label's logit, from the first cache, costs less than comparing with every class.
      float d = -peak;
      if (w != 0.0f && group.i < group.dense.count)
        d = Number<Element>::widened(
                *group.dense.template at<const Element>(group.dense.job.problem.logits, y, group.i + k)) -
            peak;
      is_peak = d == 0.0f;
      own = Softmax::pixel(shared, exp_nonpositive(d), d, is_peak);
    }
  };

  __device__ static void statistics(const Job& job) { add_chunk<false>(job, blockIdx.x); }
  __device__ static void both(const Job& job) { add_chunk<true>(job, blockIdx.x); }

  // kWrites: and, of pointwise losses, the gradient with the factor of the mean that is foreseen.
  template <bool kWrites>
  __device__ static void add_chunk(const Job& job, int64_t chunk) {
    constexpr int kSums = kGroupSums + 3 * kClasses;  // of the block: group, then by class FP | I, FN of all classes
    double* totals = reinterpret_cast<double*>(shared_memory());
    double* staging = totals + kSums;
    float* columns = reinterpret_cast<float*>(staging + kSums * kWarps);  // [class][I, FN][thread]
    for (int s = threadIdx.x; s < kSums; s += kThreads) totals[s] = 0;
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
        add_over_block(fp, kClasses, totals + kGroupSums, staging);
        add_columns(columns, totals + kGroupSums + kClasses);
      }
#pragma unroll
      for (int s = 0; s < kGroupSums; ++s) group_sums[s] = 0.0f;
#pragma unroll
      for (int c = 0; c < kClasses; ++c) fp[c] = 0.0f;
      adds = 0;
    };
    for (int64_t base = 0; base < span.count; base += kGroup) {
      Group group(dense, base);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const At at(group, k, nullptr);
        group_sums[0] += at.w;
        Points::template for_each<float>(job, [&](const auto& loss, int) {
          const float scale = class_scale(job, 0, at.y);
          group_sums[1] += at.w * scale * loss(at.own, 1.0f).positive;
          group_sums[2] += job.plan.points[0].weighs_the_mean ? at.w * scale : at.w;
        });
        if constexpr (kWrites) write_pixel(job, group, k, at, at.w, columns[0], nullptr, nullptr);
        if (!regions) continue;
        const float scaled = at.w * at.shared.inverse;
#pragma unroll
        for (int c = 0; c < kClasses; ++c)
          if (c != at.y) fp[c] += scaled * at.e[c];
        float* mine = columns + at.y * 2 * kThreads + threadIdx.x;
        mine[0] += at.w * at.own.p;
        mine[kThreads] += at.w * at.own.q;
      }
      if constexpr (kWrites)
#pragma unroll
        for (int c = 0; c < kClasses; ++c) dense.store(job.problem.output, c, group.i, group.logits[c]);
      if ((adds += kVector) >= kAddsPerFlush) flush();
    }
    flush();
    // In the order of Layout.
    double* out = job.partial + chunk * job.layout.unit_sums();
    const int group_count = int(job.layout.group_sums());
    for (int s = threadIdx.x; s < group_count; s += kThreads) out[s] = totals[s];
    for (int s = threadIdx.x; regions && s < 3 * kClasses; s += kThreads) {
      const int c = s / 3, which = s % 3;
      const double* hits = totals + kGroupSums + kClasses + 2 * c;
      out[group_count + s] = which == 0 ? hits[0] : which == 1 ? totals[kGroupSums + c] : hits[1];
    }
  }

  // totals[r] += the sum of column r over the threads; the columns become 0. Begins and ends with a barrier.
  __device__ static void add_columns(float* columns, double* totals) {
    __syncthreads();
    const int lane = threadIdx.x % kWarp;
    for (int r = threadIdx.x / kWarp; r < 2 * kClasses; r += kWarps) {
      double sum = 0;
      for (int t = lane; t < kThreads; t += kWarp) {
        sum += columns[r * kThreads + t];
        columns[r * kThreads + t] = 0.0f;
      }
      sum = warp_sum(sum);
      if (lane == 0) totals[r] += sum;
    }
    __syncthreads();
  }

  // The gradient of pixel k takes its logits' place. slope: of the pointwise term; present, absent: null without
  // regions.
  __device__ static void write_pixel(const Job& job, Group& group, int k, const At& at, float w, float slope,
                                     const float* present, const float* absent) {
    const Pixel<Dual<float>> dual = Softmax::seed(at.own);
    float d = 0.0f;
    Points::template for_each<float>(
        job, [&](const auto& loss, int) { d = slope * class_scale(job, 0, at.y) * loss(dual, 1.0f).positive.d[0]; });
    const float scaled = w * at.shared.inverse;
    if (job.plan.region_count == 0) {
      const float at_label = w * softmax_pull_back(at.own.p, at.own.q, 0.0f, 0.0f, d, 0.0f);
#pragma unroll
      for (int c = 0; c < kClasses; ++c) {
        const float g = softmax_pull_back(at.e[c] * scaled, 0.0f, 0.0f, 0.0f, 0.0f, d);
        group.logits[c].element[k] = Number<Element>::narrowed(c == at.y ? at_label : g);
      }
      return;
    }
    const float s = present[at.y], reference = at.is_peak ? s : at.reference;
    float others = 0.0f;
#pragma unroll
    for (int c = 0; c < kClasses; ++c)
      if (c != at.y) others += at.e[c] * (absent[c] - reference);
    const float mean = at.own.p * (s - reference) + others * at.shared.inverse;
    const float at_label = w * softmax_pull_back(at.own.p, at.own.q, s - reference, mean, d, 0.0f);
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      const float g = softmax_pull_back(at.e[c] * scaled, 0.0f, absent[c] - reference, mean, 0.0f, d);
      group.logits[c].element[k] = Number<Element>::narrowed(c == at.y ? at_label : g);
    }
  }

  __device__ static void gradient(const Job& job) {
    // The chunks that the statistics read last are those that the second cache still holds.
    const int64_t chunk = int64_t(gridDim.x) - 1 - blockIdx.x, unit = chunk_of(job.cut, chunk).unit;
    // Only an unreduced region loss has more than one upstream gradient in a sample, and no gradient ahead.
    if (is_done(job, upstream_of<float>(job, unit, 0))) return;
    write_chunk(job, chunk, static_cast<const float*>(job.slopes) + unit * job.layout.unit_slopes());
  }

  // slopes: of the chunk's unit.
  __device__ static void write_chunk(const Job& job, int64_t chunk, const float* slopes) {
    float* present = reinterpret_cast<float*>(shared_memory());
    float* absent = present + kClasses;
    const Span span = chunk_of(job.cut, chunk);
    const Dense<kVector> dense{job, span.unit, span.first, span.count};
    const bool regions = job.plan.region_count > 0;
    for (int c = threadIdx.x; c < kClasses; c += kThreads) {
      const float* row = slopes + 2 * job.plan.point_count + 5 * c;
      const float upstream = regions ? upstream_of<float>(job, span.unit, c) : 0.0f;
      present[c] = regions ? row[0] * upstream : 0.0f;
      absent[c] = regions ? row[1] * upstream : 0.0f;
    }
    __syncthreads();
    const float of_point = upstream_of<float>(job, span.unit, 0);
    for (int64_t base = 0; base < span.count; base += kGroup) {
      Group group(dense, base);
      Pack<float, kVector> upstream;
      if (job.problem.has_upstream) dense.load(job.problem.upstream, 0, group.i, upstream);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const At at(group, k, regions ? absent : nullptr);
        const float w = job.problem.has_upstream ? masked_product(at.w, upstream.element[k]) : at.w;
        write_pixel(job, group, k, at, w, job.plan.point_count ? slopes[0] * of_point : 0.0f, present, absent);
      }
#pragma unroll
      for (int c = 0; c < kClasses; ++c) dense.store(job.problem.output, c, group.i, group.logits[c]);
    }
  }
};

}  // namespace
}  // namespace segfuse
