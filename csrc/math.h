// Scalar mathematics and dual numbers: the alphabet in which losses.h, link.h and head.h are written.
//
// Everything below lives in an unnamed namespace on purpose: the CPU kernels are compiled once per instruction set, and
// two inline copies of one function in two such units would be merged by the linker, which may keep the AVX-512 one.
#pragma once

#include <cmath>
#include <cstdint>

#include "hd.h"

namespace segfuse {
namespace {

// Scalars: what the CUDA kernels and the head compute in. A vector type (cpu/vec.h) provides the same names.
template <class T>
HD T select(bool mask, const T& a, const T& b) {
  return mask ? a : b;
}
// As on the CPU: the second operand where either is NaN.
HD float min(float a, float b) { return a < b ? a : b; }
HD float max(float a, float b) { return a > b ? a : b; }
HD double min(double a, double b) { return a < b ? a : b; }
HD double max(double a, double b) { return a > b ? a : b; }
HD float abs(float a) { return ::fabsf(a); }
HD double abs(double a) { return ::fabs(a); }

HD float exp_nonpositive(float x) { return ::expf(x); }
HD double exp_nonpositive(double x) { return ::exp(x); }
HD double log(double x) { return ::log(x); }
HD double log1p(double x) { return ::log1p(x); }
HD float log(float x) { return ::logf(x); }
HD float log1p(float x) { return ::log1pf(x); }
HD float log1p_unit(float x) { return ::log1pf(x); }
HD double log1p_unit(double x) { return ::log1p(x); }
HD float pow(float base, float exponent) { return ::powf(base, exponent); }
HD double pow(double base, double exponent) { return ::pow(base, exponent); }

HD double cosh_minus_one(double x) {
  const double s = ::sinh(x / 2);
  return 2 * s * s;
}

HD float smallest_normal(float) { return 1.17549435e-38f; }
HD double smallest_normal(double) { return 2.2250738585072014e-308; }

// Value and N slopes of one expression.
template <class T, int N = 1>
struct Dual {
  T v;
  T d[N];
};

template <class T, int N>
HD Dual<T, N> constant(const T& v) {
  Dual<T, N> r;
  r.v = v;
  for (int i = 0; i < N; ++i) r.d[i] = T(0);
  return r;
}

// f(a) with slope f'(a).
template <class T, int N>
HD Dual<T, N> chain(const T& value, const T& slope, const Dual<T, N>& a) {
  Dual<T, N> r;
  r.v = value;
  for (int i = 0; i < N; ++i) r.d[i] = slope * a.d[i];
  return r;
}

template <class T, int N>
HD Dual<T, N> operator+(const Dual<T, N>& a, const Dual<T, N>& b) {
  Dual<T, N> r;
  r.v = a.v + b.v;
  for (int i = 0; i < N; ++i) r.d[i] = a.d[i] + b.d[i];
  return r;
}
template <class T, int N>
HD Dual<T, N> operator-(const Dual<T, N>& a, const Dual<T, N>& b) {
  Dual<T, N> r;
  r.v = a.v - b.v;
  for (int i = 0; i < N; ++i) r.d[i] = a.d[i] - b.d[i];
  return r;
}
template <class T, int N>
HD Dual<T, N> operator*(const Dual<T, N>& a, const Dual<T, N>& b) {
  Dual<T, N> r;
  r.v = a.v * b.v;
  for (int i = 0; i < N; ++i) r.d[i] = a.v * b.d[i] + a.d[i] * b.v;
  return r;
}
template <class T, int N>
HD Dual<T, N> operator/(const Dual<T, N>& a, const Dual<T, N>& b) {
  Dual<T, N> r;
  r.v = a.v / b.v;
  for (int i = 0; i < N; ++i) r.d[i] = (a.d[i] - r.v * b.d[i]) / b.v;
  return r;
}
template <class T, int N>
HD Dual<T, N> operator-(const Dual<T, N>& a) {
  Dual<T, N> r;
  r.v = -a.v;
  for (int i = 0; i < N; ++i) r.d[i] = -a.d[i];
  return r;
}
template <class T, int N>
HD Dual<T, N> operator+(const Dual<T, N>& a, double b) {
  Dual<T, N> r = a;
  r.v = a.v + T(b);
  return r;
}
template <class T, int N>
HD Dual<T, N> operator*(double a, const Dual<T, N>& b) {
  return chain(T(a) * b.v, T(a), b);
}

template <class T, int N>
HD Dual<T, N> log1p(const Dual<T, N>& a) {
  return chain(log1p(a.v), T(1) / (T(1) + a.v), a);
}

// Multiplication by a plain factor that is 0 wherever it is not meant to count: 0 * inf is 0 here.
template <class T>
HD T masked_product(const T& factor, const T& a) {
  return select(factor != T(0), factor * a, T(0));
}
template <class T, int N>
HD Dual<T, N> masked_product(const T& factor, const Dual<T, N>& a) {
  Dual<T, N> r;
  r.v = masked_product(factor, a.v);
  for (int i = 0; i < N; ++i) r.d[i] = masked_product(factor, a.d[i]);
  return r;
}

// base^exponent for base in [0, 1] and exponent >= 0. At base 0 the slope is taken as 0: for exponents below 1 it is
// infinite there, and the factor beside it (log p, or p q of the link) vanishes at least as fast.
template <class T, class Real>
HD T power(const T& base, Real exponent) {
  return pow(base, exponent);
}
template <class T, int N, class Real>
HD Dual<T, N> power(const Dual<T, N>& base, Real exponent) {
  const T value = pow(base.v, exponent);
  return chain(value, T(exponent) * value / max(T(smallest_normal(Real())), base.v), base);
}
template <class T>
HD T square(const T& a) {
  return a * a;
}

}  // namespace
}  // namespace segfuse
