// One pixel, or one vector of pixels, in each step: what it adds to the sums, and its gradient. The engines of cpu/ and
// cuda/ load the pixels, call these functions, and add up.
#pragma once

#include "dual.h"
#include "link.h"
#include "losses.h"
#include "problem.h"

namespace segfuse {
namespace {

// The slopes of a row: dL/dp where t = 1 and where t = 0 (two numbers, because the form a + b t cancels); the slopes of
// the squared error in both cases; the slopes of the L1 statistics where p is below and above the label.
template <class V>
struct RowSlopes {
  V at_positive, at_negative, squared_at_positive, squared_at_negative, below, above;

  // slope: in the order of RegionSlope.
  template <class Real>
  HD static RowSlopes of(const Real* slope) {
    return {V(slope[kAtPositive]),        V(slope[kAtNegative]), V(slope[kSquaredAtPositive]),
            V(slope[kSquaredAtNegative]), V(slope[kBelow]),      V(slope[kAbove])};
  }
  HD RowSlopes times(const V& factor) const {
    return {at_positive * factor,         at_negative * factor, squared_at_positive * factor,
            squared_at_negative * factor, below * factor,       above * factor};
  }
};

// dL/dp of the region terms.
template <bool kExtra, class V>
HD V region_slope(const RowSlopes<V>& s, const V& p, const V& q, const V& t) {
  V slope = t * s.at_positive + (V(1) - t) * s.at_negative;
  if (kExtra) {
    V d = signed_error(p, q, t);
    slope = slope + V(2) * d * (t * s.squared_at_positive + (V(1) - t) * s.squared_at_negative);
    slope = slope + select(d < V(0), s.below, select(d > V(0), s.above, V(0.5) * (s.below + s.above)));
  }
  return slope;
}

// The region sums of a pixel of weight w, handed to add(i, value).
template <bool kExtra, class V, class Add>
HD void region_sums(const V& w, const V& p, const V& q, const V& t, bool negatives, const Add& add) {
  V wt = w * t, wu = w * (V(1) - t);
  add(kTp, wt * p);
  add(kFp, wu * p);
  add(kFn, wt * q);
  if (kExtra || negatives) add(kTn, wu * q);
  if (kExtra) {
    V d = signed_error(p, q, t);
    V close = select(d < V(0), (V(1) - t) + p, q + t);  // 1 - |d|
    V square = d * d, rest = close * (V(2) - close);    // d² and 1 - d²
    add(kPositiveSquares, wt * square);
    add(kNegativeSquares, wu * square);
    add(kPositiveErrors, -(wt * d));
    add(kOver, w * max(V(0), d));
    add(kUnder, w * max(V(0), -d));
    add(kMinimum, w * min(t, p));
    add(kPositiveRest, wt * rest);
    add(kNegativeRest, wu * rest);
  }
}

// region_sums for weight 1 and a label of 0 or 1. p and q are those of the pixel mirrored to label 1 (losses.h). Calls
// add(i, whether the value counts, value).
template <class V, class Add>
HD void mirrored_region_sums(const V& p, const V& q, bool label, const Add& add) {
  add(kTp, label, p);
  add(kFp, !label, q);
  add(kFn, label, q);
  add(kTn, !label, p);
}

// The pull-back of softmax: dL/dz from dL/dp and dL/dlog p. s_c is dL/dp_c of the region terms and of the pointwise
// losses of p (PointwiseTerm::every_class). D_c is dL/dlog p_c of the other pointwise losses.
//   dL/dz_k = p_k (s_k - Σ p_c s_c) + D_k q_k - p_k Σ_{c≠k} D_c.
// `reference` is the s of a likely class. It is subtracted from every s first: then both sides of the first difference
// stay small, and a saturated pixel, right or wrong, keeps the digits of its gradient.
template <class V>
HD V softmax_pull_back(const V& p, const V& q, const V& s_minus_reference, const V& mean_s_minus_reference,
                       const V& log_slope, const V& others) {
  return p * (s_minus_reference - mean_s_minus_reference) + (log_slope * q - p * others);
}
// For a class whose D is 0. The mean and the D of the others are subtracted together.
template <class V>
HD V softmax_pull_back(const V& p, const V& s_minus_reference, const V& mean_and_others) {
  return p * (s_minus_reference - mean_and_others);
}

// ------------------------------------------------------------------------------- a pixel with one label (softmax)

// The powers of the classes are e_c = 2^(z_c log2(e) - s); here are their exponents. fma(z, log2(e), -s) rounds once;
// (z - peak) log2(e) would round twice. s is near peak log2(e), with peak the largest logit. It is the same for all
// classes, so its own rounding cancels (but see Base2::largest).
template <class Real, class V>
struct Exponents {
  V log2_e, shift;
  HD explicit Exponents(const V& peak) : log2_e(Base2<Real>::log2_e), shift(-(peak * log2_e)) {}
  HD V of(const V& z) const { return fma(z, log2_e, shift); }
};

// dL/dlog p of the label's class. Call add(loss, factor) for each pointwise loss.
template <class V>
struct LabelSlope {
  Pixel<Dual<V>> x;
  V sum;
  HD explicit LabelSlope(const Pixel<V>& label) : x(Softmax::seed(label)), sum(V(0)) {}
  template <class Loss>
  HD void add(const Loss& loss, const V& factor) {
    sum = sum + factor * loss(x, V(1)).positive.d[0];
  }
};

// dL/dz of all classes, if there are only pointwise losses: at_label for the label's class, of(e) for another class
// with the power e. `x` is the pixel of the label's class, inverse is 1 / Σ e_c, w the weight, slope the sum of
// LabelSlope.
template <class V>
struct PointwiseGradient {
  V at_label, factor;
  HD PointwiseGradient(const V& w, const Pixel<V>& x, const V& inverse, const V& slope)
      : at_label(w * slope * x.q), factor(-(w * inverse * slope)) {}
  HD V of(const V& e) const { return e * factor; }
};

// The same with region losses. Their dL/dp is s in the label's class and s_c in the others; r is the reference of
// softmax_pull_back; sum is Σ e_c (s_c - r) over the other classes.
template <class V>
struct RegionGradient {
  V at_label, factor, reference, mean_and_slope;
  HD RegionGradient(const V& w, const Pixel<V>& x, const V& inverse, const V& slope, const V& s, const V& r,
                    const V& sum)
      : factor(w * inverse), reference(r) {
    V mean = x.p * (s - r) + sum * inverse, none = V(0);
    mean_and_slope = mean + slope;
    at_label = w * softmax_pull_back(x.p, x.q, s - r, mean, slope, none);
  }
  HD V of(const V& e, const V& s) const { return softmax_pull_back(e * factor, s - reference, mean_and_slope); }
};

}  // namespace
}  // namespace segfuse
