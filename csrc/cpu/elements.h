// Loads runs of elements, of any type and strides, as arrays of float or double, and stores them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../dtype.h"
#include "../problem.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace segfuse {
namespace {

// Files that isa_*.cpp include call no templates of the standard library: the copy that the linker keeps may hold
// AVX-512 (see math.h).
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
template <int n>
struct Count {};
template <class T>
struct Pointee;
template <class T>
struct Pointee<T*> {
  using type = T;
};

template <class Real, class Element>
inline Real load_element(Element x) {
  return Real(x);
}
template <class Real>
inline Real load_element(Half x) {
  return Real(widen(x));
}
template <class Real>
inline Real load_element(Bfloat16 x) {
  return Real(widen(x));
}

template <class Element, class Real>
inline Element store_element(Real x) {
  return Element(x);
}
template <>
inline Half store_element<Half, float>(float x) {
  return narrow_half(x);
}
template <>
inline Bfloat16 store_element<Bfloat16, float>(float x) {
  return narrow_bfloat16(x);
}
template <>
inline Half store_element<Half, double>(double x) {
  return narrow_half(float(x));
}
template <>
inline Bfloat16 store_element<Bfloat16, double>(double x) {
  return narrow_bfloat16(float(x));
}

template <class Element, class Real>
inline void load_run(const Element* p, int64_t stride, int64_t count, Real* out) {
  if (stride == 1 && std::is_same_v<Element, Real>)
    std::memcpy(out, p, size_t(count) * sizeof(Real));
  else if (stride == 1)
    for (int64_t i = 0; i < count; ++i) out[i] = load_element<Real>(p[i]);
  else
    for (int64_t i = 0; i < count; ++i) out[i] = load_element<Real>(p[i * stride]);
}

template <class Element, class Real>
inline void store_run(Element* p, int64_t stride, int64_t count, const Real* in) {
  if (stride == 1 && std::is_same_v<Element, Real>)
    std::memcpy(p, in, size_t(count) * sizeof(Real));
  else if (stride == 1)
    for (int64_t i = 0; i < count; ++i) p[i] = store_element<Element>(in[i]);
  else
    for (int64_t i = 0; i < count; ++i) p[i * stride] = store_element<Element>(in[i]);
}

#if defined(__F16C__)
inline void load_run(const Half* p, int64_t stride, int64_t count, float* out) {
  int64_t i = 0;
  if (stride == 1)
    for (; i + 8 <= count; i += 8)
      _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i))));
  for (; i < count; ++i) out[i] = widen(p[i * stride]);
}
// The instruction makes subnormal halves in any flush mode.
inline void store_run(Half* p, int64_t stride, int64_t count, const float* in) {
  int64_t i = 0;
  if (stride == 1)
    for (; i + 8 <= count; i += 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < count; ++i) p[i * stride] = narrow_half(in[i]);
}
#endif

// Calls f(pointer to element 0, typed as the view's dtype).
template <class Function>
inline void with_floating(Dtype dtype, void* data, const Function& f) {
  switch (dtype) {
    case Dtype::f32:
      return f(static_cast<float*>(data));
    case Dtype::f64:
      return f(static_cast<double*>(data));
    case Dtype::f16:
      return f(static_cast<Half*>(data));
    case Dtype::bf16:
      return f(static_cast<Bfloat16*>(data));
    default:
      return;
  }
}
template <class Function>
inline void with_integer(Dtype dtype, void* data, const Function& f) {
  switch (dtype) {
    case Dtype::boolean:
    case Dtype::u8:
      return f(static_cast<uint8_t*>(data));
    case Dtype::i8:
      return f(static_cast<int8_t*>(data));
    case Dtype::i16:
      return f(static_cast<int16_t*>(data));
    case Dtype::i32:
      return f(static_cast<int32_t*>(data));
    case Dtype::i64:
      return f(static_cast<int64_t*>(data));
    case Dtype::u16:
      return f(static_cast<uint16_t*>(data));
    case Dtype::u32:
      return f(static_cast<uint32_t*>(data));
    case Dtype::u64:
      return f(static_cast<uint64_t*>(data));
    default:
      return;
  }
}

// Calls f(offset, stride, first place in the tile, length) for each run of constant stride. The offset is in elements.
template <class Function>
inline void for_runs(const View& v, int64_t n, int64_t c, int64_t first, int64_t count, const Function& f) {
  int64_t index[kMaxDims];
  int64_t offset = n * v.sample_stride + c * v.class_stride, rest = first;
  for (int d = v.dims - 1; d > 0; --d) {
    index[d] = rest % v.size[d];
    rest /= v.size[d];
    offset += index[d] * v.stride[d];
  }
  index[0] = rest;
  offset += rest * v.stride[0];
  const int last = v.dims - 1;
  for (int64_t done = 0; done < count;) {
    const int64_t run = smaller(count - done, v.size[last] - index[last]);
    f(offset, v.stride[last], done, run);
    done += run;
    index[last] += run;
    offset += run * v.stride[last];
    for (int d = last; d > 0 && index[d] == v.size[d]; --d) {
      offset += v.stride[d - 1] - index[d] * v.stride[d];
      index[d] = 0;
      ++index[d - 1];
    }
  }
}

template <class Real>
inline void load_floating(const View& v, int64_t n, int64_t c, int64_t first, int64_t count, Real* out) {
  with_floating(v.dtype, v.data, [&](auto* data) {
    for_runs(v, n, c, first, count, [&](int64_t offset, int64_t stride, int64_t at, int64_t run) {
      load_run(data + offset, stride, run, out + at);
    });
  });
}

template <class Real>
inline void store_floating(const View& v, int64_t n, int64_t c, int64_t first, int64_t count, const Real* in) {
  with_floating(v.dtype, v.data, [&](auto* data) {
    for_runs(v, n, c, first, count, [&](int64_t offset, int64_t stride, int64_t at, int64_t run) {
      store_run(data + offset, stride, run, in + at);
    });
  });
}

}  // namespace
}  // namespace segfuse
