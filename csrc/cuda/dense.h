// Planes that are arrays. A chunk of a plane is read some neighbours at a time, 16 bytes of logits per load.
#pragma once

#include "source.h"

namespace segfuse {
namespace {

// Labels that the dense engines read; the others go through source.h.
HD bool is_dense_label(Dtype t) { return t == Dtype::boolean || t == Dtype::u8 || t == Dtype::i32 || t == Dtype::i64; }
HD bool is_dense_weight(Dtype t) { return t == Dtype::f32 || t == Dtype::boolean || t == Dtype::u8; }

// Positions [first, first + count) of sample n; i counts from `first`, in whole groups of kVector.
template <int kVector>
struct Dense {
  const Job& job;
  int64_t n, first, count;

  template <class T>
  __device__ T* at(const View& v, int64_t c, int64_t i) const {
    return static_cast<T*>(v.data) + n * v.sample_stride + c * v.class_stride + first + i;
  }
  // Planes are multiples of kVector (policy.cu): there are no partial vectors.
  __device__ bool holds(int64_t i) const { return i < count; }
  template <class T>
  __device__ Pack<T, kVector> load(const View& v, int64_t c, int64_t i) const {
    Pack<T, kVector> pack;
    pack.load(at<const T>(v, c, i));
    return pack;
  }
  // The weights of channel c, or 1 if there are no weights.
  __device__ void load_weights(int64_t c, int64_t i, float (&w)[kVector]) const {
    const View& v = job.problem.weight;
    if (!job.problem.has_weight) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) w[k] = 1.0f;
    } else if (v.dtype == Dtype::f32) {
      take(load<float>(v, c, i), w);
    } else {
      take(load<uint8_t>(v, c, i), w);
    }
  }

 private:
  template <class T>
  __device__ static void take(const Pack<T, kVector>& pack, float (&out)[kVector]) {
#pragma unroll
    for (int k = 0; k < kVector; ++k) out[k] = float(pack.element[k]);
  }
};

}  // namespace
}  // namespace segfuse
