// The CUDA engine for softmax, class indices and sums of products, with all classes of a pixel in registers: one read
// of each logit per pass, no scratch memory. label_map.cu lists the numbers of classes that have a kernel; tile.h takes
// the others.
//
// Given:   a job, by value; the block's index is the chunk's (in reverse for the gradient).
// Assumes: Plan::fits_label_map; kClasses classes; cross-entropy or no pointwise term; planes that are arrays
//          (all_arrays in policy.cu); chunks of less than 2^31 pixels.
// Writes:  as sigmoid.h: sums of the chunk, its gradient, or both. A bad label: NaN in the sums.
// Called:  by kernel<> (kernels.h), as label_map.cu lists it; policy.cu chooses.
#pragma once

#include "../pixel.h"
#include "label_group.h"
#include "pointwise_terms.h"

namespace segfuse {
namespace {

template <class Element, int kClasses>
struct LabelMap {
  using Pointwise = CrossEntropyOrNone;
  using Planes = LabelPlanes<Element, kClasses>;
  using Group = LabelGroup<Element, kClasses>;
  static constexpr bool kNarrow = Number<Element>::kNarrow;
  // With two classes the FP of one is the FN of the other, and is not summed. (float32 sums it: the same up to a
  // rounding.)
  static constexpr bool kMirrors = kNarrow && kClasses == 2;
  static constexpr int kVector = Group::kVector;
  static constexpr int kBlock = kThreads, kBlocks = kClasses * kVector <= 16 ? 4 : kClasses <= 8 ? 3 : 2;
  static constexpr int kFusedBlocks = kBlocks - 1;
  static constexpr int kGroup = kThreads * kVector;
  static constexpr int kGroupSums = 1 + 2 * Pointwise::kCount;
  // Statistics: sums of the block, staging for its warps, and per thread two columns with one value per class.
  static constexpr int kSharedBytes = int(sizeof(double)) * (kGroupSums * (1 + kWarps) + 3 * kClasses) +
                                      int(sizeof(float)) * ((kClasses + 1) / 2 * 2 + 2 * kClasses * kThreads);

  // A pixel: the powers (Exponents) of its classes, and 0 for the label's class.
  struct At {
    static constexpr bool kCompares = kClasses <= 8;  // compares to find the label's logit; else reads it again
    float e[kClasses], at_peak, at_label, inverse;
    Pixel<float> x;  // of the label's class

    __device__ At(const Group& group, int k) {
      const int y = group.label(k);
      float label_logit = 0.0f;
      if constexpr (!kCompares) label_logit = group.label_logit(k);
#pragma unroll
      for (int c = 0; c < kClasses; ++c) e[c] = group.logit(c, k);
      float peak = e[0];
#pragma unroll
      for (int c = 1; c < kClasses; ++c) peak = max(peak, e[c]);
      // bfloat16 always subtracts: that loses nothing that counts, and costs no more than the test. float16 has no
      // logit as large.
      if (std::is_same_v<Element, Bfloat16> || (!kNarrow && abs(peak) > Base2<float>::largest)) {
#pragma unroll
        for (int c = 0; c < kClasses; ++c) e[c] -= peak;
        if constexpr (!kCompares) label_logit -= peak;
        peak = 0.0f;
      }
      const Exponents<float, float> exponent(peak);
      float rest = 0.0f, log2_label = exponent.shift;
      if constexpr (!kCompares) log2_label = exponent.of(label_logit);
#pragma unroll
      for (int c = 0; c < kClasses; ++c) {
        const float d = exponent.of(e[c]);
        const bool here = c == y;
        if (kCompares && here) log2_label = d;
        e[c] = here ? 0.0f : fast_exp2(d);
        rest = c == 0 ? e[c] : rest + e[c];
      }
      at_peak = fast_exp2(exponent.of(peak));
      at_label = fast_exp2(log2_label);
      x = Softmax::of_label<float, kNarrow>(at_label, rest, log2_label, inverse);
    }
    // The reference of softmax_pull_back: the slope of the class that reaches the peak. Half precision takes the mean
    // of all slopes: it is as near where that class has nearly all of the probability, and needs no search. The powers
    // do not add up to 1 exactly: the mean is off by 1e-7, and the mean of the differences by 1e-7 of that.
    __device__ float reference(float at_positive, const float* at_negative) const {
      if constexpr (kNarrow) {
        float others = 0.0f;
#pragma unroll
        for (int c = 0; c < kClasses; ++c) others += e[c] * at_negative[c];
        return others * inverse + x.p * at_positive;
      }
      float s = at_positive;
      if (at_label < at_peak) {
#pragma unroll
        for (int c = 0; c < kClasses; ++c)
          if (e[c] == at_peak) s = at_negative[c];
      }
      return s;
    }
  };

  __device__ static void statistics(const Job& job) { add_chunk<false>(job, blockIdx.x); }
  __device__ static void fused(const Job& job) { add_chunk<true>(job, blockIdx.x); }

  // Calls f(pixel, its number in the group, where to write its gradient) for each pixel of a group. kWrites: the
  // gradients replace the logits. It takes two pixels at a time, because half precision rounds two numbers at once.
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

