// Where a row's pixels come from and its gradient goes to (the source and the sink of rows.h).
#pragma once

#include "dense.h"

namespace segfuse {
namespace {

// A source brings kUnroll vectors of kVector neighbours at once, so that many loads are on their way before the first
// is used; a sink takes the results. kWeighted: there may be weights other than 1; positions at and past `count` have
// weight 0. Else `w` is not touched.

// Any strides and types, an element at a time.
template <class Real_>
struct StridedRow {
  using Real = Real_;
  static constexpr int kVector = 1, kUnroll = 1;
  const Job& job;
  int64_t n, c, first, count;

  // Whether weights are other than 1 in the group that starts at `base`.
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
  static constexpr int kVector = 16 / int(sizeof(Element)), kUnroll = 8 / kVector;
  using Array = float[kUnroll][kVector];
  const Job& job;
  int64_t n, c, first, count;

  __device__ bool weighted(int64_t base) const {
    return job.problem.has_weight || job.can_ignore || (job.plan.has_ignore && !job.problem.hard_target) ||
           base + kThreads * kVector * kUnroll > count;
  }
  __device__ Dense<kVector> dense() const { return {job, n, first, count}; }
  __device__ int64_t position(int64_t base, int u) const {
    return base + (u * kThreads + int64_t(threadIdx.x)) * kVector;
  }

  // f(pack, u) for each vector of a tensor, all loads ahead of the first call.
  template <bool kWeighted, class T, class F>
  __device__ void load_all(const View& v, int64_t base, const F& f) const {
    Pack<T, kVector> pack[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!kWeighted || dense().holds(position(base, u)))
        pack[u] = dense().template load<T>(v, c, position(base, u));
      else
        pack[u].clear();
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) f(pack[u], u);
  }
  template <bool kWeighted, class T>
  __device__ void load_hard(int64_t base, Array& t, Array& w) const {
    const T ignored = T(job.plan.ignore_index);
    load_all<kWeighted, T>(job.problem.target, base, [&](const Pack<T, kVector>& pack, int u) {
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
    load_all<kWeighted, T>(job.problem.target, base, [&](const Pack<T, kVector>& pack, int u) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        t[u][k] = Number<T>::widened(pack.element[k]);
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
    load_all<kWeighted, Element>(job.problem.logits, base, [&](const Pack<Element, kVector>& pack, int u) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) z[u][k] = Number<Element>::widened(pack.element[k]);
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
      if (!kWeighted || dense().holds(position(base, u))) dense().store(job.problem.output, c, position(base, u), pack);
    }
  }
  template <bool kWeighted>
  __device__ void scale(int64_t base, Array& g) const {
    load_all<kWeighted, float>(job.problem.upstream, base, [&](const Pack<float, kVector>& pack, int u) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) g[u][k] *= pack.element[k];
    });
  }
};

}  // namespace
}  // namespace segfuse
