// Scalar mathematics, in which losses.h, link.h and head.h are written (with dual.h).
//
// All of it is in an unnamed namespace on purpose. The CPU kernels are compiled once per instruction set. If two such
// files held an inline copy of the same function, the linker would keep one copy, maybe the one with AVX-512, which
// other machines cannot run.
#pragma once

#include <cmath>
#include <cstdint>

#include "hd.h"

namespace segfuse {
namespace {

// Functions of scalars, for the CUDA kernels and the head. The vector of the CPU kernels (cpu/vec.h) has the same
// names.
HD float select(bool mask, float a, float b) { return mask ? a : b; }
HD double select(bool mask, double a, double b) { return mask ? a : b; }
// NaN if the second operand is NaN. If the first operand is NaN, the result is not specified: write max(constant, x).
HD float min(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float y;
  asm("min.ftz.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
#else
  return a < b ? a : b;
#endif
}
HD float max(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float y;
  asm("max.ftz.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
#else
  return a > b ? a : b;
#endif
}
HD double min(double a, double b) { return a < b ? a : b; }
HD double max(double a, double b) { return a > b ? a : b; }
HD float abs(float a) { return ::fabsf(a); }
HD double abs(double a) { return ::fabs(a); }
HD float minus_abs(float a) {
#ifdef __CUDA_ARCH__
  float y;
  asm("abs.f32 %0, %1;" : "=f"(y) : "f"(a));  // without .ftz it becomes a part of the instruction that reads y
  return -y;
#else
  return -::fabsf(a);
#endif
}
HD double minus_abs(double a) { return -::fabs(a); }

HD float fma(float a, float b, float c) { return ::fmaf(a, b, c); }

// Functions that a GPU approximates in one instruction, to two units in the last place (log2: 1.7e-7 near 1).
HD float fast_exp2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return ::exp2f(x);
#endif
}
HD float fast_log2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return ::log2f(x);
#endif
}

// log2 to a tenth, for small corrections. On a vector (cpu/vec.h) it takes a third of the instructions of fast_log2.
HD float rough_log2(float x) { return fast_log2(x); }

// 1 / (small + large) and small / large. A vector needs one division for both (cpu/vec.h).
HD void divide_shares(float small, float large, float& inverse, float& ratio) {
  inverse = 1.0f / (small + large);
#ifdef __CUDA_ARCH__
  ratio = small * (1.0f / large);  // small / large would also test for large > 2^126
#else
  ratio = small / large;
#endif
}

template <class Real>
struct Base2;
template <>
struct Base2<float> {
  static constexpr float log2_e = 1.44269504f, ln2 = 0.693147182f;
  // 2^(x fl(log2 e)) differs from exp(x) by this relative error for each unit of the exponent |x| log2(e).
  static constexpr float excess = 9.2533e-9f;
  static constexpr float exponents = 150;  // more than any exponent
  static constexpr float largest = 1e8f;   // for a larger x the rounding of x log2(e) exceeds 8
};
template <>
struct Base2<double> {
  static constexpr double log2_e = 1.4426950408889634074, ln2 = 0.69314718055994530942;
  static constexpr double excess = 9.7798e-18, exponents = 1100, largest = 5e16;
};

// exp(x) for x <= 0. The fma puts back what rounding took from x log2(e). Error: 5.5e-8 down to x = -20.
HD float exp_nonpositive(float x) {
  const float z = max(-104.0f, x), y = z * Base2<float>::log2_e, e = fast_exp2(y);
  return fma(e, fma(y, -Base2<float>::ln2, z), e);
}
HD double exp_nonpositive(double x) { return ::exp(x); }
HD double log(double x) { return ::log(x); }
HD double log1p(double x) { return ::log1p(x); }
HD float log(float x) { return ::logf(x); }
HD float log1p(float x) { return ::log1pf(x); }
HD float pow(float base, float exponent) { return ::powf(base, exponent); }
HD double pow(double base, double exponent) { return ::pow(base, exponent); }

// log(x) for x >= 1, where a small absolute error is enough.
HD float log_from_one(float x) { return fast_log2(x) * Base2<float>::ln2; }
HD double log_from_one(double x) { return ::log(x); }

// c[0] + c[1] x + ...
template <class V, class Real, int N>
HD V polynomial(const V& x, const Real (&c)[N]) {
  V y(c[N - 1]);
  for (int i = N - 2; i >= 0; --i) y = fma(y, x, V(c[i]));
  return y;
}
// log(1 + x) for x in [0, 1], without a division or an exponent. Error: 2.9e-8
template <class V>
HD V log1p_unit_single(const V& x) {
  constexpr float c[] = {-0.4999999698f, 0.3333284189f,   -0.2498652617f, 0.1985410623f,   -0.1584756572f,
                         0.1156184545f,  -0.06675772506f, 0.02522405435f, -0.004466211601f};
  return fma(polynomial(x, c), x * x, x);
}
HD float log1p_unit(float x) { return log1p_unit_single(x); }
HD double log1p_unit(double x) { return ::log1p(x); }

// LateLog1p is log(1 + e), not computed yet; LinearLog is linear + log(1 + e). A sum of many of them needs one
// logarithm: the logarithm of the product of all 1 + e.
template <class V>
struct LateLog1p {
  V e;
};
template <class V>
struct LinearLog {
  V linear, e;
};
template <class V>
HD LinearLog<V> operator+(const V& linear, const LateLog1p<V>& log) {
  return {linear, log.e};
}

HD double cosh_minus_one(double x) {
  const double s = ::sinh(x / 2);
  return 2 * s * s;
}

HD float smallest_normal(float) { return 1.17549435e-38f; }
HD double smallest_normal(double) { return 2.2250738585072014e-308; }

// Whether a label or an input is a probability, up to the rounding of interpolated values. False for NaN.
template <class Real>
HD bool is_probability(Real x) {
  return abs(x - Real(0.5)) <= Real(0.5001);  // one comparison
}

}  // namespace
}  // namespace segfuse
