// The elementary functions of math.h on vectors (vec.h).
#pragma once

#include "vec.h"

namespace segfuse {
namespace {

// Minimax polynomials (Chebyshev fits). A comment beside each table gives its error. The arithmetic has a larger error.

template <class T>
struct Tables;

template <>
struct Tables<float> {
  static constexpr float ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f, log2_e = 1.44269504f;
  // 2^r - 1 over r, on [0, 1]: 5.3e-9
  static constexpr float exp2[] = {0.6931471709f,   0.2402272042f,   0.05549602356f,
                                   0.009652195066f, 0.001269216607f, 0.0002081791504f};
  static constexpr float exp_floor = -88.0f, normal = 1.17549435e-38f, zero_exponent = -127.0f;
  // (exp(r) - 1 - r) / r^2 on |r| <= ln2/2: 6.5e-8
  static constexpr float exp[] = {0.5f, 0.1666657667f, 0.04166655421f, 0.008363232884f, 0.001392625083f};
  // (log(m) - 2 s) / s^3 in s^2, s = (m-1)/(m+1), m in [sqrt(1/2), sqrt(2)]: 1.9e-7
  static constexpr float log[] = {0.6666668516f, 0.3998873183f, 0.2958215895f};
};

template <>
struct Tables<double> {
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr double log2_e = 1.4426950408889634074;
  static constexpr double exp2[] = {0.69314718055994532587,     0.24022650695909673078,   0.055504108664980668688,
                                    0.0096181291051517564725,   0.0013333558343937278751, 0.00015403521219107733092,
                                    0.000015252998899728418466, 1.3210583477765188102e-6, 1.0236023803275179299e-7,
                                    6.6344458662514140183e-9,   6.1230929168263871403e-10};
  static constexpr double exp_floor = -709.1, normal = 2.2250738585072014e-308, zero_exponent = -1023.0;
  static constexpr double exp[] = {0.5,
                                   0.1666666666666667103,
                                   0.041666666666666669783,
                                   0.0083333333333260831202,
                                   0.0013888888888883711167,
                                   0.00019841269875002278793,
                                   0.0000248015873256774619,
                                   2.7557255170000887438e-6,
                                   2.7557273478718580474e-7,
                                   2.5105312729622101787e-8,
                                   2.09147553258932022e-9};
  static constexpr double log[] = {0.66666666666666666461, 0.40000000000000890358, 0.28571428570795430945,
                                   0.22222222393566608674, 0.18181795442371985421, 0.15386250447940188611,
                                   0.13268485680654426838, 0.13089629160674622641};
};

// 2^n exp(r) for integral n >= zero_exponent and |r| <= ln2 / 2.
template <class T, int K>
INLINE Vec<T, K> scaled_exp(const Vec<T, K>& n, const Vec<T, K>& r) {
  Vec<T, K> y = fma(polynomial(r, Tables<T>::exp), r * r, r) + Vec<T, K>(1);
  return each([](Reg<T> a, Reg<T> b) INLINE_LAMBDA { return Reg<T>::scale(a, b); }, y.r, n.r);
}

// r = x - n ln2, n the nearest integer to x / ln2.
template <class T, int K>
INLINE Vec<T, K> fold_exponent(const Vec<T, K>& x, Vec<T, K>& n) {
  using C = Tables<T>;
  n = round(x * Vec<T, K>(C::log2_e));
  return fma(n, Vec<T, K>(-C::ln2_low), fma(n, Vec<T, K>(-C::ln2_high), x));
}

// exp(x) for x <= 0; results below the smallest normal number are 0, exp(NaN) is NaN.
template <class T, int K>
INLINE Vec<T, K> exp_nonpositive(const Vec<T, K>& x) {
  Vec<T, K> n;
  Vec<T, K> r = fold_exponent(max(Vec<T, K>(Tables<T>::exp_floor), x), n);
  return scaled_exp(n, r);
}

// 2^x for x of at most a few; results below the smallest normal number are 0, 2^NaN is NaN.
template <class T, int K>
INLINE Vec<T, K> fast_exp2(const Vec<T, K>& x) {
  return each(
      [](Reg<T> a) INLINE_LAMBDA {
        return Reg<T>::with_exponent(a, [](Reg<T> r) INLINE_LAMBDA {
          const Vec<T, 1> f(Registers<Reg<T>, 1>{r});
          return fma(polynomial(f, Tables<T>::exp2), f, Vec<T, 1>(1)).r.r;
        });
      },
      x.r);
}

// log(m) for m near 1.
template <class T, int K>
INLINE Vec<T, K> log_mantissa(const Vec<T, K>& m) {
  Vec<T, K> s = (m - Vec<T, K>(1)) / (m + Vec<T, K>(1));
  Vec<T, K> s2 = s * s;
  return fma(polynomial(s2, Tables<T>::log), s2 * s, s + s);
}

template <class T, int K>
INLINE Vec<T, K> split_exponent(const Vec<T, K>& x, Vec<T, K>& e) {
  auto split = each([](Reg<T> a) INLINE_LAMBDA { return Reg<T>::split(a); }, x.r);
  e = each([](const Split<T>& s) INLINE_LAMBDA { return s.exponent; }, split);
  return each([](const Split<T>& s) INLINE_LAMBDA { return s.mantissa; }, split);
}

// log(x) for finite x >= 1.
template <class T, int K>
INLINE Vec<T, K> log_from_one(const Vec<T, K>& x) {
  using C = Tables<T>;
  Vec<T, K> e;
  Vec<T, K> m = split_exponent(x, e);
  return fma(e, Vec<T, K>(C::ln2_high), fma(e, Vec<T, K>(C::ln2_low), log_mantissa(m)));
}

// log2(x) for normal x > 0. For 0 and NaN the result is not specified.
template <class T, int K>
INLINE Vec<T, K> fast_log2(const Vec<T, K>& x) {
  Vec<T, K> e;
  Vec<T, K> m = split_exponent(x, e);
  return fma(log_mantissa(m), Vec<T, K>(Base2<T>::log2_e), e);
}

// 1 / (small + large) and small / large. Requires that (small + large)^2 is finite and normal.
template <class T, int K>
INLINE void divide_shares(const Vec<T, K>& small, const Vec<T, K>& large, Vec<T, K>& inverse, Vec<T, K>& ratio) {
  Vec<T, K> sum = small + large, reciprocal = Vec<T, K>(1) / (sum * large);
  inverse = reciprocal * large;
  ratio = small * (reciprocal * sum);
}

// log2(x) to a tenth.
template <class T, int K>
INLINE Vec<T, K> rough_log2(const Vec<T, K>& x) {
  Vec<T, K> e;
  Vec<T, K> m = split_exponent(x, e);
  return fma(m - Vec<T, K>(1), Vec<T, K>(Base2<T>::log2_e), e);
}

// log(x), not inlined. It is -inf below the smallest normal number, NaN for negative numbers and NaN, inf for inf.
template <class T, int K>
__attribute__((noinline)) Vec<T, K> log(const Vec<T, K>& x) {
  using C = Tables<T>;
  Vec<T, K> y = log_from_one(x);
  Vec<T, K> infinity{__builtin_inf()};
  y = select(x < Vec<T, K>(C::normal), select(x < Vec<T, K>(0), Vec<T, K>(__builtin_nan("")), -infinity), y);
  y = select(x == infinity, infinity, y);
  return select(x != x, x, y);
}

// log(1 + x) for x >= 0. The second term puts back the rounding of 1 + x.
template <class T, int K>
INLINE Vec<T, K> log1p(const Vec<T, K>& x) {
  Vec<T, K> u = Vec<T, K>(1) + x;
  return log(u) + (x - (u - Vec<T, K>(1))) / u;
}

template <int K>
INLINE Vec<float, K> log1p_unit(const Vec<float, K>& x) {
  return log1p_unit_single(x);
}
template <int K>
INLINE Vec<double, K> log1p_unit(const Vec<double, K>& x) {
  return log1p(x);
}

// base^exponent for base = m 2^e in [0, 1] and exponent >= 0, as 2^(exponent e) m^exponent: so the error does not grow
// with the logarithm of the base. A base below the smallest normal number counts as 0; 0^0 = 1. Not inlined.
template <class T, int K>
__attribute__((noinline)) Vec<T, K> pow(const Vec<T, K>& base, T exponent) {
  using C = Tables<T>;
  Vec<T, K> g(exponent);
  Vec<T, K> e;
  Vec<T, K> m = split_exponent(base, e);
  Vec<T, K> n = round(g * e);
  Vec<T, K> rest = product_minus(g, e, n);  // exact
  // The argument is within (1 + exponent) ln2 / 2 of 0, with either sign, so it is folded once more.
  Vec<T, K> k;
  Vec<T, K> r = fold_exponent(fma(rest, Vec<T, K>(C::ln2_high + C::ln2_low), g * log_mantissa(m)), k);
  Vec<T, K> out = scaled_exp(max(Vec<T, K>(C::zero_exponent), n + k), r);
  out = select(base < Vec<T, K>(C::normal), Vec<T, K>(exponent == 0 ? 1 : 0), out);
  return select(base != base, base, out);
}

}  // namespace
}  // namespace segfuse
