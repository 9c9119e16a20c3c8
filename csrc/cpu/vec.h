// The vector on which losses.h, link.h and pixel.h run here: four registers side by side (one alone waits on the
// latency of its own chain: 1.2 to 1.9 times slower, measured on AVX2 and AVX-512), and the elementary functions on it.
#pragma once

#include "../math.h"

#if defined(SEGFUSE_AVX512)
#include "reg_avx512.h"
#elif defined(SEGFUSE_AVX2)
#include "reg_avx2.h"
#else
#include "reg_scalar.h"
#endif

namespace segfuse {
namespace {

constexpr int kRegisters = 4;
// The softmax engine keeps four values of a pixel across its loop over the classes; more than 16 registers hold them.
#if defined(SEGFUSE_AVX2)
constexpr int kJointRegisters = 2;
#else
constexpr int kJointRegisters = 4;
#endif

template <class T, int K = kRegisters>
struct Vec {
  using Register = Reg<T>;
  static constexpr int lanes = K * Register::lanes;
  struct Mask {
    typename Register::Mask r[K];
    bool any() const {
      bool out = false;
      for (int i = 0; i < K; ++i) out = out || is_any(r[i]);
      return out;
    }
  };
  Register r[K];

  Vec() = default;
  explicit Vec(double x) : Vec(each([&](int) { return Register::set(T(x)); })) {}
  static Vec load(const T* p) {
    return each([&](int i) { return Register::load(p + i * Register::lanes); });
  }
  static Vec lookup(const T* table, const Vec& index) {
    return each([&](int i) { return Register::lookup(table, index.r[i]); });
  }
  void store(T* p) const {
    for (int i = 0; i < K; ++i) r[i].store(p + i * Register::lanes);
  }
  Register fold() const {
    if constexpr (K == 2)
      return r[0] + r[1];
    else
      return (r[0] + r[1]) + (r[2] + r[3]);
  }

