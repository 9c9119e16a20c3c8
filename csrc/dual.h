// Dual numbers: a value and its slopes. A loss that is written on any number type gives its derivative on these.
#pragma once

#include "math.h"

namespace segfuse {
namespace {

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

// f(a) from its value and its slope f'(a), by the chain rule.
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

// factor * a, where a factor of 0 gives 0 for every a: here 0 * inf is 0.
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

template <class T>  // for a factor of 0 or 1
HD LinearLog<T> masked_product(const T& factor, const LinearLog<T>& a) {
  return {masked_product(factor, a.linear), masked_product(factor, a.e)};
}

// base^exponent for base in [0, 1] and exponent >= 0. At base 0 the slope is set to 0. For exponents below 1 it is
// infinite there, but the factor beside it (log p, or p q of the link) goes to 0 at least as fast.
template <class T, class Real>
HD T power(const T& base, Real exponent) {
  return pow(base, exponent);
}
template <class T, int N, class Real>
HD Dual<T, N> power(const Dual<T, N>& base, Real exponent) {
  T value = pow(base.v, exponent);
  return chain(value, T(exponent) * value / max(T(smallest_normal(Real())), base.v), base);
}
template <class T>
HD T square(const T& a) {
  return a * a;
}
// base^exponent for an exponent >= 1, by squaring.
template <class T>
HD T integer_power(const T& base, int exponent) {
  int bit = 1;
  while (bit <= exponent / 2) bit *= 2;
  T r = base;
  while (bit /= 2) r = (exponent / bit) % 2 ? r * r * base : r * r;
  return r;
}

// max(0, a); the slope at 0 is 0.
template <class T>
HD T positive_part(const T& a) {
  return max(T(0), a);
}
template <class T, int N>
HD Dual<T, N> positive_part(const Dual<T, N>& a) {
  Dual<T, N> r;
  r.v = positive_part(a.v);
  for (int i = 0; i < N; ++i) r.d[i] = select(T(0) >= a.v, T(0), a.d[i]);
  return r;
}
// min(bound, a); the slope at the bound is that of a.
template <class T>
HD T at_most(const T& bound, const T& a) {
  return min(bound, a);
}
template <class T, int N>
HD Dual<T, N> at_most(const T& bound, const Dual<T, N>& a) {
  Dual<T, N> r;
  r.v = at_most(bound, a.v);
  for (int i = 0; i < N; ++i) r.d[i] = select(a.v > bound, T(0), a.d[i]);
  return r;
}
// |a|; the slope at 0 is 0, at NaN NaN.
template <class T, int N>
HD Dual<T, N> abs(const Dual<T, N>& a) {
  return chain(abs(a.v), select(a.v < T(0), T(-1), select(a.v > T(0), T(1), a.v)), a);
}
// a where the mask is set, else b.
template <class Mask, class T, int N>
HD Dual<T, N> select(const Mask& mask, const Dual<T, N>& a, const Dual<T, N>& b) {
  Dual<T, N> r;
  r.v = select(mask, a.v, b.v);
  for (int i = 0; i < N; ++i) r.d[i] = select(mask, a.d[i], b.d[i]);
  return r;
}
// The value without the slopes: comparisons read it.
template <class T>
HD const T& value_of(const T& a) {
  return a;
}
template <class T, int N>
HD const T& value_of(const Dual<T, N>& a) {
  return a.v;
}
// a + b with a plain b.
template <class T>
HD T shifted(const T& a, const T& b) {
  return a + b;
}
template <class T, int N>
HD Dual<T, N> shifted(const Dual<T, N>& a, const T& b) {
  Dual<T, N> r = a;
  r.v = a.v + b;
  return r;
}
// a * b with a plain b.
template <class T>
HD T scaled(const T& a, const T& b) {
  return a * b;
}
template <class T, int N>
HD Dual<T, N> scaled(const Dual<T, N>& a, const T& b) {
  return chain(a.v * b, b, a);
}

}  // namespace
}  // namespace segfuse
