// The engine for softmax, class indices and sums of products, with all classes of a pixel in registers: one read of
// each logit per pass, no scratch memory. One kernel per number of classes of a list (label_map.cu); tile.h takes the
// rest.
#pragma once

#include "../pixel.h"
#include "label_group.h"
#include "points.h"

namespace segfuse {
namespace {

template <class Element, int kClasses>
struct LabelMap {
  using Points = CrossEntropyOrNone;
  using Chunk = LabelChunk<Element, kClasses>;
  using Group = LabelGroup<Element, kClasses>;
  static constexpr bool kNarrow = Number<Element>::kNarrow;
  // Of two classes, what one has too much the other lacks. (float32 keeps the sums that it has: the same to a
  // rounding.)
  static constexpr bool kMirrors = kNarrow && kClasses == 2;
  static constexpr int kVector = Group::kVector;
  static constexpr int kBlock = kThreads, kBlocks = kClasses * kVector <= 16 ? 4 : kClasses <= 8 ? 3 : 2;
  static constexpr int kBothBlocks = kBlocks - 1;
  static constexpr int kGroup = kThreads * kVector;
  static constexpr int kGroupSums = 1 + 2 * Points::kCount;
  // Statistics: sums of the block, what warps hand over, and per thread two columns of one value per class.
  static constexpr int kSharedBytes = int(sizeof(double)) * (kGroupSums * (1 + kWarps) + 3 * kClasses) +
                                      int(sizeof(float)) * ((kClasses + 1) / 2 * 2 + 2 * kClasses * kThreads);

  // A pixel: e = 2^(z log2(e) - s), 0 in the label's class. fma(z, log2(e), -s) rounds once; (z - peak) log2(e) would
  // round twice. s, near the peak, is the same for all classes, so its own rounding cancels (see Base2::largest).
  struct At {
    static constexpr bool kCompares = kClasses <= 8;  // and reads nothing twice
    float e[kClasses], at_peak, own, inverse;
    Pixel<float> x;

