// The vector with which losses.h, link.h and pixel.h run on a CPU, and the elementary functions on it. It has four
// registers: with one, each operation waits for the one before (1.2 to 1.9 times slower, measured on AVX2 and AVX-512).
#pragma once

#include "../math.h"

#if defined(SEGFUSE_AVX512)
#include "reg_avx512.h"
#else
#include "reg_vector.h"
#endif

namespace segfuse {
namespace {

constexpr int kRegisters = 4;
// The softmax engine keeps four values of a pixel during its loop over the classes. Machines with more than 16
// registers hold four registers of each, others two.
constexpr int kSoftmaxRegisters = kMachineRegisters > 16 ? 4 : 2;
// It sums over pixels for so many classes at a time: each takes three registers, beside those that the classes share.
constexpr int kClassBlock = kMachineRegisters > 16 ? 4 : 2;

// K registers, or their masks, as halves of halves. The compiler would leave an array in memory; it does so with local
// constants of this type (GCC 12: "a store to a read-only decl").
template <class R, int K>
struct Registers {
  Registers<R, K / 2> low, high;
};
template <class R>
struct Registers<R, 1> {
  R r;
};

// Applies f to each register.
template <class F, class R, class... More>
INLINE auto each(const F& f, const Registers<R, 1>& a, const Registers<More, 1>&... more) {
  return Registers<decltype(f(a.r, more.r...)), 1>{f(a.r, more.r...)};
}
template <class R, int K>
INLINE Registers<R, 2 * K> side_by_side(const Registers<R, K>& low, const Registers<R, K>& high) {
  return {low, high};
}
template <class F, class R, int K, class... More>
INLINE auto each(const F& f, const Registers<R, K>& a, const Registers<More, K>&... more) {
  return side_by_side(each(f, a.low, more.low...), each(f, a.high, more.high...));
}

template <class T, int K = kRegisters>
struct Vec {
  using Register = Reg<T>;
  using Mask = Registers<typename Register::Mask, K>;
  static constexpr int lanes = K * Register::lanes;
  Registers<Register, K> r;

  Vec() = default;
  INLINE Vec(const Registers<Register, K>& registers) : r(registers) {}
  INLINE explicit Vec(double x) : r(same<K>(Register::set(T(x)))) {}
  INLINE static Vec same(const Register& x) { return same<K>(x); }
  // In memory the registers lie side by side, or `step` elements apart.
  INLINE static Vec load(const T* p, int64_t step = Register::lanes) { return loaded<K>(p, step); }
  INLINE void store(T* p, int64_t step = Register::lanes) const { stored(r, p, step); }
  INLINE Register fold() const { return folded(r); }
  INLINE static Vec gather(const T* table, const Vec& index) {
    return each([table](Register i) INLINE_LAMBDA { return Register::gather(table, i); }, index.r);
  }
  // gather for a table with n entries and room for table_size(n): a short table is read into registers as a whole.
  static constexpr int64_t table_size(int64_t n) { return n < Register::table ? Register::table : n; }
  INLINE static Vec lookup(const T* table, const Vec& index, int64_t n) {
    if constexpr (Register::table > 0) {
      if (n <= Register::table)
        return each([table](Register i) INLINE_LAMBDA { return Register::lookup(table, i); }, index.r);
    }
    return gather(table, index);
  }

