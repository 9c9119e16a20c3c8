// Strided source and sink: a tile of positions of one (sample, class) to a plain array and back. The engines see
// neither strides, nor sizes, nor element types.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../dtype.h"
#include "../math.h"
#include "../problem.h"
#include "kernels.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace segfuse {
namespace {

// Standard-library templates stay out of these units: what the linker keeps of them may hold AVX-512 (see math.h).
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
// The instruction makes subnormal halves whatever the flush mode is.
inline void store_run(Half* p, int64_t stride, int64_t count, const float* in) {
  int64_t i = 0;
  if (stride == 1)
    for (; i + 8 <= count; i += 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < count; ++i) p[i * stride] = narrow_half(in[i]);
}
#endif

// What the engine will want of a row that lies far from the others: more rows than the prefetchers of the processor
// follow. A run ahead of p, as long as a vector; an address beyond the end does no harm. Into the second cache: of
// misses of the first one too few can be under way at a time (measured: a third of the time of loss and gradient). To
// be asked for among exponentials or stores: in a loop that only reads, one would wait for the other (a sixth).
template <class V, class Real>
INLINE void prefetch(const Real* p) {
  constexpr int64_t bytes = V::lanes * int64_t(sizeof(Real)), ahead = bytes < 512 ? 512 : 2 * bytes;
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(reinterpret_cast<const char*>(p) + ahead + b, 0, 2);
}

// f(pointer to element 0 typed as the view's dtype).
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

// Runs of constant stride: f(offset of the run in elements, its stride, its first place in the tile, its length).
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

#if defined(__AVX2__)
inline void transpose_square(const float* in, int64_t in_step, float* out, int64_t out_step, Count<8>) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(in + i * in_step);
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int k = 0; k < 2; ++k) {
      a[i + 2 * k] = _mm256_shuffle_ps(b[i + k], b[i + k + 2], 0x44);
      a[i + 2 * k + 1] = _mm256_shuffle_ps(b[i + k], b[i + k + 2], 0xee);
    }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(out + i * out_step, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
    _mm256_storeu_ps(out + (i + 4) * out_step, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
  }
}
#endif
#if defined(__SSE2__)
inline void transpose_square(const float* in, int64_t in_step, float* out, int64_t out_step, Count<4>) {
  __m128 a[4];
  for (int i = 0; i < 4; ++i) a[i] = _mm_loadu_ps(in + i * in_step);
  _MM_TRANSPOSE4_PS(a[0], a[1], a[2], a[3]);
  for (int i = 0; i < 4; ++i) _mm_storeu_ps(out + i * out_step, a[i]);
}
// By squares, the last ones of a row or column shifted back over their neighbours.
template <int kSide>
inline void transpose_by(const float* in, int64_t in_step, int64_t rows, int64_t columns, float* out,
                         int64_t out_step) {
  for (int64_t i = 0; i < rows; i += kSide)
    for (int64_t j = 0; j < columns; j += kSide) {
      const int64_t r = smaller(i, rows - kSide), c = smaller(j, columns - kSide);
      transpose_square(in + r * in_step + c, in_step, out + c * out_step + r, out_step, Count<kSide>());
    }
}
#endif

// out[column][row] = in[row][column].
template <class Real>
inline void transpose(const Real* in, int64_t in_step, int64_t rows, int64_t columns, Real* out, int64_t out_step) {
#if defined(__SSE2__)
  if constexpr (sizeof(Real) == 4) {
    const int64_t side = smaller(rows, columns);
#if defined(__AVX2__)
    if (side >= 8) return transpose_by<8>(in, in_step, rows, columns, out, out_step);
#endif
    if (side >= 4) return transpose_by<4>(in, in_step, rows, columns, out, out_step);
  }
#endif
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) out[j * out_step + i] = in[i * in_step + j];
}

// Whether the classes of a position lie side by side, and the positions one after another (channels_last).
inline bool is_interleaved(const View& v, int64_t classes) {
  return v.class_stride == 1 && v.stride[v.dims - 1] == classes && classes > 1 && classes <= 512;
}

// An array of Real as it is; of others a copy.
template <class Real>
inline const Real* as_real(const Real* p, int64_t, Real*) {
  return p;
}
template <class Element, class Real>
inline const Real* as_real(const Element* p, int64_t count, Real* copy) {
  load_run(p, 1, count, copy);
  return copy;
}

