// Links: from what the network gives (a logit, or a probability) to the pixel that every pointwise loss reads.
//
// A link gives p and q = 1 - p, each accurate in its own right (never 1 - p by subtraction where p is near 1), and both
// logarithms. `seed` dresses them with their slopes, so that a loss written on `Pixel` yields value and slope at once:
//   Sigmoid, Identity   slope in the input z itself
//   Softmax             slope in log p of the class, the others held (the engine subtracts p_k times the sum: pixel.h)
//
// Local variables that may be vectors are not const, here and in the engines: GCC 12 leaves those in memory.
#pragma once

#include "math.h"

namespace segfuse {
namespace {

// L: what logarithms are, T or LinearLog.
template <class T, class L = T>
struct Pixel {
  T z, p, q;
  L minus_log_p, minus_log_q;
};

// How an engine wants the log(1 + e) of a sigmoid, e in [0, 1].
struct FullLog {  // with every digit of a small one
  template <class V>
  HD static V log1p(const V& e) {
    return log1p_unit(e);
  }
};
// In a quarter of the instructions, to an absolute 2.4e-7: 6e-8 of 1 + e, and 1.7e-7 of the approximate logarithm.
struct AbsoluteLog {
  HD static float log1p(float e) { return log_from_one(1.0f + e); }
};
// The same; of small ones, and so of all, 5e-4 of itself, which is what half precision rounds to.
struct HalfLog {
  HD static float log1p(float e) { return select(e < 4.8828125e-4f, e, AbsoluteLog::log1p(e)); }
};
// Put off (LinearLog), to 6e-8 where many are taken at once.
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
  // p and q in one number: the smaller of them, with the sign bit set where it is q.
  template <class V>
  HD static V cached(const Pixel<V>& x) {
    return select(x.z >= V(0), -x.q, x.p);
  }
  // The inverse of cached(). Logit and logarithms are NaN: nobody may read them.
  template <class V>
  HD static Pixel<V> from_cache(const V& cached) {
    V small = abs(cached), large = V(1) - small, unknown = V(__builtin_nan(""));
    auto is_q = sign_bit(cached);
    return {unknown, select(is_q, large, small), select(is_q, small, large), unknown, unknown};
  }
};

// The input is a probability already, or less than a rounding error away from one. Logarithms are clamped at -100 and
// their slopes at 1e12, as in torch's BCE.
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

// Classes of a pixel share `peak` (the largest logit) and rest = sum of exp(z - peak) over every class but the first
// that reaches the peak, so that 1 + rest is the normaliser and a nearly perfect pixel keeps the digits of its loss.
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
  // The label's class of a pixel, where the label is one: at_label = 2^(z_y log2(e) - s) and rest, the sum over the
  // other classes, for one s at or near the peak; log2_label = z_y log2(e) - s. Nothing is left out of p or q that
  // rounding would lose. Made of x fl(log2 e), the powers are off by x 1.3e-8: at x = 18, the cube of which a focal
  // loss takes, by 7e-7; it is put back once, at the distance of the two. `inverse` gets 1 / (at_label + rest).
  //
  // kNarrow: of logits in half precision, which are rounded by 2^-9 or 2^-12 themselves, in half of the instructions. p
  // and q keep the powers' 7e-7. The loss is off by 2e-7 max(1, log2 C), for fast_log2 of the normaliser; it is q where
  // q is small, so that it is never off by more than 1/2000 of itself.
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