 private:
  template <int N>
  INLINE static Registers<Register, N> same(const Register& x) {
    if constexpr (N == 1)
      return {x};
    else
      return {same<N / 2>(x), same<N / 2>(x)};
  }
  template <int N>
  INLINE static Registers<Register, N> loaded(const T* p, int64_t step) {
    if constexpr (N == 1)
      return {Register::load(p)};
    else
      return {loaded<N / 2>(p, step), loaded<N / 2>(p + N / 2 * step, step)};
  }
  template <int N>
  INLINE static void stored(const Registers<Register, N>& a, T* p, int64_t step) {
    if constexpr (N == 1) {
      a.r.store(p);
    } else {
      stored(a.low, p, step);
      stored(a.high, p + N / 2 * step, step);
    }
  }
  template <int N>
  INLINE static Register folded(const Registers<Register, N>& a) {
    if constexpr (N == 1)
      return a.r;
    else
      return folded(a.low) + folded(a.high);
  }
};

template <class M>
INLINE bool any(const Registers<M, 1>& mask) {
  return is_any(mask.r);
}
template <class M, int K>
INLINE bool any(const Registers<M, K>& mask) {
  return any(mask.low) || any(mask.high);
}

template <class T>
INLINE Reg<T> operator-(Reg<T> a) {
  return Reg<T>::set(T(-0.0)) - a;
}

#define SEGFUSE_BINARY(name, expression)                                                \
  template <class T, int K>                                                             \
  INLINE Vec<T, K> name(const Vec<T, K>& a, const Vec<T, K>& b) {                       \
    return each([](Reg<T> x, Reg<T> y) INLINE_LAMBDA { return expression; }, a.r, b.r); \
  }
SEGFUSE_BINARY(operator+, x + y)
SEGFUSE_BINARY(operator-, x - y)
SEGFUSE_BINARY(operator*, x* y)
SEGFUSE_BINARY(operator/, x / y)
// If either operand is NaN, the result is the second one: so write max(constant, x).
SEGFUSE_BINARY(min, min(x, y))
SEGFUSE_BINARY(max, max(x, y))
#undef SEGFUSE_BINARY
#define SEGFUSE_UNARY(name)                                           \
  template <class T, int K>                                           \
  INLINE Vec<T, K> name(const Vec<T, K>& a) {                         \
    return each([](Reg<T> x) INLINE_LAMBDA { return name(x); }, a.r); \
  }
SEGFUSE_UNARY(operator-)
SEGFUSE_UNARY(abs)
SEGFUSE_UNARY(minus_abs)
SEGFUSE_UNARY(round)
#undef SEGFUSE_UNARY
#define SEGFUSE_TERNARY(name)                                                                             \
  template <class T, int K>                                                                               \
  INLINE Vec<T, K> name(const Vec<T, K>& a, const Vec<T, K>& b, const Vec<T, K>& c) {                     \
    return each([](Reg<T> x, Reg<T> y, Reg<T> z) INLINE_LAMBDA { return name(x, y, z); }, a.r, b.r, c.r); \
  }
SEGFUSE_TERNARY(fma)
SEGFUSE_TERNARY(product_minus)
#undef SEGFUSE_TERNARY
#define SEGFUSE_COMPARE(op, name)                                                       \
  template <class T, int K>                                                             \
  INLINE typename Vec<T, K>::Mask operator op(const Vec<T, K>& a, const Vec<T, K>& b) { \
    return each([](Reg<T> x, Reg<T> y) INLINE_LAMBDA { return name(x, y); }, a.r, b.r); \
  }
SEGFUSE_COMPARE(<, less)
SEGFUSE_COMPARE(>=, greater_equal)
SEGFUSE_COMPARE(==, equal)
SEGFUSE_COMPARE(!=, not_equal)
#undef SEGFUSE_COMPARE
template <class T, int K>
INLINE typename Vec<T, K>::Mask operator>(const Vec<T, K>& a, const Vec<T, K>& b) {
  return b < a;
}
template <class T, int K>
INLINE typename Vec<T, K>::Mask sign_bit(const Vec<T, K>& a) {
  return each([](Reg<T> x) INLINE_LAMBDA { return sign_bit(x); }, a.r);
}
template <class T, int K>
INLINE Vec<T, K> select(const typename Vec<T, K>::Mask& m, const Vec<T, K>& a, const Vec<T, K>& b) {
  using M = typename Reg<T>::Mask;
  return each([](M mask, Reg<T> x, Reg<T> y) INLINE_LAMBDA { return select(mask, x, y); }, m, a.r, b.r);
}
// a + (m ? b : 0).
template <class T, int K>
INLINE Vec<T, K> add_where(const typename Vec<T, K>::Mask& m, const Vec<T, K>& a, const Vec<T, K>& b) {
  using M = typename Reg<T>::Mask;
  return each([](M mask, Reg<T> x, Reg<T> y) INLINE_LAMBDA { return add_where(mask, x, y); }, m, a.r, b.r);
}

// ------------------------------------------------------------------------------------------------ elementary functions
// Minimax polynomials (Chebyshev fits). The error of each is noted at its table; it is below that of the arithmetic.

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

// The sum of the lanes in double, in the order of the lanes.
template <class T>
INLINE double sum_lanes(const Reg<T>& a) {
  alignas(64) T lane[Reg<T>::lanes];
  a.store(lane);
  double total = 0;
  for (int i = 0; i < Reg<T>::lanes; ++i) total += double(lane[i]);
  return total;
}

}  // namespace
}  // namespace segfuse
