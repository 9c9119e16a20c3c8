// Links turn what the network gives (a logit or a probability) into the pixel that every pointwise loss reads.
//
// A link gives p, q = 1 - p and both logarithms. p and q are both accurate: where p is near 1, q is not computed by
// subtraction. `seed` adds their slopes, so that a loss written on `Pixel` gives value and slope at once:
//   Sigmoid, Identity   slope in the input z itself
//   Softmax             slope in log p of the class, other classes held (softmax_pull_back adds the rest)
//
// Local variables that may be vectors are not const, here and in the engines: GCC 12 would leave const ones in memory.
#pragma once

#include "dual.h"

namespace segfuse {
namespace {

// L: the type of the logarithms, T or LinearLog.
template <class T, class L = T>
struct Pixel {
  T z, p, q;
  L minus_log_p, minus_log_q;
};

// Four ways to compute the log(1 + e) of a sigmoid, e in [0, 1]; the engine chooses.
struct FullLog {  // every digit of a small result is right
  template <class V>
  HD static V log1p(const V& e) {
    return log1p_unit(e);
  }
};
// A quarter of the instructions. Absolute error 2.4e-7: 6e-8 of rounding 1 + e, 1.7e-7 of the approximate logarithm.
struct AbsoluteLog {
  HD static float log1p(float e) { return log_from_one(1.0f + e); }
};
// AbsoluteLog, but e itself for small e. So the relative error is at most 5e-4, the rounding of half precision.
struct HalfLog {
  HD static float log1p(float e) { return select(e < 4.8828125e-4f, e, AbsoluteLog::log1p(e)); }
};
// Computed later, for many pixels at once (LinearLog), with an error of 6e-8.
struct LateLog {
  HD static LateLog1p<float> log1p(float e) { return {e}; }
};

template <class V>
HD Dual<V> dual(const V& value, const V& slope) {
  Dual<V> r;
  r.v = value;
  r.d[0] = slope;
  return r;
}

// p - t without cancellation where p is near 1 (t = 1 gives -q exactly).
template <class V>
HD V signed_error(const V& p, const V& q, const V& t) {
  return select(p > V(0.5), (V(1) - t) - q, p - t);
}
template <class V>
HD Dual<V> signed_error(const Dual<V>& p, const Dual<V>& q, const V& t) {
  return dual(signed_error(p.v, q.v, t), p.d[0]);
}

struct Sigmoid {
  static constexpr bool kShared = false;  // whether the classes of a pixel share a normaliser
  // With e = exp(-|z|) neither tail overflows, and -log p = max(-z, 0) + log1p(e) keeps every digit of a small loss.
  template <class Log = FullLog, class V>
  HD static auto pixel(const V& z) {
    V e = exp_nonpositive(minus_abs(z));
    V big = V(1) / (V(1) + e);
    V small = e * big;
    auto positive = z >= V(0);
    auto l = Log::log1p(e);
    V none = V(0);
    return Pixel<V, decltype(z + l)>{z, select(positive, big, small), select(positive, small, big), max(none, -z) + l,
                                     max(none, z) + l};
  }
  template <class V>
  HD static Pixel<Dual<V>> seed(const Pixel<V>& x) {
    V pq = x.p * x.q;
    return {dual(x.z, V(1)), dual(x.p, pq), dual(x.q, -pq), dual(x.minus_log_p, -x.q), dual(x.minus_log_q, x.p)};
  }
  // p and q in one number: the smaller of them. The sign bit is set if that is q.
  template <class V>
  HD static V cached(const Pixel<V>& x) {
    return select(x.z >= V(0), -x.q, x.p);
  }
  // The inverse of cached(). Logit and logarithms are not known: they are NaN, and may not be read.
  template <class V>
  HD static Pixel<V> from_cache(const V& cached) {
    V small = abs(cached), large = V(1) - small, unknown = V(__builtin_nan(""));
    auto is_q = sign_bit(cached);
    return {unknown, select(is_q, large, small), select(is_q, small, large), unknown, unknown};
  }
};

// The input is already a probability, up to a rounding error. Logarithms are clamped at -100 and their slopes at 1e12,
// as in torch's BCE.
struct Identity {
  static constexpr bool kShared = false;
  template <class V>
  HD static Pixel<V> pixel(const V& z) {
    V p = max(V(0), z), q = max(V(0), V(1) - z);
    return {z, p, q, min(V(100), -log(p)), min(V(100), -log(q))};
  }
  template <class V>
  HD static Pixel<Dual<V>> seed(const Pixel<V>& x) {
    V floor = V(1e-12);
    return {dual(x.z, V(1)), dual(x.p, V(1)), dual(x.q, V(-1)), dual(x.minus_log_p, V(-1) / max(floor, x.p)),
            dual(x.minus_log_q, V(1) / max(floor, x.q))};
  }
};

// What the classes of a pixel share: `peak`, the largest logit; `rest`, the sum of exp(z - peak) over all classes but
// the first that reaches the peak. The normaliser is 1 + rest, so a nearly perfect pixel keeps the digits of its loss.
template <class V>
struct Normaliser {
  V peak, peak_class, rest, inverse, log;