  // Adds up a chunk. kWrites: also writes the gradient of pointwise losses, with the assumed factor of the mean.
  template <bool kWrites>
  __device__ static void add_chunk(const Job& job, int64_t index) {
    double* totals = reinterpret_cast<double*>(shared_memory());
    double* staging = totals + kGroupSums;
    double* of_class = staging + kGroupSums * kWarps;  // [class][TP, FN], then FP of all classes
    float* scales = reinterpret_cast<float*>(of_class + 3 * kClasses);
    float* columns = scales + kClasses;  // [class][TP, FN][thread]
    if (threadIdx.x < kGroupSums) totals[threadIdx.x] = 0;
    for (int s = threadIdx.x; s < 3 * kClasses; s += kThreads) of_class[s] = 0;
    for (int c = threadIdx.x; c < kClasses; c += kThreads)
      scales[c] = job.plan.pointwise_count ? class_scale<float>(job, 0, c) : 1.0f;
    const Chunk chunk = job.chunks.at(index);
    const Planes here(job, chunk);
    Element* output = nullptr;
    if constexpr (kWrites) output = here.output();
    const bool regions = !kWrites && job.plan.region_count > 0;
    if constexpr (kWrites)
      assume_slopes(job, chunk.domain, columns);
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
          Pointwise::template for_each<float>(job.plan, [&](const auto& loss, int) {
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
          float* column = columns + y * 2 * kThreads + threadIdx.x;
          column[0] += w * at.x.p;
          column[kThreads] += w * at.x.q;
        });
        if constexpr (kWrites) group.store(output, finite);
      }
      if ((adds += kVector) >= kAddsPerFlush) flush();
    }
    if (adds > 0) flush();
    // In the order of Layout.
    const ChunkSums out = sums_of_chunk(job, index);
    const int group_count = int(job.layout.group_sums());
    if (int(threadIdx.x) < group_count)
      out[threadIdx.x] = totals[threadIdx.x == 2 && !job.plan.pointwise[0].weight_in_denominator ? 0 : threadIdx.x];
    for (int c = threadIdx.x; regions && c < kClasses; c += kThreads) {
      const ChunkSums row = out.from(group_count + c * job.layout.region_sums);
      row[kTp] = of_class[2 * c];
      row[kFp] = of_class[kMirrors ? 3 - 2 * c : 2 * kClasses + c];
      row[kFn] = of_class[2 * c + 1];
      if (job.layout.region_sums > kRegionSums) row[kTn] = 0;  // a label map needs no sum of negatives: row_scores.h
    }
  }

  // totals[r] += the sum of column r over the threads, for r < rows; the columns become 0. It needs a barrier before,
  // and ends with one.
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

  // slope: of the pointwise term. at_positive, at_negative: slopes of the regions by class, if there are regions.
  __device__ static void find_gradient(const Job& job, const At& at, int label, float w, float slope, bool regions,
                                       const float* at_positive, const float* at_negative, float* gradient) {
    LabelSlope<float> label_slope(at.x);
    Pointwise::template for_each<float>(job.plan, [&](const auto& loss, int) { label_slope.add(loss, slope); });
    // The label is compared a second time, as a float that the compiler does not recognise. Otherwise it would carry
    // the results of the first comparison along, for three instructions per class.
    const float y = opaque_float(label);
    if (!regions) {
      const PointwiseGradient<float> dz(w, at.x, at.inverse, label_slope.sum);
#pragma unroll
      for (int c = 0; c < kClasses; ++c) gradient[c] = float(c) == y ? dz.at_label : dz.of(at.e[c]);
      return;
    }
    const float s = at_positive[label], reference = at.reference(s, at_negative);
    float others = 0.0f;
#pragma unroll
    for (int c = 0; c < kClasses; ++c) others += at.e[c] * (at_negative[c] - reference);
    const RegionGradient<float> dz(w, at.x, at.inverse, label_slope.sum, s, reference, others);
#pragma unroll
    for (int c = 0; c < kClasses; ++c) gradient[c] = float(c) == y ? dz.at_label : dz.of(at.e[c], at_negative[c]);
  }

  __device__ static void gradient(const Job& job) {
    // In reverse: the second cache still holds the chunks that the statistics read last.
    const Chunk chunk = job.chunks.at(int64_t(gridDim.x) - 1 - blockIdx.x);
    const float* slopes = static_cast<const float*>(job.slopes) + chunk.domain * job.layout.domain_slopes();
    float* scales = reinterpret_cast<float*>(shared_memory());
    float* at_positive = scales + kClasses;
    float* at_negative = at_positive + kClasses;
    const Planes here(job, chunk);
    Element* output = here.output();
    const bool regions = job.plan.region_count > 0;
    const float slope = job.plan.pointwise_count ? slopes[0] * upstream_of<float>(job, chunk.domain, 0) : 0.0f;
    bool finite = true;
    for (int c = threadIdx.x; c < kClasses; c += kThreads) {
      scales[c] = job.plan.pointwise_count ? slope * class_scale<float>(job, 0, c) : 0.0f;
      const float* row = slopes + 2 * job.plan.pointwise_count + kRegionSlopes * c;
      const float upstream = regions ? upstream_of<float>(job, chunk.domain, c) : 0.0f;
      at_positive[c] = regions ? row[kAtPositive] * upstream : 0.0f;
      at_negative[c] = regions ? row[kAtNegative] * upstream : 0.0f;
      finite = is_moderate(scales[c]) && is_moderate(at_positive[c]) && is_moderate(at_negative[c]);
    }
    finite = __syncthreads_and(finite);
    for (int i = int(threadIdx.x) * kVector; i < here.count; i += kGroup) {
      float unread = 0.0f;
      Group group(here, i, unread);
      visit<true>(group, [&](const At& at, int k, float* gradient) {
        const int y = group.label(k);
        find_gradient(job, at, y, group.w[k], scales[y], job.plan.region_count > 0, at_positive, at_negative, gradient);
      });
      group.store(output, finite);
    }
  }
};

}  // namespace
}  // namespace segfuse
