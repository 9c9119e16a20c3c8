// Every loss: its formula, its source and its struct. No other C++ file defines a loss.
//
// A pointwise loss maps a pixel and its label t to two parts: one is linear in t, the other in 1 - t. The engine sums
// each part by itself, so the head can apply class balance (alpha, pos_weight, beta) to the sums. A loss is written for
// any number type: V gives the value, Dual<V> value and slope. The softmax link reads the positive part only.
//
// A region loss maps the sums of a row to score = numerator / denominator, and to the difference of the two. The
// difference is computed without cancellation, so that a nearly perfect loss keeps its digits.
//
// To add a loss: write its struct, and add a line to the list at the end of its section.
#pragma once

#include "dual.h"
#include "link.h"

namespace segfuse {
namespace {

// ---------------------------------------------------------------------------------------------------------- pointwise

constexpr int kParameters = 4;  // the most that a pointwise loss has

template <class T>
struct Parts {
  T positive, negative;
};

template <class T, class V>
HD Parts<T> by_label(const V& t, const T& positive, const T& negative) {
  return {masked_product(t, positive), masked_product(V(1) - t, negative)};
}

// As by_label, for a loss whose slopes are finite: only its value can be infinite, so only the value is masked.
template <class V, class T>
HD Parts<T> by_label_of_finite_slope(const V& t, const T& positive, const T& negative) {
  return by_label(t, positive, negative);
}
template <class V>
HD Parts<Dual<V>> by_label_of_finite_slope(const V& t, const Dual<V>& positive, const Dual<V>& negative) {
  V u = V(1) - t;
  return {dual(masked_product(t, positive.v), t * positive.d[0]),
          dual(masked_product(u, negative.v), u * negative.d[0])};
}

// A loss with a `Log` is mirrored: its negative part at the logit z is its positive part at -z. So cuda/sigmoid.h
// computes hard labels in half precision as labels 1, at z or at -z. `Log` says how the sums take logarithms;
// keeps_hard_labels() is true if the loss does not smooth its labels.

// Binary cross-entropy: t softplus(-z) + (1-t) softplus(z). The label is smoothed to t (1-e) + e/2.
template <class Real>
struct BceWithLogits {
  using Log = LateLog;
  Real smoothing;
  HD explicit BceWithLogits(const Real* parameter) : smoothing(parameter[0]) {}
  HD bool keeps_hard_labels() const { return smoothing == Real(0); }
  template <class T, class L, class V>
  HD Parts<L> operator()(const Pixel<T, L>& x, const V& t) const {
    return by_label_of_finite_slope(t * V(1 - smoothing) + V(smoothing / 2), x.minus_log_p, x.minus_log_q);
  }
};

// Cross-entropy: -sum_c t_c log p_c. The label is smoothed to t (1-e) + e/C; parameter 1 is e/C (resolve() in
// problem.h).
template <class Real>
struct CrossEntropy {
  Real keep, spread;
  HD explicit CrossEntropy(const Real* parameter) : keep(1 - parameter[0]), spread(parameter[1]) {}
  template <class T, class V>
  HD Parts<T> operator()(const Pixel<T>& x, const V& t) const {
    return by_label_of_finite_slope(t * V(keep) + V(spread), x.minus_log_p, x.minus_log_q);
  }
};

// Focal loss, Lin et al. 2017: -(1 - p_t)^gamma log p_t.
template <class Real>
struct Focal {
  Real gamma;
  HD explicit Focal(const Real* parameter) : gamma(parameter[0]) {}
  template <class T, class V>
  HD Parts<T> operator()(const Pixel<T>& x, const V& t) const {
    return by_label(t, power(x.q, gamma) * x.minus_log_p, power(x.p, gamma) * x.minus_log_q);
  }
};

// The focal loss with gamma = 2, its default: a square is cheaper than a power.
template <class Real>
struct FocalSquare {
  using Log = AbsoluteLog;
  HD explicit FocalSquare(const Real*) {}
  HD bool keeps_hard_labels() const { return true; }
  template <class T, class V>
  HD Parts<T> operator()(const Pixel<T>& x, const V& t) const {
    return by_label(t, square(x.q) * x.minus_log_p, square(x.p) * x.minus_log_q);
  }
};

// Polynomial losses, Le Bich Phuong & Nguyen Tien Zung: t sum_k (1-p)^k + (1-t) sum_k p^k over at most four exponents k
// (0: unused). Their asymmetry, a factor of the positives, is a Balance (problem.h).
template <class Real>
struct Polynomial {
  int exponent[kParameters];
  HD explicit Polynomial(const Real* parameter) {
    for (int k = 0; k < kParameters; ++k) exponent[k] = int(parameter[k]);
  }
  template <class T>
  HD T sum(const T& x) const {
    T r = integer_power(x, exponent[0]);
    for (int k = 1; k < kParameters; ++k)
      if (exponent[k]) r = r + integer_power(x, exponent[k]);
    return r;
  }
  template <class T, class V>
  HD Parts<T> operator()(const Pixel<T>& x, const V& t) const {
    return by_label(t, sum(x.q), sum(x.p));
  }
};

// Loss on logits without a sigmoid, by the same authors: 2 t l(z) + 2 (1-t) l(-z) with l(r) = max(-r, 0) / 2 +
// clamp(1/2 - r, 0, 1/2)^4. It is once differentiable, with slope -1/2 at 0.
template <class Real>
struct SigmoidFree {
  HD explicit SigmoidFree(const Real*) {}
  template <class T, class V>
  HD static T twice_l(const T& r, const V& half) {
    T near = square(square(at_most(half, positive_part(shifted(-r, half)))));
    return positive_part(-r) + near + near;
  }
  template <class T, class V>
  HD Parts<T> operator()(const Pixel<T>& x, const V& t) const {
    return by_label(t, twice_l(x.z, V(0.5)), twice_l(-x.z, V(0.5)));
  }
};

// The broken loss, by the same authors: t l(1-p) + (1-t) l(p), where l(y) = y^4 up to 1/2 and y - 7/16 above. Its slope
// jumps at 1/2.
template <class Real>
struct Broken {
  HD explicit Broken(const Real*) {}
  template <class V, class T>
  HD static T l(const T& y) {
    return select(value_of(y) > V(0.5), shifted(y, V(-0.4375)), square(square(y)));
  }
  template <class T, class V>
  HD Parts<T> operator()(const Pixel<T>& x, const V& t) const {
    return by_label(t, l<V>(x.q), l<V>(x.p));
  }
};

// A loss that is not linear in its label has one part only: the positive part holds all of it.
template <class V, class T>
HD Parts<T> undivided(const T& loss) {
  return {loss, scaled(loss, V(0))};
}

// Hinge: max(0, 1 - s z), s = 2 t - 1.
template <class Real>
struct Hinge {
  HD explicit Hinge(const Real*) {}
  template <class T, class V>
  HD Parts<T> operator()(const Pixel<T>& x, const V& t) const {
    V s = V(1) - V(2) * t;
    return undivided<V>(positive_part(shifted(masked_product(s, x.z), V(1))));
  }
};

// (p - t)².
template <class Real>
struct SquaredError {
  HD explicit SquaredError(const Real*) {}
  template <class T, class V>
  HD Parts<T> operator()(const Pixel<T>& x, const V& t) const {
    return undivided<V>(square(signed_error(x.p, x.q, t)));
  }
};

// |p - t|.
template <class Real>
struct AbsoluteError {
  HD explicit AbsoluteError(const Real*) {}
  template <class T, class V>
  HD Parts<T> operator()(const Pixel<T>& x, const V& t) const {
    return undivided<V>(abs(signed_error(x.p, x.q, t)));
  }
};

// Huber 1964: e²/2 where |e| = |p - t| <= delta, else delta (|e| - delta/2).
template <class Real>
struct Huber {
  Real delta;
  HD explicit Huber(const Real* parameter) : delta(parameter[0]) {}
  template <class T, class V>
  HD Parts<T> operator()(const Pixel<T>& x, const V& t) const {
    T e = abs(signed_error(x.p, x.q, t));
    T far = scaled(shifted(e, V(-delta / 2)), V(delta));
    return undivided<V>(select(value_of(e) > V(delta), far, scaled(square(e), V(0.5))));
  }
};

// Kullback-Leibler divergence of the label from the prediction: t log(t/p) + (1-t) log((1-t)/(1-p)), 0 log 0 = 0.
template <class Real>
struct KullbackLeibler {
  HD explicit KullbackLeibler(const Real*) {}
  template <class T, class V>
  HD Parts<T> operator()(const Pixel<T>& x, const V& t) const {
    V label = min(V(1), max(V(0), t));  // an interpolated label may lie a rounding error outside
    return by_label_of_finite_slope(label, shifted(x.minus_log_p, log(label)),
                                    shifted(x.minus_log_q, log(V(1) - label)));
  }
};

#define SEGFUSE_POINTWISE(X)        \
  X(bce_with_logits, BceWithLogits) \
  X(cross_entropy, CrossEntropy)    \
  X(focal, Focal)                   \
  X(focal_square, FocalSquare)      \
  X(polynomial, Polynomial)         \
  X(sigmoid_free, SigmoidFree)      \
  X(broken, Broken)                 \
  X(hinge, Hinge)                   \
  X(squared_error, SquaredError)    \
  X(absolute_error, AbsoluteError)  \
  X(huber, Huber)                   \
  X(kl_divergence, KullbackLeibler)

// ------------------------------------------------------------------------------------------------------------- region

// The sums of a row. `positives` and `negatives` do not depend on the prediction, so they have no slope.
template <class T>
struct RowSums {
  T tp, fp, fn, tn;
  double positives, negatives;  // Σ w t, Σ w (1-t). tn and negatives: only if a score of the plan reads them
};

// With d = max(denominator, eps): score = numerator / d, and 1 - score = (d - numerator) / d.
template <class T>
struct Score {
  T numerator, denominator, difference;  // difference = denominator - numerator
};

struct RegionParameters {
  double numerator, denominator;  // smooth=(nr, dr)
  double alpha, beta;
};

// score = (hits + nr) / (hits + missed + dr), where smooth=(nr, dr).
template <class T>
HD Score<T> ratio(const T& hits, const T& missed, const RegionParameters& a) {
  return {hits + a.numerator, hits + missed + a.denominator, missed + (a.denominator - a.numerator)};
}

// Most losses have one score. A loss with several adds them up, each times its share.
struct OneScore {
  static constexpr int kScores = 1;
  static constexpr bool kNegatives = false;  // whether RowSums::tn or negatives is read
  HD static double share(int, const RegionParameters&) { return 1; }
};

// Dice, Milletari 2016: (2 I + nr) / (2 I + FP + FN + dr).
struct Dice : OneScore {
  template <class T>
  HD static Score<T> score(int, const RowSums<T>& s, const RegionParameters& a) {
    return ratio(2.0 * s.tp, s.fp + s.fn, a);
  }
};

// Jaccard: (I + nr) / (I + FP + FN + dr).
struct Jaccard : OneScore {
  template <class T>
  HD static Score<T> score(int, const RowSums<T>& s, const RegionParameters& a) {
    return ratio(s.tp, s.fp + s.fn, a);
  }
};

// Tversky, Salehi 2017: (I + nr) / (I + alpha FP + beta FN + dr).
struct Tversky : OneScore {
  template <class T>
  HD static Score<T> score(int, const RowSums<T>& s, const RegionParameters& a) {
    return ratio(s.tp, a.alpha * s.fp + a.beta * s.fn, a);
  }
};

// Tversky of the background of a row: its hits are TN, its FP is the row's FN, its FN is the row's FP.
struct BackgroundTversky : OneScore {
  static constexpr bool kNegatives = true;
  template <class T>
  HD static Score<T> score(int, const RowSums<T>& s, const RegionParameters& a) {
    return ratio(s.tn, a.alpha * s.fn + a.beta * s.fp, a);
  }
};

// Sensitivity and specificity, Brosch 2015: alpha (I + nr) / (I + FN + dr) + (1 - alpha) (TN + nr) / (TN + FP + dr).
// Both denominators are sums of labels, so they have no slope.
struct SensitivitySpecificity {
  static constexpr int kScores = 2;
  static constexpr bool kNegatives = true;
  HD static double share(int k, const RegionParameters& a) { return k == 0 ? a.alpha : 1 - a.alpha; }
  template <int N>
  HD static Score<Dual<double, N>> score(int k, const RowSums<Dual<double, N>>& s, const RegionParameters& a) {
    const Dual<double, N>&hits = k == 0 ? s.tp : s.tn, &missed = k == 0 ? s.fn : s.fp;
    const double labelled = k == 0 ? s.positives : s.negatives;
    return {hits + a.numerator, constant<double, N>(labelled + a.denominator), missed + (a.denominator - a.numerator)};
  }
};

#define SEGFUSE_REGION(X)                  \
  X(dice, Dice)                            \
  X(jaccard, Jaccard)                      \
  X(tversky, Tversky)                      \
  X(background_tversky, BackgroundTversky) \
  X(sensitivity_specificity, SensitivitySpecificity)

// ------------------------------------------------------------------------------- shapes: functions of L = 1 - score

// A shape is given L and the score. Both are accurate: neither is computed as 1 minus the other.
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

// Focal Tversky, Abraham & Khan 2019: max(0, L)^gamma. The slope at 0 is 0.
struct Power {
  template <int N>
  HD static Dual<double, N> shape(const Dual<double, N>& loss, const Dual<double, N>&, double gamma) {
    if (loss.v <= 0) return constant<double, N>(gamma == 0 ? 1.0 : 0.0);
    const double value = ::pow(loss.v, gamma);
    return chain(value, gamma * value / loss.v, loss);
  }
};

// Adaptive logarithmic loss, Kaul, Pears & Manandhar 2021, of the L that the shape gives: omega log(1 + L/epsilon)
// below a threshold, L - C from there on. C makes the value continuous; the slope jumps.
template <int N>
HD Dual<double, N> adaptive_log(const Dual<double, N>& loss, double omega, double threshold, double epsilon) {
  if (loss.v < threshold) return omega * log1p(1 / epsilon * loss);
  return loss + (omega * log1p(threshold / epsilon) - threshold);
}

#define SEGFUSE_SHAPE(X) \
  X(linear, Linear)      \
  X(log, Log)            \
  X(log_cosh, LogCosh)   \
  X(power, Power)

}  // namespace
}  // namespace segfuse