  HD void finish() {
    inverse = V(1) / (V(1) + rest);
    log = log1p(rest);
  }
};

struct Softmax {
  static constexpr bool kShared = true;
  // e = exp(z - peak); `is_peak` is the mask of the one class that `rest` leaves out.
  template <class V, class Mask>
  HD static Pixel<V> pixel(const Normaliser<V>& n, const V& e, const V& z_minus_peak, const Mask& is_peak) {
    V p = e * n.inverse;
    return {z_minus_peak, p, select(is_peak, n.rest * n.inverse, V(1) - p), n.log - z_minus_peak, V(0)};
  }
  // The pixel of the label's class, for a pixel that has one label y. Given are log2_label = z_y log2(e) - s, at_label
  // = 2^log2_label, and rest, the sum of the other classes' powers, with one s at or near the peak. `inverse` becomes 1
  // / (at_label + rest). Neither p nor q loses digits to rounding. A power made of x fl(log2 e) is off by x 1.3e-8; at
  // x = 18 its cube, which a focal loss takes, would be off by 7e-7. So the smaller of at_label and rest is corrected,
  // once, by the distance of the two.
  //
  // kNarrow: for logits in half precision, which are rounded by 2^-9 or 2^-12 themselves; it takes half of the
  // instructions. p and q keep the 7e-7 of the powers. The loss is off by 2e-7 max(1, log2 C), because of fast_log2 of
  // the normaliser. Where q is small the loss is set to q, so that it is never off by more than 1/2000 of itself.
  template <class Real, bool kNarrow = false, class V>
  HD static Pixel<V> of_label(const V& at_label, const V& rest, const V& log2_label, V& inverse) {
    using Constants = Base2<Real>;
    if constexpr (kNarrow) {
      V total = at_label + rest;
      inverse = V(1) / total;
      V q = rest * inverse, minus_log_p = (fast_log2(total) - log2_label) * V(Constants::ln2);
      minus_log_p = select(q < V(4.8828125e-4), q, minus_log_p);
      return {log2_label * V(Constants::ln2), at_label * inverse, q, minus_log_p, V(0)};
    }
    auto less = at_label < rest;
    V distance = fast_log2(rest) - log2_label, digits = rough_log2(rest) - log2_label;
    V raw = select(less, at_label, rest), large = select(less, rest, at_label);
    V small = fma(raw, V(-Constants::excess) * min(V(Constants::exponents), abs(digits)), raw);
    V ratio;
    divide_shares(small, large, inverse, ratio);
    V p = small * inverse, q = large * inverse;
    V minus_log_p = select(less, distance * V(Constants::ln2), V(0)) + log1p_unit(ratio);
    return {log2_label * V(Constants::ln2), select(less, p, q), select(less, q, p), minus_log_p, V(0)};
  }
  template <class V>
  HD static Pixel<Dual<V>> seed(const Pixel<V>& x) {
    return {dual(x.z, V(1)), dual(x.p, x.p), dual(x.q, -x.p), dual(x.minus_log_p, V(-1)), dual(x.minus_log_q, V(0))};
  }
};

}  // namespace
}  // namespace segfuse
