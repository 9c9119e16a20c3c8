// Links: from what the network gives (a logit, or a probability) to the pixel that every pointwise loss reads.
//
// A link gives p and q = 1 - p, each accurate in its own right (never 1 - p by subtraction where p is near 1), and both
// logarithms. `seed` dresses them with their slopes, so that a loss written on `Pixel` yields value and slope at once:
//   Sigmoid, Identity   slope in the input z itself
//   Softmax             slope in log p of the class, the others held (the engine subtracts p_k times the sum: pixel.h)
#pragma once

#include "math.h"

namespace segfuse {
namespace {

template <class T>
struct Pixel {
  T z, p, q, log_p, log_q;
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
  // With e = exp(-|z|) neither tail overflows, and log p = min(z, 0) - log1p(e) keeps every digit of a small loss.
  template <class V>
  HD static Pixel<V> pixel(const V& z) {
    const V e = exp_nonpositive(-abs(z));
    const V big = V(1) / (V(1) + e);
    const V small = e * big;
    const auto positive = z >= V(0);
    const V l = log1p_unit(e);
    const V none = V(0);
    return {z, select(positive, big, small), select(positive, small, big), -max(none, -z) - l, -max(none, z) - l};
  }
  template <class V>
  HD static Pixel<Dual<V>> seed(const Pixel<V>& x) {
    const V pq = x.p * x.q;
    return {dual(x.z, V(1)), dual(x.p, pq), dual(x.q, -pq), dual(x.log_p, x.q), dual(x.log_q, -x.p)};
  }
};

// The input is a probability already. Logarithms are clamped at -100 and their slopes at 1e12, as in torch's BCE.
struct Identity {
  static constexpr bool kShared = false;
  template <class V>
  HD static Pixel<V> pixel(const V& z) {
    const V q = V(1) - z;
    return {z, z, q, max(V(-100), log(z)), max(V(-100), log(q))};
  }
  template <class V>
  HD static Pixel<Dual<V>> seed(const Pixel<V>& x) {
    const V floor = V(1e-12);
    return {dual(x.z, V(1)), dual(x.p, V(1)), dual(x.q, V(-1)), dual(x.log_p, V(1) / max(floor, x.p)),
            dual(x.log_q, V(-1) / max(floor, x.q))};
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
    const V p = e * n.inverse;
    return {z_minus_peak, p, select(is_peak, n.rest * n.inverse, V(1) - p), z_minus_peak - n.log, V(0)};
  }
  // The label's class of a pixel, where the label is one: own = exp(z_y - s) and rest, the sum of exp(z_c - s) over the
  // other classes, for one s at or near the peak; log_own = z_y - s. Nothing is left out of p or q that rounding would
  // lose. `inverse` gets 1 / (own + rest).
  template <class V>
  HD static Pixel<V> of_label(const V& own, const V& rest, const V& log_own, V& inverse) {
    inverse = V(1) / (own + rest);
    const auto less = own < rest;
    const V ratio = select(less, own, rest) / select(less, rest, own);
    const V log_p = select(less, log_own - log_from_one(rest), V(0)) - log1p_unit(ratio);
    return {log_own, own * inverse, rest * inverse, log_p, V(0)};
  }
  // The same from exponentials and a logarithm to base 2. Made of x fl(log2 e), they are off by x 1.3e-8: at x = 18,
  // the cube of which a focal loss takes, by 7e-7. It is put back once, at the distance of the sum.
  HD static Pixel<float> of_label_base2(const float& own, const float& rest, const float& log2_own, float& inverse) {
    const float distance = max(-150.0f, min(150.0f, fast_log2(rest) - log2_own));
    return of_label(own, fma(rest, 9.2533e-9f * distance, rest), log2_own * kLn2, inverse);
  }
  template <class V>
  HD static Pixel<Dual<V>> seed(const Pixel<V>& x) {
    return {dual(x.z, V(1)), dual(x.p, x.p), dual(x.q, -x.p), dual(x.log_p, V(1)), dual(x.log_q, V(0))};
  }
};

}  // namespace
}  // namespace segfuse
