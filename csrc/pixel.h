// One pixel (or one vector of pixels) of each step: what is summed, and what its gradient is. The engines of cpu/ and
// cuda/ bring the pixels here and carry the sums away.
#pragma once

#include "link.h"
#include "losses.h"
#include "math.h"

namespace segfuse {
namespace {

// Per row: dL/dp where t = 1 and where t = 0 (two floats, for a form a + b t cancels), the slopes of the squared error
// in both cases, and those of the L1 statistics below and above the label.
template <class V>
struct RowSlopes {
  V present, absent, squared_present, squared_absent, below, above;
};

// dL/dp of the region terms.
template <bool kExtra, class V>
HD V region_slope(const RowSlopes<V>& s, const V& p, const V& q, const V& t) {
  V slope = t * s.present + (V(1) - t) * s.absent;
  if (kExtra) {
    V d = signed_error(p, q, t);
    slope = slope + V(2) * d * (t * s.squared_present + (V(1) - t) * s.squared_absent);
    slope = slope + select(d < V(0), s.below, select(d > V(0), s.above, V(0.5) * (s.below + s.above)));
  }
  return slope;
}

// The region sums of a pixel of weight w, handed to add(i, value).
template <bool kExtra, class V, class Add>
HD void region_sums(const V& w, const V& p, const V& q, const V& t, bool negatives, const Add& add) {
  V wt = w * t, wu = w * (V(1) - t);
  add(0, wt * p);
  add(1, wu * p);
  add(2, wt * q);
  if (kExtra || negatives) add(3, wu * q);
  if (kExtra) {
    V d = signed_error(p, q, t);
    V close = select(d < V(0), (V(1) - t) + p, q + t);  // 1 - |d|
    V square = d * d, rest = close * (V(2) - close);    // d² and 1 - d²
    add(4, wt * square);
    add(5, wu * square);
    add(6, -(wt * d));
    add(7, w * max(V(0), d));
    add(8, w * max(V(0), -d));
    add(9, w * min(t, p));
    add(10, wt * rest);
    add(11, wu * rest);
  }
}

// The same of weight 1 and a label that is 0 or 1, p and q being those of the pixel mirrored to label 1 (losses.h),
// handed to add(i, whether it counts, value).
template <class V, class Add>
HD void mirrored_region_sums(const V& p, const V& q, bool label, const Add& add) {
  add(0, label, p);
  add(1, !label, q);
  add(2, label, q);
  add(3, !label, p);
}

// Softmax, the pull-back. With s_c = dL/dp_c of the regions and of pointwise losses of p (PointTerm::every_class), and
// D_c = dL/dlog p_c of the other pointwise losses,
//   dL/dz_k = p_k (s_k - Σ p_c s_c) + D_k q_k - p_k Σ_{c≠k} D_c.
// `reference` is s of a likely class: taken off every s first, the two sides of the first difference stay small, and a
// saturated pixel, right or wrong, keeps the digits of its gradient.
template <class V>
HD V softmax_pull_back(const V& p, const V& q, const V& s_minus_reference, const V& mean_s_minus_reference,
                       const V& own, const V& others) {
  return p * (s_minus_reference - mean_s_minus_reference) + (own * q - p * others);
}
// Of a class that has no D of its own: the mean and the others' D taken off together.
template <class V>
HD V softmax_pull_back(const V& p, const V& s_minus_reference, const V& mean_and_others) {
  return p * (s_minus_reference - mean_and_others);
}

}  // namespace
}  // namespace segfuse
