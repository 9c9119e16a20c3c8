// A register of one lane: the baseline unit, and what every other register must offer.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace segfuse {
namespace {

template <class T>
struct Reg;

// x = mantissa 2^exponent with the mantissa in [sqrt(1/2), sqrt(2)), for normal x > 0.
template <class T>
struct Split {
  Reg<T> mantissa, exponent;
};

template <>
struct Reg<float> {
  using Mask = bool;
  static constexpr int lanes = 1;
  float v;
  static Reg load(const float* p) { return {*p}; }
  static Reg set(float x) { return {x}; }
  void store(float* p) const { *p = v; }
  // y 2^n for integral n in [-127, 127]; 0 for n = -127.
  static Reg scale(Reg y, Reg n) {
    const uint32_t u = uint32_t(int32_t(n.v) + 127) << 23;
    float power;
    std::memcpy(&power, &u, 4);
    return {y.v * power};
  }
  // f(x - floor(x)) 2^floor(x); 0 below the smallest normal number.
  template <class F>
  static Reg with_exponent(Reg x, const F& f) {
    const float y = -127.0f > x.v ? -127.0f : x.v, n = std::floor(y);
    return scale(f(Reg{y - n}), {n});
  }
  static Split<float> split(Reg x) {
    int32_t u;
    std::memcpy(&u, &x.v, 4);
    const int32_t offset = u - 0x3f3504f3, exponent = offset >> 23;
    u -= exponent * (1 << 23);
    float m;
    std::memcpy(&m, &u, 4);
    return {{m}, {float(exponent)}};
  }
  static Reg gather(const float* table, Reg index) { return {table[int64_t(index.v)]}; }
  static constexpr int table = 0;  // elements that lookup finds: there is none
};

template <>
struct Reg<double> {
  using Mask = bool;
  static constexpr int lanes = 1;
  double v;
  static Reg load(const double* p) { return {*p}; }
  static Reg set(double x) { return {x}; }
  void store(double* p) const { *p = v; }
  static Reg scale(Reg y, Reg n) {
    const uint64_t u = uint64_t(int64_t(n.v) + 1023) << 52;
    double power;
    std::memcpy(&power, &u, 8);
    return {y.v * power};
  }
  // f(x - floor(x)) 2^floor(x); 0 below the smallest normal number.
  template <class F>
  static Reg with_exponent(Reg x, const F& f) {
    const double y = -1023.0 > x.v ? -1023.0 : x.v, n = std::floor(y);
    return scale(f(Reg{y - n}), {n});
  }
  static Split<double> split(Reg x) {
    int64_t u;
    std::memcpy(&u, &x.v, 8);
    const int64_t offset = u - 0x3fe6a09e667f3bcd, exponent = offset >> 52;
    u -= exponent * (int64_t(1) << 52);
    double m;
    std::memcpy(&m, &u, 8);
    return {{m}, {double(exponent)}};
  }
  static Reg gather(const double* table, Reg index) { return {table[int64_t(index.v)]}; }
  static constexpr int table = 0;
};

template <class T>
Reg<T> operator+(Reg<T> a, Reg<T> b) {
  return {a.v + b.v};
}
template <class T>
Reg<T> operator-(Reg<T> a, Reg<T> b) {
  return {a.v - b.v};
}
template <class T>
Reg<T> operator*(Reg<T> a, Reg<T> b) {
  return {a.v * b.v};
}
template <class T>
Reg<T> operator/(Reg<T> a, Reg<T> b) {
  return {a.v / b.v};
}
// One rounding where the machine has the instruction, else two: the constants of the range reductions end in zeros.
template <class T>
Reg<T> fma(Reg<T> a, Reg<T> b, Reg<T> c) {
  return {a.v * b.v + c.v};
}
// a b - c with one rounding, for c near a b.
inline Reg<float> product_minus(Reg<float> a, Reg<float> b, Reg<float> c) {
  return {float(double(a.v) * double(b.v) - double(c.v))};
}
inline Reg<double> product_minus(Reg<double> a, Reg<double> b, Reg<double> c) {
  return {__builtin_fma(a.v, b.v, -c.v)};
}
// As the x86 instructions: the second operand where either is NaN.
template <class T>
Reg<T> min(Reg<T> a, Reg<T> b) {
  return {a.v < b.v ? a.v : b.v};
}
template <class T>
Reg<T> max(Reg<T> a, Reg<T> b) {
  return {a.v > b.v ? a.v : b.v};
}
inline Reg<float> abs(Reg<float> a) { return {__builtin_fabsf(a.v)}; }
inline Reg<double> abs(Reg<double> a) { return {__builtin_fabs(a.v)}; }
template <class T>
Reg<T> minus_abs(Reg<T> a) {
  return {-abs(a).v};
}
// To the nearest integer, for |a| below 2^22 (2^51), without a call.
inline Reg<float> round(Reg<float> a) { return {(a.v + 12582912.0f) - 12582912.0f}; }
inline Reg<double> round(Reg<double> a) { return {(a.v + 6755399441055744.0) - 6755399441055744.0}; }
template <class T>
bool less(Reg<T> a, Reg<T> b) {
  return a.v < b.v;
}
template <class T>
bool greater_equal(Reg<T> a, Reg<T> b) {
  return a.v >= b.v;
}
template <class T>
bool equal(Reg<T> a, Reg<T> b) {
  return a.v == b.v;
}
template <class T>
bool not_equal(Reg<T> a, Reg<T> b) {
  return a.v != b.v;
}
inline bool sign_bit(Reg<float> a) { return __builtin_signbitf(a.v); }
inline bool is_any(bool m) { return m; }
template <class T>
Reg<T> select(bool m, Reg<T> a, Reg<T> b) {
  return m ? a : b;
}
// a + (m ? b : 0).
template <class T>
Reg<T> add_where(bool m, Reg<T> a, Reg<T> b) {
  return {a.v + (m ? b.v : T(0))};
}

}  // namespace
}  // namespace segfuse