// f(first element of a block in memory, an array for it, its place in the tile, its positions).
constexpr int64_t kBlockElements = 4096;
template <class Real, class Function>
inline void for_blocks(const View& v, int64_t n, int64_t first, int64_t count, int64_t classes, const Function& f) {
  Real block[kBlockElements];
  const int64_t most = kBlockElements / classes / 8 * 8;
  with_floating(v.dtype, v.data, [&](auto* data) {
    for_runs(v, n, 0, first, count, [&](int64_t offset, int64_t, int64_t at, int64_t run) {
      for (int64_t done = 0; done < run; done += most)
        f(data + offset + done * classes, block, at + done, smaller(most, run - done));
    });
  });
}

// All classes of a tile: the row of class c at out + c step.
template <class Real>
inline void load_classes(const View& v, int64_t n, int64_t first, int64_t count, int64_t classes, Real* out,
                         int64_t step) {
  if (is_interleaved(v, classes))
    return for_blocks<Real>(v, n, first, count, classes, [&](auto* p, Real* block, int64_t at, int64_t positions) {
      transpose(as_real(p, positions * classes, block), classes, positions, classes, out + at, step);
    });
  for (int64_t c = 0; c < classes; ++c) load_floating(v, n, c, first, count, out + c * step);
}
template <class Real>
inline void store_classes(const View& v, int64_t n, int64_t first, int64_t count, int64_t classes, const Real* in,
                          int64_t step) {
  if (is_interleaved(v, classes))
    return for_blocks<Real>(v, n, first, count, classes, [&](auto* p, Real* block, int64_t at, int64_t positions) {
      if constexpr (std::is_same_v<decltype(p), Real*>) return transpose(in + at, step, classes, positions, p, classes);
      transpose(in + at, step, classes, positions, block, classes);
      store_run(p, 1, positions * classes, block);
    });
  for (int64_t c = 0; c < classes; ++c) store_floating(v, n, c, first, count, in + c * step);
}

// What a tile is filled with, asked for while the one before is computed, a part with each vector of it: in one go it
// would be waited for (labels of 64 bits: a sixth of the time with 4 classes).
struct Ahead {
  const char* at = nullptr;
  int64_t planes = 0, plane_bytes = 0, pixel_bytes = 0;

  Ahead() = default;
  Ahead(const View& v, int64_t n, int64_t first, int64_t classes) {
    const bool interleaved = is_interleaved(v, classes);
    if (v.dims != 1 || !(interleaved || v.stride[0] == 1)) return;
    const int64_t size = size_of(v.dtype);
    at = static_cast<const char*>(v.data) + (n * v.sample_stride + first * v.stride[0]) * size;
    planes = interleaved ? 1 : classes;
    plane_bytes = v.class_stride * size;
    pixel_bytes = v.stride[0] * size;
  }
  // For `count` positions from the i-th of the tile; addresses beyond the end do no harm.
  INLINE void ask(int64_t i, int64_t count) const {
    const char* p = at + i * pixel_bytes;
    for (int64_t c = 0; c < planes; ++c, p += plane_bytes)
      for (int64_t b = 0; b < count * pixel_bytes; b += 64) __builtin_prefetch(p + b, 0, 2);
  }
};

// The tile in place where it already is an array of Real, else null.
template <class Real>
inline Real* in_place(const View& v, int64_t n, int64_t c, int64_t first) {
  const bool same = v.dtype == (sizeof(Real) == 4 ? Dtype::f32 : Dtype::f64);
  if (!same || v.dims != 1 || v.stride[0] != 1) return nullptr;
  return static_cast<Real*>(v.data) + n * v.sample_stride + c * v.class_stride + first;
}

template <int kBytes>
struct Unsigned;
template <>
struct Unsigned<1> {
  using type = uint8_t;
};
template <>
struct Unsigned<2> {
  using type = uint16_t;
};
template <>
struct Unsigned<4> {
  using type = uint32_t;
};
template <>
struct Unsigned<8> {
  using type = uint64_t;
};

