// Every loss: its formula, its source, its struct. What a loss *is* stands here and nowhere else in C++.
//
// A pointwise loss maps a pixel and its label t to two parts, the one linear in t and the one linear in 1 - t; the
// engine sums them apart, so that class balance (alpha, pos_weight, beta) is applied to sums, in the head. Written on
// any number type: V gives the value, Dual<V> value and slope. Under the softmax link only the positive part is read.
//
// A region loss maps the sums of a row to score = numerator / denominator and to their difference, written without
// cancellation, so that a nearly perfect loss keeps its digits.
//
// To add one: its struct, and its line in the list at the end of its section.
#pragma once

#include "link.h"
#include "math.h"

namespace segfuse {
namespace {

// ---------------------------------------------------------------------------------------------------------- pointwise

template <class T>
struct Parts {
  T positive, negative;
};

template <class T, class V>
HD Parts<T> by_label(const V& t, const T& positive, const T& negative) {
  return {masked_product(t, positive), masked_product(V(1) - t, negative)};
}

// The same where slopes are finite although values are not.
template <class V>
HD Parts<V> by_label_of_finite_slope(const V& t, const V& positive, const V& negative) {
  return by_label(t, positive, negative);
}
template <class V>
HD Parts<Dual<V>> by_label_of_finite_slope(const V& t, const Dual<V>& positive, const Dual<V>& negative) {
  const V u = V(1) - t;
  return {dual(masked_product(t, positive.v), t * positive.d[0]),
          dual(masked_product(u, negative.v), u * negative.d[0])};
}

// Binary cross-entropy: t softplus(-z) + (1-t) softplus(z), the label smoothed to t (1-e) + e/2.
template <class Real>
struct BceWithLogits {
  Real smoothing;
  HD explicit BceWithLogits(const Real* parameter) : smoothing(parameter[0]) {}
  template <class T, class V>
  HD Parts<T> operator()(const Pixel<T>& x, const V& t) const {
    return by_label_of_finite_slope(t * V(1 - smoothing) + V(smoothing / 2), -x.log_p, -x.log_q);
  }
};

// Cross-entropy: -sum_c t_c log p_c, the label smoothed to t (1-e) + e/C by the engine's caller (parameter 1 is e/C).
template <class Real>
struct CrossEntropy {
  Real keep, spread;
  HD explicit CrossEntropy(const Real* parameter) : keep(1 - parameter[0]), spread(parameter[1]) {}
  template <class T, class V>
  HD Parts<T> operator()(const Pixel<T>& x, const V& t) const {
    return by_label_of_finite_slope(t * V(keep) + V(spread), -x.log_p, -x.log_q);
  }
};

// Focal loss, Lin et al. 2017: -(1 - p_t)^gamma log p_t.
template <class Real>
struct Focal {
  Real gamma;
  HD explicit Focal(const Real* parameter) : gamma(parameter[0]) {}
  template <class T, class V>
  HD Parts<T> operator()(const Pixel<T>& x, const V& t) const {
    return by_label(t, power(x.q, gamma) * -x.log_p, power(x.p, gamma) * -x.log_q);
  }
};

// The focal loss at gamma = 2, its default: a square in place of a power.
template <class Real>
struct FocalSquare {
  HD explicit FocalSquare(const Real*) {}
  template <class T, class V>
  HD Parts<T> operator()(const Pixel<T>& x, const V& t) const {
    return by_label(t, square(x.q) * -x.log_p, square(x.p) * -x.log_q);
  }
};

#define SEGFUSE_POINTWISE(X)        \
  X(bce_with_logits, BceWithLogits) \
  X(cross_entropy, CrossEntropy)    \
  X(focal, Focal)                   \
  X(focal_square, FocalSquare)

// ------------------------------------------------------------------------------------------------------------- region

template <class T>
struct RowSums {
  T tp, fp, fn;
};

// score = numerator / max(denominator, eps); 1 - score = (max(denominator, eps) - numerator) / the same.
template <class T>
struct Score {
  T numerator, denominator, difference;  // difference = denominator - numerator
};

struct RegionParameters {
  double numerator, denominator;  // smooth=(nr, dr)
  double alpha, beta;
};

// Dice, Milletari 2016: (2 I + nr) / (2 I + FP + FN + dr).
struct Dice {
  template <class T>
  HD static Score<T> score(const RowSums<T>& s, const RegionParameters& a) {
    const T missed = s.fp + s.fn;
    return {2.0 * s.tp + a.numerator, 2.0 * s.tp + missed + a.denominator, missed + (a.denominator - a.numerator)};
  }
};

// Jaccard: (I + nr) / (I + FP + FN + dr).
struct Jaccard {
  template <class T>
  HD static Score<T> score(const RowSums<T>& s, const RegionParameters& a) {
    const T missed = s.fp + s.fn;
    return {s.tp + a.numerator, s.tp + missed + a.denominator, missed + (a.denominator - a.numerator)};
  }
};

// Tversky, Salehi 2017: (I + nr) / (I + alpha FP + beta FN + dr).
struct Tversky {
  template <class T>
  HD static Score<T> score(const RowSums<T>& s, const RegionParameters& a) {
    const T missed = a.alpha * s.fp + a.beta * s.fn;
    return {s.tp + a.numerator, s.tp + missed + a.denominator, missed + (a.denominator - a.numerator)};
  }
};

#define SEGFUSE_REGION(X) \
  X(dice, Dice)           \
  X(jaccard, Jaccard)     \
  X(tversky, Tversky)

// ------------------------------------------------------------------------------- shapes: what becomes of L = 1 - score

// Both are given, each accurate in its own right.
struct Linear {
  template <class T>
  HD static T shape(const T& loss, const T&, double) {
    return loss;
  }
};

// -log max(score, 1e-12).
struct Log {
  template <int N>
  HD static Dual<double, N> shape(const Dual<double, N>& loss, const Dual<double, N>& score, double) {
    if (score.v < 1e-12) return constant<double, N>(-log(1e-12));
    if (loss.v < 0.5) return -log1p(-loss);
    return -chain(log(score.v), 1 / score.v, score);
  }
};

struct LogCosh {
  template <int N>
  HD static Dual<double, N> shape(const Dual<double, N>& loss, const Dual<double, N>&, double) {
    return chain(log1p(cosh_minus_one(loss.v)), ::tanh(loss.v), loss);
  }
};

// Focal Tversky, Abraham & Khan 2019: max(0, L)^gamma; slope 0 at 0.
struct Power {
  template <int N>
  HD static Dual<double, N> shape(const Dual<double, N>& loss, const Dual<double, N>&, double gamma) {
    if (loss.v <= 0) return constant<double, N>(gamma == 0 ? 1.0 : 0.0);
    const double value = ::pow(loss.v, gamma);
    return chain(value, gamma * value / loss.v, loss);
  }
};

#define SEGFUSE_SHAPE(X) \
  X(linear, Linear)      \
  X(log, Log)            \
  X(log_cosh, LogCosh)   \
  X(power, Power)

}  // namespace
}  // namespace segfuse