    __device__ At(const Group& group, int k) {
      const int y = group.label(k);
      float own_logit = 0.0f;
      if constexpr (!kCompares) own_logit = group.own_logit(k);
#pragma unroll
      for (int c = 0; c < kClasses; ++c) e[c] = group.logit(c, k);
      float peak = e[0];
#pragma unroll
      for (int c = 1; c < kClasses; ++c) peak = max(peak, e[c]);
      // The difference of two bfloat16 loses nothing that counts, and costs no more than to ask whether it is needed;
      // float16 has no logit as large.
      if (std::is_same_v<Element, Bfloat16> || (!kNarrow && abs(peak) > Base2<float>::largest)) {
#pragma unroll
        for (int c = 0; c < kClasses; ++c) e[c] -= peak;
        if constexpr (!kCompares) own_logit -= peak;
        peak = 0.0f;
      }
      const float shift = -(peak * Base2<float>::log2_e);
      float rest = 0.0f, log2_own = shift;
      if constexpr (!kCompares) log2_own = fma(own_logit, Base2<float>::log2_e, shift);
#pragma unroll
      for (int c = 0; c < kClasses; ++c) {
        const float d = fma(e[c], Base2<float>::log2_e, shift);
        const bool here = c == y;
        if (kCompares && here) log2_own = d;
        e[c] = here ? 0.0f : fast_exp2(d);
        rest = c == 0 ? e[c] : rest + e[c];
      }
      at_peak = fast_exp2(fma(peak, Base2<float>::log2_e, shift));
      own = fast_exp2(log2_own);
      x = Softmax::of_label<float, kNarrow>(own, rest, log2_own, inverse);
    }
    // What softmax_pull_back asks for: the slope of the class that reaches the peak. With half precision the mean of
    // all slopes, which lies as near to it where that class has nearly everything, and costs no search; that the
    // powers do not add up to 1 is off the mean by 1e-7, and the mean of what is left by 1e-7 of that.
    __device__ float reference(float present, const float* absent) const {
      if constexpr (kNarrow) {
        float others = 0.0f;
#pragma unroll
        for (int c = 0; c < kClasses; ++c) others += e[c] * absent[c];
        return others * inverse + x.p * present;
      }
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

  // f(pixel, which of the group, where to leave its gradient) for each pixel of a group; kWrites: the gradients take
  // their logits' place. Two at a time, which half precision rounds at once.
  template <bool kWrites, class F>
  __device__ static void visit(Group& group, const F& f) {
#pragma unroll
    for (int k = 0; k < kVector; k += 2) {
      float gradient[2][kClasses];
#pragma unroll
      for (int j = 0; j < 2; ++j) f(At(group, k + j), k + j, gradient[j]);
      if constexpr (kWrites)
#pragma unroll
        for (int c = 0; c < kClasses; ++c) Number<Element>::narrow(gradient[0][c], gradient[1][c], group.logits[c], k);
    }
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
    for (int c = threadIdx.x; c < kClasses; c += kThreads)
      scales[c] = job.plan.point_count ? class_scale<float>(job, 0, c) : 1.0f;
    const Span span = chunk_of(job.cut, chunk);
    const Chunk here(job, span);
    Element* output = nullptr;
    if constexpr (kWrites) output = here.output();
    const bool regions = !kWrites && job.plan.region_count > 0;
    if constexpr (kWrites)
      foresee_slopes(job, span.unit, columns);
    else
      for (int r = 0; r < 2 * kClasses; ++r) columns[r * kThreads + threadIdx.x] = 0.0f;
    __syncthreads();
    const float slope = kWrites ? columns[0] : 0.0f;
    bool finite = true;
    if constexpr (kWrites)
      finite = __syncthreads_and(threadIdx.x >= kClasses || is_moderate(slope * scales[threadIdx.x]));
    float group_sums[kGroupSums] = {}, fp[kClasses] = {};
    int adds = 0;
    const auto flush = [&] {
      add_over_block(group_sums, kGroupSums, totals, staging);
      if (regions) {
        add_columns(columns, 2 * kClasses, of_class);
        if constexpr (!kMirrors) {
#pragma unroll
          for (int c = 0; c < kClasses; ++c) columns[c * kThreads + threadIdx.x] = fp[c];
          __syncthreads();
          add_columns(columns, kClasses, of_class + 2 * kClasses);
        }
      }
#pragma unroll
      for (int s = 0; s < kGroupSums; ++s) group_sums[s] = 0.0f;
#pragma unroll
      for (int c = 0; c < kClasses; ++c) fp[c] = 0.0f;
      adds = 0;
    };
    for (int base = 0; base < here.count; base += kGroup) {
      const int i = base + int(threadIdx.x) * kVector;
      if (i < here.count) {
        Group group(here, i, group_sums[0]);
        visit<kWrites>(group, [&](const At& at, int k, float* gradient) {
          const int y = group.label(k);
          const float w = group.w[k], scaled = w * scales[y];
          Points::template for_each<float>(job, [&](const auto& loss, int) {
            group_sums[1] += scaled * loss(at.x, 1.0f).positive;
            group_sums[2] += scaled;
          });
          if constexpr (kWrites) find_gradient(job, at, y, w, slope * scales[y], false, nullptr, nullptr, gradient);
          if (!regions) return;
          if constexpr (!kMirrors) {
            const float factor = w * at.inverse;
#pragma unroll
            for (int c = 0; c < kClasses; ++c) fp[c] += factor * at.e[c];
          }
          float* mine = columns + y * 2 * kThreads + threadIdx.x;
          mine[0] += w * at.x.p;
          mine[kThreads] += w * at.x.q;
        });
        if constexpr (kWrites) group.store(output, finite);
      }
      if ((adds += kVector) >= kAddsPerFlush) flush();
    }
    if (adds > 0) flush();
    // In the order of Layout.
    const ChunkSums out = sums_of_chunk(job, chunk);
    const int group_count = int(job.layout.group_sums());
    if (int(threadIdx.x) < group_count)
      out[threadIdx.x] = totals[threadIdx.x == 2 && !job.plan.points[0].weighs_the_mean ? 0 : threadIdx.x];
    for (int c = threadIdx.x; regions && c < kClasses; c += kThreads) {
      const ChunkSums own = out.from(group_count + c * job.layout.region_sums);
      own[0] = of_class[2 * c];
      own[1] = of_class[kMirrors ? 3 - 2 * c : 2 * kClasses + c];
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

  // slope: of the pointwise term; present, absent: by class, of the regions if there are some.
  __device__ static void find_gradient(const Job& job, const At& at, int label, float w, float slope, bool regions,
                                       const float* present, const float* absent, float* gradient) {
    const Pixel<Dual<float>> dual = Softmax::seed(at.x);
    float d = 0.0f;
    Points::template for_each<float>(job, [&](const auto& loss, int) { d = slope * loss(dual, 1.0f).positive.d[0]; });
    const float scaled = w * at.inverse;
    // Compared as a float, for a second time: of a comparison that it has made already the compiler would carry the
    // outcome along, class by class, at three instructions.
    const float y = opaque_float(label);
    if (!regions) {
      const float at_label = w * d * at.x.q, others = -(scaled * d);
#pragma unroll
      for (int c = 0; c < kClasses; ++c) gradient[c] = float(c) == y ? at_label : at.e[c] * others;
      return;
    }
    const float s = present[label], reference = at.reference(s, absent);
    float others = 0.0f;
#pragma unroll
    for (int c = 0; c < kClasses; ++c) others += at.e[c] * (absent[c] - reference);
    const float mean = at.x.p * (s - reference) + others * at.inverse;
    const float at_label = w * softmax_pull_back(at.x.p, at.x.q, s - reference, mean, d, 0.0f);
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      const float g = softmax_pull_back(at.e[c] * scaled, absent[c] - reference, mean + d);
      gradient[c] = float(c) == y ? at_label : g;
    }
  }

  __device__ static void gradient(const Job& job) {
    // The chunks that the statistics read last are those that the second cache still holds.
    const Span span = chunk_of(job.cut, int64_t(gridDim.x) - 1 - blockIdx.x);
    const float* slopes = static_cast<const float*>(job.slopes) + span.unit * job.layout.unit_slopes();
    float* scales = reinterpret_cast<float*>(shared_memory());
    float* present = scales + kClasses;
    float* absent = present + kClasses;
    const Chunk here(job, span);
    Element* output = here.output();
    const bool regions = job.plan.region_count > 0;
    const float slope = job.plan.point_count ? slopes[0] * upstream_of<float>(job, span.unit, 0) : 0.0f;
    bool finite = true;
    for (int c = threadIdx.x; c < kClasses; c += kThreads) {
      scales[c] = job.plan.point_count ? slope * class_scale<float>(job, 0, c) : 0.0f;
      const float* row = slopes + 2 * job.plan.point_count + kRegionSlopes * c;
      const float upstream = regions ? upstream_of<float>(job, span.unit, c) : 0.0f;
      present[c] = regions ? row[0] * upstream : 0.0f;
      absent[c] = regions ? row[1] * upstream : 0.0f;
      finite = is_moderate(scales[c]) && is_moderate(present[c]) && is_moderate(absent[c]);
    }
    finite = __syncthreads_and(finite);
    for (int i = int(threadIdx.x) * kVector; i < here.count; i += kGroup) {
      float unread = 0.0f;
      Group group(here, i, unread);
      visit<true>(group, [&](const At& at, int k, float* gradient) {
        const int y = group.label(k);
        find_gradient(job, at, y, group.w[k], scales[y], job.plan.region_count > 0, present, absent, gradient);
      });
      group.store(output, finite);
    }
  }
};

}  // namespace
}  // namespace segfuse
