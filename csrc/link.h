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
    return {z, select(positive, big, small), select(positive, small, big), min(none, z) - l, min(none, -z) - l};
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
  template <class V>
  HD static Pixel<Dual<V>> seed(const Pixel<V>& x) {
    return {dual(x.z, V(1)), dual(x.p, x.p), dual(x.q, -x.p), dual(x.log_p, V(1)), dual(x.log_q, V(0))};
  }
};

}  // namespace
}  // namespace segfuse
