// Loads the pixels of a row and stores its gradient, for sigmoid.h.
#pragma once

#include "dense.h"

namespace segfuse {
namespace {

// Labels of 8 neighbours, a byte each.
struct HardLabels {
  uint32_t word[2];
  __device__ bool operator[](int k) const { return (word[k / 4] & (0xffu << k % 4 * 8)) != 0; }
  __device__ bool valid() const { return ((word[0] | word[1]) & 0xfefefefeu) == 0; }
};
// The sum of many HardLabels: how many labels are 1, in four parts of a byte, and whether all are 0 or 1.
struct HardLabelSum {
  uint32_t parts, bits;
  __device__ void clear() { parts = bits = 0; }
  __device__ void add(const HardLabels& y) {
    parts += y.word[0] + y.word[1];
    bits |= y.word[0] | y.word[1];
  }
  __device__ float count() const { return float(int((parts * 0x01010101u) >> 24)); }
  __device__ bool valid() const { return (bits & 0xfefefefeu) == 0; }
};

// A source loads kUnroll vectors of kVector neighbours at once: many loads are in flight before the first is used. It
// also stores results. kWeighted: weights may differ from 1, and are 0 at and past `count`. Else `w` is not touched.

// Any strides and types, an element at a time.
template <class Real_>
struct StridedRow {
  using Real = Real_;
  static constexpr bool kNarrow = false;
  static constexpr int kVector = 1, kUnroll = 1;
  const Job& job;
  int64_t n, c, first, count;

  // Whether weights may differ from 1 in the group that starts at `base`.
  __device__ bool weighted(int64_t) const { return true; }

  template <bool kWeighted>
  __device__ void load(int64_t base, Real (&z)[kUnroll][1], Real (&t)[kUnroll][1], Real (&w)[kUnroll][1]) const {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = base + u * kThreads + threadIdx.x;
      z[u][0] = t[u][0] = w[u][0] = Real(0);
      if (i >= count) continue;
      w[u][0] = load_weight<Real>(job, n, c, first + i);
      t[u][0] = load_label<Real>(job, n, c, first + i, w[u][0]);
      z[u][0] = load_logit<Real>(job, n, c, first + i);
      if (job.plan.link == LinkKind::identity && !is_probability(z[u][0])) z[u][0] = not_a_number<Real>();
    }
  }
  template <bool kWeighted>
  __device__ void store(int64_t base, const Real (&out)[kUnroll][1]) const {
    const View& v = job.problem.output;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = base + u * kThreads + threadIdx.x;
      if (i < count) store_number(v, offset_of(v, n, c, first + i), out[u][0]);
    }
  }
  // g *= the upstream gradient of each element.
  template <bool kWeighted>
  __device__ void scale(int64_t base, Real (&g)[kUnroll][1]) const {
    const View& v = job.problem.upstream;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t i = base + u * kThreads + threadIdx.x;
      if (i < count) g[u][0] *= load_number<Real>(v, offset_of(v, n, c, first + i));
    }
  }
};

// Planes that are arrays, read and written 16 bytes of logits at a time.
template <class Element>
struct DenseRow {
  using Real = float;
  static constexpr bool kNarrow = Number<Element>::kNarrow;
  static constexpr int kVector = 16 / int(sizeof(Element)), kUnroll = 8 / kVector;
  using Array = float[kUnroll][kVector];
  const Job& job;
  int64_t n, c, first, count;
  const Element* logits;  // of this thread's first pixel
  const unsigned char* target;
  Element* output;

  __device__ DenseRow(const Job& job, int64_t n, int64_t c, int64_t first, int64_t count)
      : job(job),
        n(n),
        c(c),
        first(first),
        count(count),
        logits(kept(static_cast<const Element*>(job.problem.logits.data) + row_offset(job.problem.logits))),
        target(kept(static_cast<const unsigned char*>(job.problem.target.data) +
                    row_offset(job.problem.target) * size_of(job.problem.target.dtype))),
        output(kept(static_cast<Element*>(job.problem.output.data) + row_offset(job.problem.output))) {}
  __device__ int64_t row_offset(const View& v) const {
    return n * v.sample_stride + c * v.class_stride + first + int64_t(threadIdx.x) * kVector;
  }

