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

template <class T>
struct Vec {
  using Register = Reg<T>;
  static constexpr int lanes = kRegisters * Register::lanes;
  struct Mask {
    typename Register::Mask r[kRegisters];
  };
  Register r[kRegisters];

  Vec() = default;
  explicit Vec(double x) : Vec(each([&](int) { return Register::set(T(x)); })) {}
  static Vec load(const T* p) {
    return each([&](int i) { return Register::load(p + i * Register::lanes); });
  }
  static Vec lookup(const T* table, const Vec& index) {
    return each([&](int i) { return Register::lookup(table, index.r[i]); });
  }
  void store(T* p) const {
    for (int i = 0; i < kRegisters; ++i) r[i].store(p + i * Register::lanes);
  }
  Register fold() const { return (r[0] + r[1]) + (r[2] + r[3]); }

  template <class F>
  static Vec each(const F& f) {
    Vec out;
    out.r[0] = f(0);
    out.r[1] = f(1);
    out.r[2] = f(2);
    out.r[3] = f(3);
    return out;
  }
  template <class F>
  static Mask each_mask(const F& f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
};

#define SEGFUSE_BINARY(op)                                        \
  template <class T>                                              \
  inline Vec<T> operator op(const Vec<T>& a, const Vec<T>& b) {   \
    return Vec<T>::each([&](int i) { return a.r[i] op b.r[i]; }); \
  }
SEGFUSE_BINARY(+)
SEGFUSE_BINARY(-)
SEGFUSE_BINARY(*)
SEGFUSE_BINARY(/)
#undef SEGFUSE_BINARY

template <class T>
inline Vec<T> operator-(const Vec<T>& a) {
  return Vec<T>::each([&](int i) { return Reg<T>::set(T(-0.0)) - a.r[i]; });
}
template <class T>
inline Vec<T> fma(const Vec<T>& a, const Vec<T>& b, const Vec<T>& c) {
  return Vec<T>::each([&](int i) { return fma(a.r[i], b.r[i], c.r[i]); });
}
template <class T>
inline Vec<T> product_minus(const Vec<T>& a, const Vec<T>& b, const Vec<T>& c) {
  return Vec<T>::each([&](int i) { return product_minus(a.r[i], b.r[i], c.r[i]); });
}
// Of two operands the second where either is NaN, so write max(constant, x).
template <class T>
inline Vec<T> min(const Vec<T>& a, const Vec<T>& b) {
  return Vec<T>::each([&](int i) { return min(a.r[i], b.r[i]); });
}
template <class T>
inline Vec<T> max(const Vec<T>& a, const Vec<T>& b) {
  return Vec<T>::each([&](int i) { return max(a.r[i], b.r[i]); });
}
template <class T>
inline Vec<T> abs(const Vec<T>& a) {
  return Vec<T>::each([&](int i) { return abs(a.r[i]); });
}
template <class T>
inline Vec<T> round(const Vec<T>& a) {
  return Vec<T>::each([&](int i) { return round(a.r[i]); });
}
template <class T>
inline typename Vec<T>::Mask operator<(const Vec<T>& a, const Vec<T>& b) {
  return Vec<T>::each_mask([&](int i) { return less(a.r[i], b.r[i]); });
}
template <class T>
inline typename Vec<T>::Mask operator>(const Vec<T>& a, const Vec<T>& b) {
  return b < a;
}
template <class T>
inline typename Vec<T>::Mask operator>=(const Vec<T>& a, const Vec<T>& b) {
  return Vec<T>::each_mask([&](int i) { return greater_equal(a.r[i], b.r[i]); });
}
template <class T>
inline typename Vec<T>::Mask operator==(const Vec<T>& a, const Vec<T>& b) {
  return Vec<T>::each_mask([&](int i) { return equal(a.r[i], b.r[i]); });
}
template <class T>
inline typename Vec<T>::Mask operator!=(const Vec<T>& a, const Vec<T>& b) {
  return Vec<T>::each_mask([&](int i) { return not_equal(a.r[i], b.r[i]); });
}
template <class T>
inline Vec<T> select(const typename Vec<T>::Mask& m, const Vec<T>& a, const Vec<T>& b) {
  return Vec<T>::each([&](int i) { return select(m.r[i], a.r[i], b.r[i]); });
}

// ------------------------------------------------------------------------------------------------ elementary functions
// Minimax polynomials (Chebyshev fits); the error left by each, beside its table, is below that of the arithmetic.

template <class T, int N>
inline Vec<T> polynomial(const Vec<T>& x, const T (&c)[N]) {
  Vec<T> y(c[N - 1]);
  for (int i = N - 2; i >= 0; --i) y = fma(y, x, Vec<T>(c[i]));
  return y;
}

template <class T>
struct Tables;

template <>
struct Tables<float> {
  static constexpr float ln2_high = 0.693145752f, ln2_low = 1.42860677e-6f, log2_e = 1.44269504f;
  static constexpr float exp_floor = -87.3365f, normal = 1.17549435e-38f, exponent_floor = -126.0f;
  // (exp(r) - 1 - r) / r^2 on |r| <= ln2/2: 6.5e-8
  static constexpr float exp[] = {0.5f, 0.1666657667f, 0.04166655421f, 0.008363232884f, 0.001392625083f};
  // (log(m) - 2 s) / s^3 in s^2, s = (m-1)/(m+1), m in [sqrt(1/2), sqrt(2)]: 1.9e-7
  static constexpr float log[] = {0.6666668516f, 0.3998873183f, 0.2958215895f};
};

template <>
struct Tables<double> {
  static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr double log2_e = 1.4426950408889634074;
  static constexpr double exp_floor = -708.39, normal = 2.2250738585072014e-308, exponent_floor = -1022.0;
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

// exp(x) for x <= 0; results below the smallest normal number are 0, exp(NaN) is NaN.
template <class T>
inline Vec<T> exp_nonpositive(const Vec<T>& x) {
  using C = Tables<T>;
  const Vec<T> n = round(x * Vec<T>(C::log2_e));
  Vec<T> r = fma(n, Vec<T>(-C::ln2_high), x);
  r = fma(n, Vec<T>(-C::ln2_low), r);
  const Vec<T> y = fma(polynomial(r, C::exp), r * r, r) + Vec<T>(1);
  const auto underflow = x < Vec<T>(C::exp_floor);
  const Vec<T> scale =
      Vec<T>::each([&](int i) { return Reg<T>::power_of_two(max(Reg<T>::set(C::exponent_floor), n.r[i])); });
  return select(underflow, Vec<T>(0), y * scale);
}

// log(m) for m near 1.
template <class T>
inline Vec<T> log_mantissa(const Vec<T>& m) {
  const Vec<T> s = (m - Vec<T>(1)) / (m + Vec<T>(1));
  const Vec<T> s2 = s * s;
  return fma(polynomial(s2, Tables<T>::log), s2 * s, s + s);
}

template <class T>
inline Vec<T> split_exponent(const Vec<T>& x, Vec<T>& e) {
  Vec<T> m;
  for (int i = 0; i < kRegisters; ++i) m.r[i] = Reg<T>::split(x.r[i], e.r[i]);
  return m;
}

// log(x); below the smallest normal number -inf, of negative numbers and NaN NaN, of inf inf.
template <class T>
inline Vec<T> log(const Vec<T>& x) {
  using C = Tables<T>;
  Vec<T> e;
  const Vec<T> m = split_exponent(x, e);
  Vec<T> y = fma(e, Vec<T>(C::ln2_high), fma(e, Vec<T>(C::ln2_low), log_mantissa(m)));
  const Vec<T> infinity{__builtin_inf()};
  y = select(x < Vec<T>(C::normal), select(x < Vec<T>(0), Vec<T>(__builtin_nan("")), -infinity), y);
  y = select(x == infinity, infinity, y);
  return select(x != x, x, y);
}

// log(1 + x) for x >= 0: the rounding of 1 + x is put back.
template <class T>
inline Vec<T> log1p(const Vec<T>& x) {
  const Vec<T> u = Vec<T>(1) + x;
  return log(u) + (x - (u - Vec<T>(1))) / u;
}

// log(1 + x) for x in [0, 1], without a division. 2.9e-8
inline Vec<float> log1p_unit(const Vec<float>& x) {
  static constexpr float c[] = {-0.4999999698f, 0.3333284189f,   -0.2498652617f, 0.1985410623f,   -0.1584756572f,
                                0.1156184545f,  -0.06675772506f, 0.02522405435f, -0.004466211601f};
  return fma(polynomial(x, c), x * x, x);
}
inline Vec<double> log1p_unit(const Vec<double>& x) { return log1p(x); }

// base^exponent for base in [0, 1] and exponent >= 0, as 2^(exponent e) m^exponent, so that the error does not grow
// with the logarithm of the base. Below the smallest normal number the base counts as 0; 0^0 = 1.
template <class T>
inline Vec<T> pow(const Vec<T>& base, T exponent) {
  using C = Tables<T>;
  const Vec<T> g(exponent);
  Vec<T> e;
  const Vec<T> m = split_exponent(base, e);
  const Vec<T> n = round(g * e);
  const Vec<T> rest = product_minus(g, e, n);  // exact
  const Vec<T> x = fma(rest, Vec<T>(C::ln2_high + C::ln2_low), g * log_mantissa(m));
  // x lies within (1 + exponent) ln2 / 2 of 0 and may be positive: fold it once more.
  const Vec<T> k = round(x * Vec<T>(C::log2_e));
  Vec<T> r = fma(k, Vec<T>(-C::ln2_high), x);
  r = fma(k, Vec<T>(-C::ln2_low), r);
  const Vec<T> y = fma(polynomial(r, C::exp), r * r, r) + Vec<T>(1);
  const Vec<T> power = n + k;
  const auto underflow = power < Vec<T>(C::exponent_floor);
  const Vec<T> scale =
      Vec<T>::each([&](int i) { return Reg<T>::power_of_two(max(Reg<T>::set(C::exponent_floor), power.r[i])); });
  Vec<T> out = select(underflow, Vec<T>(0), y * scale);
  out = select(base < Vec<T>(C::normal), Vec<T>(exponent == 0 ? 1 : 0), out);
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