// A run of labels: converted, and whether any lies outside [0, classes). Plain loops, each of one width where it can
// be, so that they vectorise. Labels in range fit 32 bits.
template <class Real, class Element>
inline bool load_label_run(const Element* p, int64_t stride, int64_t count, int64_t classes, bool can_match,
                           Element ignored, Real* out, Real* weight) {
  using U = typename Unsigned<sizeof(Element)>::type;
  const bool limited = sizeof(Element) == 8 || uint64_t(classes) <= uint64_t(U(~U(0)));
  const U limit = limited ? U(classes) : U(0);
  U outside = 0;
  if (can_match) {
    for (int64_t i = 0; i < count; ++i) {
      const Element y = p[i * stride];
      outside |= U((y != ignored) & (U(y) >= limit));
      out[i] = y == ignored ? Real(0) : Real(int32_t(y));
      weight[i] = y == ignored ? Real(0) : weight[i];
    }
  } else {
    for (int64_t i = 0; i < count; ++i) outside |= U(U(p[i * stride]) >= limit);
    for (int64_t i = 0; i < count; ++i) out[i] = Real(int32_t(p[i * stride]));
  }
  return limited && outside;
}

// Integer labels as Real; `weight` is set to 0 where the label is ignored or out of range.
template <class Real>
inline void load_labels(const View& v, int64_t n, int64_t c, int64_t first, int64_t count, int64_t classes,
                        bool has_ignore, int64_t ignore, Real* out, Real* weight, ValueReport& bad) {
  with_integer(v.dtype, v.data, [&](auto* data) {
    using Element = typename Pointee<decltype(data)>::type;
    // An ignored value that the type cannot hold matches nothing: -100 is not the uint8 156.
    const Element ignored = Element(ignore);
    const bool can_match = has_ignore && int64_t(ignored) == ignore && (ignored < Element(1)) == (ignore < 1);
    for_runs(v, n, c, first, count, [&](int64_t offset, int64_t stride, int64_t at, int64_t run) {
      const Element* p = data + offset;
      const bool outside = stride == 1
                               ? load_label_run(p, 1, run, classes, can_match, ignored, out + at, weight + at)
                               : load_label_run(p, stride, run, classes, can_match, ignored, out + at, weight + at);
      if (!outside) return;
      for (int64_t i = 0; i < run; ++i) {
        const Element y = p[i * stride];
        if ((can_match && y == ignored) || uint64_t(int64_t(y)) < uint64_t(classes)) continue;
        constexpr ValueKind kind = std::is_unsigned_v<Element> ? ValueKind::unsigned_label : ValueKind::label;
        bad.add({1, n, c, first + at + i, int64_t(y), kind});
        out[at + i] = 0;
        weight[at + i] = 0;
      }
    });
  });
}

// Float labels; NaN weight stays, an ignored element loses its weight.
template <class Real>
inline void load_soft_labels(const View& v, int64_t n, int64_t c, int64_t first, int64_t count, bool has_ignore,
                             double ignore, Real* out, Real* weight) {
  load_floating(v, n, c, first, count, out);
  if (!has_ignore) return;
  for (int64_t i = 0; i < count; ++i)
    if (double(out[i]) == ignore) {
      weight[i] = 0;
      out[i] = 0;
    }
}

// Reports what is no probability, by more than the rounding of interpolated labels. weight: null, or 0 where nothing is
// read. A probability may be NaN: that reaches the loss.
template <class Real>
inline void check_probabilities(const Real* p, const Real* weight, int64_t n, int64_t c, int64_t first, int64_t count,
                                ValueKind kind, ValueReport& bad) {
  // Bits as integers: those of negative numbers and NaN are larger than those of all that is right. One maximum for a
  // register; comparing took a seventh of the instructions of a forward of Dice + BCE.
  using Bits = typename Unsigned<sizeof(Real)>::type;
  const Real one = Real(1);
  Bits most = 0, limit;
  std::memcpy(&limit, &one, sizeof(Bits));
#pragma GCC unroll 4
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, p + i, sizeof(Bits));
    most = most > bits ? most : bits;
  }
  if (most <= limit) return;
  for (int64_t i = 0; i < count; ++i) {
    if (is_probability(p[i]) || (weight && weight[i] == 0)) continue;
    if (p[i] != p[i] && kind == ValueKind::probability) continue;
    bad.add({1, n, c, first + i, 0, kind, double(p[i])});
  }
}

template <class Real>
inline void load_weight(const View& v, int64_t n, int64_t c, int64_t first, int64_t count, Real* out) {
  if (is_floating(v.dtype)) return load_floating(v, n, c, first, count, out);
  with_integer(v.dtype, v.data, [&](auto* data) {
    for_runs(v, n, c, first, count, [&](int64_t offset, int64_t stride, int64_t at, int64_t run) {
      load_run(data + offset, stride, run, out + at);
    });
  });
}

}  // namespace
}  // namespace segfuse