  __device__ bool weighted(int64_t base) const {
    return job.problem.has_weight || job.can_ignore || (job.plan.has_ignore && !job.problem.hard_target) ||
           base + kThreads * kVector * kUnroll > count;
  }
  // Whether all labels are bytes, and all weights are 1, except past the end.
  __device__ bool plain_bytes() const {
    const Dtype labels = job.problem.target.dtype;
    return (labels == Dtype::u8 || labels == Dtype::boolean) && !job.problem.has_weight && !job.can_ignore;
  }
  // kChecks: a label that is neither 0 nor 1 makes the 8 logits of its vector NaN.
  template <bool kChecks>
  __device__ void load_hard(int64_t base, Real (&z)[kVector], HardLabels& labels) const {
    Pack<Element, kVector> pack;
    Pack<uint8_t, kVector> bytes;
    pack.load(logits + base);
    bytes.load(target + base);
    labels = {bytes.pair[0], bytes.pair[1]};
    if (kChecks) {
      const uint32_t spoilt = labels.valid() ? 0 : ~0u;
      for (uint32_t& pair : pack.pair) pair |= spoilt;
    }
#pragma unroll
    for (int k = 0; k < kVector; ++k) z[k] = Number<Element>::widened(pack, k);
  }
  __device__ Dense<kVector> dense() const { return {job, n, first, count}; }
  __device__ int64_t position(int64_t base, int u) const {
    return base + (u * kThreads + int64_t(threadIdx.x)) * kVector;
  }

  template <class T>
  __device__ const T* labels() const {
    return reinterpret_cast<const T*>(target);
  }
  // Calls f(pack, u) for each vector of a tensor. All loads come before the first call.
  template <bool kWeighted, class T, class F>
  __device__ void load_all(const T* from, int64_t base, const F& f) const {
    Pack<T, kVector> pack[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!kWeighted || dense().holds(position(base, u)))
        pack[u].load(from + base + u * kThreads * kVector);
      else
        pack[u].clear();
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) f(pack[u], u);
  }
  template <bool kWeighted, class T>
  __device__ void load_hard(int64_t base, Array& t, Array& w) const {
    const T ignored = T(job.plan.ignore_index);
    load_all<kWeighted>(labels<T>(), base, [&](const Pack<T, kVector>& pack, int u) {
      T any = T(0);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        const T y = pack.element[k];
        any |= y;
        t[u][k] = y == T(0) ? 0.0f : 1.0f;
        if (kWeighted && job.can_ignore && y == ignored) t[u][k] = w[u][k] = 0.0f;
      }
      if (uint64_t(any) <= 1) return;
#pragma unroll
      for (int k = 0; k < kVector; ++k)
        if (uint64_t(pack.element[k]) > 1 && !(kWeighted && w[u][k] == 0.0f)) t[u][k] = not_a_number<float>();
    });
  }
  template <bool kWeighted, class T>
  __device__ void load_soft(int64_t base, Array& t, Array& w) const {
    load_all<kWeighted>(labels<T>(), base, [&](const Pack<T, kVector>& pack, int u) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        t[u][k] = Number<T>::widened(pack, k);
        if (kWeighted && t[u][k] == job.plan.ignored_label) w[u][k] = 0.0f;
        if (!is_probability(t[u][k])) t[u][k] = not_a_number<float>();
      }
    });
  }

  template <bool kWeighted>
  __device__ void load(int64_t base, Array& z, Array& t, Array& w) const {
    if (kWeighted) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (dense().holds(position(base, u))) {
          dense().load_weights(c, position(base, u), w[u]);
        } else {
#pragma unroll
          for (int k = 0; k < kVector; ++k) w[u][k] = 0.0f;
        }
      }
    }
    load_all<kWeighted>(logits, base, [&](const Pack<Element, kVector>& pack, int u) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) z[u][k] = Number<Element>::widened(pack, k);
    });
    switch (job.problem.target.dtype) {
      case Dtype::boolean:
      case Dtype::u8:
        return load_hard<kWeighted, uint8_t>(base, t, w);
      case Dtype::i32:
        return load_hard<kWeighted, int32_t>(base, t, w);
      case Dtype::i64:
        return load_hard<kWeighted, int64_t>(base, t, w);
      case Dtype::f16:
        return load_soft<kWeighted, Half>(base, t, w);
      case Dtype::bf16:
        return load_soft<kWeighted, Bfloat16>(base, t, w);
      default:
        return load_soft<kWeighted, float>(base, t, w);
    }
  }
  template <bool kWeighted>
  __device__ void store(int64_t base, const Array& out) const {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      Pack<Element, kVector> pack;
#pragma unroll
      for (int k = 0; k < kVector; ++k) pack.element[k] = Number<Element>::narrowed(out[u][k]);
      if (!kWeighted || dense().holds(position(base, u))) pack.store(output + base + u * kThreads * kVector);
    }
  }
  template <bool kWeighted>
  __device__ void scale(int64_t base, Array& g) const {
    const View& v = job.problem.upstream;
    load_all<kWeighted>(static_cast<const float*>(v.data) + row_offset(v), base,
                        [&](const Pack<float, kVector>& pack, int u) {
#pragma unroll
                          for (int k = 0; k < kVector; ++k) g[u][k] *= pack.element[k];
                        });
  }
};

}  // namespace
}  // namespace segfuse
