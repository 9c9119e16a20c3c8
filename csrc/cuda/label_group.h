// What a thread of label_map.h reads at a time: 16 bytes of logits of every class (8 bytes if there are many classes),
// and labels and weights of these pixels.
#pragma once

#include "dense.h"

namespace segfuse {
namespace {

// Whether a slope is far from infinity, so that sums and products of some of them are finite.
__device__ inline bool is_moderate(float slope) { return abs(slope) < 1e12f; }

// Where a chunk begins. The addresses are kept(): the compiler would compute them anew for every vector.
template <class Element, int kClasses>
struct LabelPlanes {
  // With many classes half as much: two blocks fit on a multiprocessor, and the code fits into its instruction cache.
  static constexpr int kVector = (kClasses < 16 ? 16 : 8) / int(sizeof(Element));

  Dense<kVector> dense;
  const Element* logits;
  const void* target;
  int count;      // an int holds it for any tensor that fits into memory: policy.cu
  int all_count;  // whether every pixel counts whose label is a class

  __device__ LabelPlanes(const Job& job, const Chunk& chunk)
      : dense{job, chunk.domain, chunk.first, chunk.count}, count(int(chunk.count)) {
    const Problem& p = job.problem;
    logits = kept(dense.template at<const Element>(p.logits, 0, 0));
    if (p.target.dtype == Dtype::i64)
      target = kept(dense.template at<const int64_t>(p.target, 0, 0));
    else if (p.target.dtype == Dtype::i32)
      target = kept(dense.template at<const int32_t>(p.target, 0, 0));
    else
      target = kept(dense.template at<const uint8_t>(p.target, 0, 0));
    const bool ignores = job.can_ignore && uint64_t(job.plan.ignore_index) < uint64_t(kClasses);
    all_count = kept(int(!p.has_weight && !p.has_upstream && !ignores));
  }
  __device__ Element* output() const { return dense.template at<Element>(dense.job.problem.output, 0, 0); }
  template <class T>
  __device__ Pack<T, kVector> labels(int i) const {
    Pack<T, kVector> pack;
    pack.load(static_cast<const T*>(target) + i);
    return pack;
  }
};

// The pixels of a thread: logits of all classes, label, weight.
template <class Element, int kClasses>
struct LabelGroup {
  using Planes = LabelPlanes<Element, kClasses>;
  static constexpr int kVector = Planes::kVector;

  const Planes& planes;
  int i;
  Pack<Element, kVector> logits[kClasses];
  Pack<uint8_t, kVector> labels;
  float w[kVector];
  uint32_t ignored = 0;  // a bit for each pixel of weight 0

  __device__ LabelGroup(const Planes& of, int at, float& sum_of_weights) : planes(of), i(at) {
#pragma unroll
    for (int c = 0; c < kClasses; ++c)
      logits[c].load(planes.logits + c * planes.dense.job.problem.logits.class_stride + i);
    bool all_count = false;
    for_labels([&](const auto& given) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) labels.element[k] = uint8_t(given.element[k]);
      all_count = (planes.all_count != 0) & all_below<kClasses>(given);
    });
#pragma unroll
    for (int k = 0; k < kVector; ++k) w[k] = 1.0f;
    if (all_count)
      sum_of_weights += float(kVector);
    else
      weigh(sum_of_weights);
  }
  template <class F>
  __device__ void for_labels(const F& f) const {
    const Dtype type = planes.dense.job.problem.target.dtype;
    if (type != Dtype::i64 && type != Dtype::i32)
      f(planes.template labels<uint8_t>(i));
    else if (type == Dtype::i64)
      f(planes.template labels<int64_t>(i));
    else
      f(planes.template labels<int32_t>(i));
  }
  // Loads weights, and labels as load_class (source.h). Logits of pixels that do not count become 0: no other code has
  // to test for them.
  __device__ void weigh(float& sum_of_weights) {
    const Job& job = planes.dense.job;
    planes.dense.load_weights(0, i, w);
    for_labels([&](const auto& given) {
      using Label = std::decay_t<decltype(given.element[0])>;
      const Label no_label = Label(job.plan.ignore_index);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const Label label = given.element[k];
        const bool inside = uint64_t(int64_t(label)) < uint64_t(kClasses);
        labels.element[k] = uint8_t(inside ? label : 0);
        if (!inside && w[k] != 0.0f) w[k] = not_a_number<float>();
        if (job.can_ignore && label == no_label) w[k] = 0.0f;
      }
    });
    if (job.problem.has_upstream) {
      const auto upstream = planes.dense.template load<float>(job.problem.upstream, 0, i);
#pragma unroll
      for (int k = 0; k < kVector; ++k) w[k] = masked_product(w[k], upstream.element[k]);
    }
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      sum_of_weights += w[k];
      if (w[k] == 0.0f) ignored |= 1u << k;
    }
    clear_ignored();
  }
  __device__ void clear_ignored() {
#pragma unroll
    for (int k = 0; k < kVector; ++k)
      if (ignored >> k & 1)
#pragma unroll
        for (int c = 0; c < kClasses; ++c) logits[c].element[k] = Number<Element>::narrowed(0.0f);
  }
  __device__ int label(int k) const { return byte_of(labels, k); }
  __device__ float logit(int c, int k) const { return Number<Element>::widened(logits[c], k); }
  // It is read again, from the first cache: with many classes this costs less than comparing with every one.
  __device__ float label_logit(int k) const {
    if (w[k] == 0.0f) return 0.0f;
    return Number<Element>::widened(planes.logits[label(k) * planes.dense.job.problem.logits.class_stride + i + k]);
  }
  // Stores the gradient, which has replaced the logits. finite: 0 times a slope is 0.
  __device__ void store(Element* output, bool finite) {
    store(output);
    if (finite || !ignored) return;
    clear_ignored();
    store(output);
  }
  __device__ void store(Element* output) const {
#pragma unroll
    for (int c = 0; c < kClasses; ++c) logits[c].store(output + c * planes.dense.job.problem.output.class_stride + i);
  }
};

}  // namespace
}  // namespace segfuse