  template <class F>
  static Vec each(const F& f) {
    Vec out;
    out.r[0] = f(0);
    out.r[1] = f(1);
    if constexpr (K == 4) {
      out.r[2] = f(2);
      out.r[3] = f(3);
    }
    return out;
  }
  template <class F>
  static Mask each_mask(const F& f) {
    if constexpr (K == 2)
      return {{f(0), f(1)}};
    else
      return {{f(0), f(1), f(2), f(3)}};
  }
};

#define SEGFUSE_BINARY(op)                                               \
  template <class T, int K>                                              \
  inline Vec<T, K> operator op(const Vec<T, K>& a, const Vec<T, K>& b) { \
    return Vec<T, K>::each([&](int i) { return a.r[i] op b.r[i]; });     \
  }
SEGFUSE_BINARY(+)
SEGFUSE_BINARY(-)
SEGFUSE_BINARY(*)
SEGFUSE_BINARY(/)
#undef SEGFUSE_BINARY

template <class T, int K>
inline Vec<T, K> operator-(const Vec<T, K>& a) {
  return Vec<T, K>::each([&](int i) { return Reg<T>::set(T(-0.0)) - a.r[i]; });
}
template <class T, int K>
inline Vec<T, K> fma(const Vec<T, K>& a, const Vec<T, K>& b, const Vec<T, K>& c) {
  return Vec<T, K>::each([&](int i) { return fma(a.r[i], b.r[i], c.r[i]); });
}
template <class T, int K>
inline Vec<T, K> product_minus(const Vec<T, K>& a, const Vec<T, K>& b, const Vec<T, K>& c) {
  return Vec<T, K>::each([&](int i) { return product_minus(a.r[i], b.r[i], c.r[i]); });
}
// Of two operands the second where either is NaN, so write max(constant, x).
template <class T, int K>
inline Vec<T, K> min(const Vec<T, K>& a, const Vec<T, K>& b) {
  return Vec<T, K>::each([&](int i) { return min(a.r[i], b.r[i]); });
}
template <class T, int K>
inline Vec<T, K> max(const Vec<T, K>& a, const Vec<T, K>& b) {
  return Vec<T, K>::each([&](int i) { return max(a.r[i], b.r[i]); });
}
template <class T, int K>
inline Vec<T, K> abs(const Vec<T, K>& a) {
  return Vec<T, K>::each([&](int i) { return abs(a.r[i]); });
}
template <class T, int K>
inline Vec<T, K> round(const Vec<T, K>& a) {
  return Vec<T, K>::each([&](int i) { return round(a.r[i]); });
}
template <class T, int K>
inline typename Vec<T, K>::Mask operator<(const Vec<T, K>& a, const Vec<T, K>& b) {
  return Vec<T, K>::each_mask([&](int i) { return less(a.r[i], b.r[i]); });
}
template <class T, int K>
inline typename Vec<T, K>::Mask operator>(const Vec<T, K>& a, const Vec<T, K>& b) {
  return b < a;
}
template <class T, int K>
inline typename Vec<T, K>::Mask operator>=(const Vec<T, K>& a, const Vec<T, K>& b) {
  return Vec<T, K>::each_mask([&](int i) { return greater_equal(a.r[i], b.r[i]); });
}
template <class T, int K>
inline typename Vec<T, K>::Mask operator==(const Vec<T, K>& a, const Vec<T, K>& b) {
  return Vec<T, K>::each_mask([&](int i) { return equal(a.r[i], b.r[i]); });
}
template <class T, int K>
inline typename Vec<T, K>::Mask operator!=(const Vec<T, K>& a, const Vec<T, K>& b) {
  return Vec<T, K>::each_mask([&](int i) { return not_equal(a.r[i], b.r[i]); });
}
template <class T, int K>
inline Vec<T, K> select(const typename Vec<T, K>::Mask& m, const Vec<T, K>& a, const Vec<T, K>& b) {
  return Vec<T, K>::each([&](int i) { return select(m.r[i], a.r[i], b.r[i]); });
}

template <class T, int K>
inline Vec<T, K> add_where(const typename Vec<T, K>::Mask& m, const Vec<T, K>& a, const Vec<T, K>& b) {
  return Vec<T, K>::each([&](int i) { return add_where(m.r[i], a.r[i], b.r[i]); });
}

// ------------------------------------------------------------------------------------------------ elementary functions
// Minimax polynomials (Chebyshev fits); the error left by each, beside its table, is below that of the arithmetic.

template <class T>
struct Tables;

template <>
struct Tables<float> {
  static constexpr float ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f, log2_e = 1.44269504f;
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
inline Vec<T, K> scaled_exp(const Vec<T, K>& n, const Vec<T, K>& r) {
  const Vec<T, K> y = fma(polynomial(r, Tables<T>::exp), r * r, r) + Vec<T, K>(1);
  return Vec<T, K>::each([&](int i) { return Reg<T>::scale(y.r[i], n.r[i]); });
}

// r = x - n ln2, n the nearest integer to x / ln2.
template <class T, int K>
inline Vec<T, K> fold_exponent(const Vec<T, K>& x, Vec<T, K>& n) {
  using C = Tables<T>;
  n = round(x * Vec<T, K>(C::log2_e));
  return fma(n, Vec<T, K>(-C::ln2_low), fma(n, Vec<T, K>(-C::ln2_high), x));
}

// exp(x) for x <= 0; results below the smallest normal number are 0, exp(NaN) is NaN.
template <class T, int K>
inline Vec<T, K> exp_nonpositive(const Vec<T, K>& x) {
  Vec<T, K> n;
  const Vec<T, K> r = fold_exponent(max(Vec<T, K>(Tables<T>::exp_floor), x), n);
  return scaled_exp(n, r);
}

// log(m) for m near 1.
template <class T, int K>
inline Vec<T, K> log_mantissa(const Vec<T, K>& m) {
  const Vec<T, K> s = (m - Vec<T, K>(1)) / (m + Vec<T, K>(1));
  const Vec<T, K> s2 = s * s;
  return fma(polynomial(s2, Tables<T>::log), s2 * s, s + s);
}

template <class T, int K>
inline Vec<T, K> split_exponent(const Vec<T, K>& x, Vec<T, K>& e) {
  Vec<T, K> m;
  for (int i = 0; i < K; ++i) m.r[i] = Reg<T>::split(x.r[i], e.r[i]);
  return m;
}

// log(x) for finite x >= 1.
template <class T, int K>
inline Vec<T, K> log_from_one(const Vec<T, K>& x) {
  using C = Tables<T>;
  Vec<T, K> e;
  const Vec<T, K> m = split_exponent(x, e);
  return fma(e, Vec<T, K>(C::ln2_high), fma(e, Vec<T, K>(C::ln2_low), log_mantissa(m)));
}

// log(x); below the smallest normal number -inf, of negative numbers and NaN NaN, of inf inf.
template <class T, int K>
inline Vec<T, K> log(const Vec<T, K>& x) {
  using C = Tables<T>;
  Vec<T, K> y = log_from_one(x);
  const Vec<T, K> infinity{__builtin_inf()};
  y = select(x < Vec<T, K>(C::normal), select(x < Vec<T, K>(0), Vec<T, K>(__builtin_nan("")), -infinity), y);
  y = select(x == infinity, infinity, y);
  return select(x != x, x, y);
}

// log(1 + x) for x >= 0: the rounding of 1 + x is put back.
template <class T, int K>
inline Vec<T, K> log1p(const Vec<T, K>& x) {
  const Vec<T, K> u = Vec<T, K>(1) + x;
  return log(u) + (x - (u - Vec<T, K>(1))) / u;
}

template <int K>
inline Vec<float, K> log1p_unit(const Vec<float, K>& x) {
  return log1p_unit_single(x);
}
template <int K>
inline Vec<double, K> log1p_unit(const Vec<double, K>& x) {
  return log1p(x);
}

// base^exponent for base in [0, 1] and exponent >= 0, as 2^(exponent e) m^exponent, so that the error does not grow
// with the logarithm of the base. Below the smallest normal number the base counts as 0; 0^0 = 1.
template <class T, int K>
inline Vec<T, K> pow(const Vec<T, K>& base, T exponent) {
  using C = Tables<T>;
  const Vec<T, K> g(exponent);
  Vec<T, K> e;
  const Vec<T, K> m = split_exponent(base, e);
  const Vec<T, K> n = round(g * e);
  const Vec<T, K> rest = product_minus(g, e, n);  // exact
  // Within (1 + exponent) ln2 / 2 of 0, and of either sign: folded once more.
  Vec<T, K> k;
  const Vec<T, K> r = fold_exponent(fma(rest, Vec<T, K>(C::ln2_high + C::ln2_low), g * log_mantissa(m)), k);
  Vec<T, K> out = scaled_exp(max(Vec<T, K>(C::zero_exponent), n + k), r);
  out = select(base < Vec<T, K>(C::normal), Vec<T, K>(exponent == 0 ? 1 : 0), out);
  return select(base != base, base, out);
}

// The sum of the lanes in double, in the order of the lanes.
template <class T>
inline double sum_lanes(const Reg<T>& a) {
  alignas(64) T lane[Reg<T>::lanes];
  a.store(lane);
  double total = 0;
  for (int i = 0; i < Reg<T>::lanes; ++i) total += double(lane[i]);
  return total;
}

}  // namespace
}  // namespace segfuse
