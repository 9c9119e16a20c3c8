// Loads a tile of positions of one (sample, class) into a plain array, and stores it back. So the engines see neither
// strides, nor sizes, nor element types.
#pragma once

#include "../math.h"
#include "interleaved.h"
#include "kernels.h"

namespace segfuse {
namespace {

// Prefetches the next vector of a plane into the second cache. There are more class planes than the processor
// prefetches by itself: without this, loss and gradient took a third longer. An address beyond the end does no harm.
// Call it among exponentials or stores: in a loop that only reads, one request waits for the other (a sixth of the
// time).
template <class V, class Real>
INLINE void prefetch(const Real* p) {
  constexpr int64_t bytes = V::lanes * int64_t(sizeof(Real)), distance = bytes < 512 ? 512 : 2 * bytes;
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(reinterpret_cast<const char*>(p) + distance + b, 0, 2);
}

// Prefetches the next tile while this one is computed, a part of it with each vector: requests that are issued all at
// once stall (labels of 64 bits with 4 classes: a sixth of the time).
struct Prefetcher {
  const char* at = nullptr;
  int64_t planes = 0, plane_bytes = 0, pixel_bytes = 0;

  Prefetcher() = default;
  Prefetcher(const View& v, int64_t n, int64_t first, int64_t classes) {
    const bool interleaved = is_interleaved(v, classes);
    if (v.dims != 1 || !(interleaved || v.stride[0] == 1)) return;
    const int64_t size = size_of(v.dtype);
    at = static_cast<const char*>(v.data) + (n * v.sample_stride + first * v.stride[0]) * size;
    planes = interleaved ? 1 : classes;
    plane_bytes = v.class_stride * size;
    pixel_bytes = v.stride[0] * size;
  }
  // Asks for `count` positions from the i-th of the tile. Addresses beyond the end do no harm.
  INLINE void ask(int64_t i, int64_t count) const {
    const char* p = at + i * pixel_bytes;
    for (int64_t c = 0; c < planes; ++c, p += plane_bytes)
      for (int64_t b = 0; b < count * pixel_bytes; b += 64) __builtin_prefetch(p + b, 0, 2);
  }
};

// The tile in the tensor itself, if it is an array of Real there; else null.
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

// Converts a run of labels. Returns whether any lies outside [0, classes). The loops are plain, each of one width if
// possible, so that they vectorise. Labels in range fit 32 bits.
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
    // An ignored value that the type cannot hold matches nothing. As a uint8, -100 would be 156.
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

// Labels that are whole numbers in [0, limit) stay, others become 0; the weight of `ignored` becomes 0. Returns whether
// any is neither. The loop is a function of its own, and plain: only so it vectorises (GCC 12).
template <class Wide, class Real>
inline bool keep_labels(const Wide* __restrict label, int64_t count, Wide limit, Wide ignored, Real* __restrict out,
                        Real* __restrict weight) {
  uint32_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Wide y = label[i];
    const Wide known = y >= Wide(0) ? (y < limit ? y : Wide(0)) : Wide(0);
    const Wide whole = Wide(int32_t(known));  // y, if y is a label
    out[i] = whole == y ? (y == ignored ? Real(0) : Real(whole)) : Real(0);
    weight[i] = y == ignored ? Real(0) : weight[i];
    wrong |= whole == y ? 0u : (y == ignored ? 0u : 1u);
  }
  return wrong;
}

// The labels of a label map of floats, as Real. A label is a whole number in [0, classes). `weight` is set to 0 where
// it is ignored or no label.
template <class Real>
inline void load_float_labels(const View& v, int64_t n, int64_t first, int64_t count, int64_t classes, bool has_ignore,
                              int64_t ignore, Real* out, Real* weight, ValueReport& bad) {
  with_floating(v.dtype, v.data, [&](auto* data) {
    using Element = typename Pointee<decltype(data)>::type;
    // A double is compared as a double: 1 + 1e-12 is no label.
    using Wide = std::conditional_t<std::is_same_v<Element, double>, double, Real>;
    constexpr int64_t block = 256;
    const Wide limit = Wide(classes), wanted = Wide(ignore);
    const bool can_match = has_ignore && wanted < Wide(9e18) && wanted > Wide(-9e18) && int64_t(wanted) == ignore;
    const Wide ignored = can_match ? wanted : Wide(__builtin_nan(""));  // which matches nothing
    for_runs(v, n, 0, first, count, [&](int64_t offset, int64_t stride, int64_t at, int64_t run) {
      for (int64_t begin = 0; begin < run; begin += block) {
        const int64_t length = smaller(block, run - begin);
        Wide label[block];
        Real* const to = out + at + begin;
        Real* const w = weight + at + begin;
        load_run(data + offset + begin * stride, stride, length, label);
        const bool wrong = keep_labels(label, length, limit, ignored, to, w);
        for (int64_t i = 0; wrong && i < length; ++i) {
          const Wide y = label[i];
          if (y == ignored || Wide(to[i]) == y) continue;  // to[i] is y where y is a label, else 0
          bad.add({1, n, 0, first + at + begin + i, 0, ValueKind::float_label, double(y)});
          w[i] = 0;
        }
      }
    });
  });
}

// Float labels. An ignored element gets the weight 0, whatever weight it had; a NaN weight of others stays.
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

// Reports values that are no probabilities, by more than the rounding of interpolated labels. weight: null, or 0 where
// the value is not read. A predicted probability may be NaN: that reaches the loss.
template <class Real>
inline void check_probabilities(const Real* p, const Real* weight, int64_t n, int64_t c, int64_t first, int64_t count,
                                ValueKind kind, ValueReport& bad) {
  // Compares bits as integers: those of negative numbers and NaN are larger than those of any probability. So one
  // maximum is enough per register. Comparing numbers took a seventh of the instructions of a forward of Dice + BCE.
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
