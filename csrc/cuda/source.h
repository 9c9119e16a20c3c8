// Loads and stores elements of tensors by (sample, class, position): any strides, any type.
#pragma once

#include "job.h"

namespace segfuse {
namespace {

// Index: uint32_t if positions fit, else int64_t: a division of 64 bits is a call, and costs 80 instructions.
template <class Index>
__device__ inline int64_t offset_of(const View& v, int64_t n, int64_t c, Index i) {
  int64_t offset = n * v.sample_stride + c * v.class_stride;
#pragma unroll 1
  for (int d = v.dims - 1; d > 0; --d) {
    const Index size = Index(v.size[d]), rest = i / size;
    offset += int64_t(i - rest * size) * v.stride[d];
    i = rest;
  }
  return offset + int64_t(i) * v.stride[0];
}

template <class Real>
__device__ inline Real load_number(const View& v, int64_t offset) {
  switch (v.dtype) {
    case Dtype::f32:
      return Real(static_cast<const float*>(v.data)[offset]);
    case Dtype::f64:
      return Real(static_cast<const double*>(v.data)[offset]);
    case Dtype::f16:
      return Real(Number<Half>::widened(static_cast<const Half*>(v.data)[offset]));
    case Dtype::bf16:
      return Real(Number<Bfloat16>::widened(static_cast<const Bfloat16*>(v.data)[offset]));
    case Dtype::boolean:
    case Dtype::u8:
      return Real(static_cast<const uint8_t*>(v.data)[offset]);
    case Dtype::i8:
      return Real(static_cast<const int8_t*>(v.data)[offset]);
    case Dtype::i16:
      return Real(static_cast<const int16_t*>(v.data)[offset]);
    case Dtype::i32:
      return Real(static_cast<const int32_t*>(v.data)[offset]);
    case Dtype::i64:
      return Real(static_cast<const int64_t*>(v.data)[offset]);
    case Dtype::u16:
      return Real(static_cast<const uint16_t*>(v.data)[offset]);
    case Dtype::u32:
      return Real(static_cast<const uint32_t*>(v.data)[offset]);
    case Dtype::u64:
      return Real(static_cast<const uint64_t*>(v.data)[offset]);
  }
  return Real(0);
}

template <class Real>
__device__ inline void store_number(const View& v, int64_t offset, Real x) {
  switch (v.dtype) {
    case Dtype::f32:
      static_cast<float*>(v.data)[offset] = float(x);
      break;
    case Dtype::f64:
      static_cast<double*>(v.data)[offset] = double(x);
      break;
    case Dtype::f16:
      static_cast<Half*>(v.data)[offset] = Number<Half>::narrowed(float(x));
      break;
    default:
      static_cast<Bfloat16*>(v.data)[offset] = Number<Bfloat16>::narrowed(float(x));
  }
}

__device__ inline int64_t load_integer(const View& v, int64_t offset) {
  switch (v.dtype) {
    case Dtype::boolean:
    case Dtype::u8:
      return static_cast<const uint8_t*>(v.data)[offset];
    case Dtype::i8:
      return static_cast<const int8_t*>(v.data)[offset];
    case Dtype::i16:
      return static_cast<const int16_t*>(v.data)[offset];
    case Dtype::i32:
      return static_cast<const int32_t*>(v.data)[offset];
    case Dtype::u16:
      return static_cast<const uint16_t*>(v.data)[offset];
    case Dtype::u32:
      return static_cast<const uint32_t*>(v.data)[offset];
    default:  // a uint64 that does not fit becomes negative: out of range, as it should be
      return static_cast<const int64_t*>(v.data)[offset];
  }
}

template <class Real>
__device__ inline Real not_a_number() {
  return Real(NAN);
}

// A float of a label map as an integer; false if it is no whole number.
__device__ inline bool load_whole_number(const View& v, int64_t offset, int64_t& y) {
  const auto whole = [&](auto x) {
    y = abs(x) < decltype(x)(9e18) ? int64_t(x) : 0;
    return decltype(x)(y) == x;
  };
  // A double is compared as a double: 1 + 1e-12 is no label.
  return v.dtype == Dtype::f64 ? whole(load_number<double>(v, offset)) : whole(load_number<float>(v, offset));
}

// The label map at a position. An ignored label gets class 0 and weight 0. A label out of range gets class 0, so that
// no address depends on it, and weight NaN, so that loss and gradient are NaN: an error would make the host wait for
// the device.
template <class Real, class Index>
__device__ inline int load_class(const Job& job, int64_t n, Index i, Real& weight) {
  const Problem& p = job.problem;
  const int64_t offset = offset_of(p.target, n, 0, i);
  int64_t y = 0;
  const bool is_whole = p.hard_target || load_whole_number(p.target, offset, y);
  if (p.hard_target) y = load_integer(p.target, offset);
  if (is_whole && job.can_ignore && y == job.plan.ignore_index) {
    weight = Real(0);
    return 0;
  }
  if (is_whole && uint64_t(y) < uint64_t(p.classes)) return int(y);
  if (weight != Real(0)) weight = not_a_number<Real>();
  return 0;
}

// The label of one element of a row or of a soft target, NaN where it is out of range; `weight` becomes 0 where it is
// ignored.
template <class Real>
__device__ inline Real load_label(const Job& job, int64_t n, int64_t c, int64_t i, Real& weight) {
  const Problem& p = job.problem;
  const int64_t offset = offset_of(p.target, n, c, i);
  const bool row = !job.plan.multiclass;  // class probabilities have no ignored label
  if (p.hard_target) {
    const int64_t y = load_integer(p.target, offset);
    if (row && job.can_ignore && y == job.plan.ignore_index) weight = Real(0);
    return uint64_t(y) < 2 || weight == Real(0) ? Real(y) : not_a_number<Real>();
  }
  const Real t = load_number<Real>(p.target, offset);
  if (row && job.plan.has_ignore && double(t) == job.plan.ignore_value) weight = Real(0);
  return is_probability(t) ? t : not_a_number<Real>();
}

template <class Real, class Index>
__device__ inline Real load_weight(const Job& job, int64_t n, int64_t c, Index i) {
  const View& v = job.problem.weight;
  return job.problem.has_weight ? load_number<Real>(v, offset_of(v, n, c, i)) : Real(1);
}

template <class Real>
__device__ inline Real load_logit(const Job& job, int64_t n, int64_t c, int64_t i) {
  const View& v = job.problem.logits;
  return load_number<Real>(v, offset_of(v, n, c, i));
}

}  // namespace
}  // namespace segfuse
