// Registers of 512 bits.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace segfuse {
namespace {

constexpr int kMachineRegisters = 32;

template <class T>
struct Reg;

// x = mantissa 2^exponent with the mantissa in [sqrt(1/2), sqrt(2)), for normal x > 0.
template <class T>
struct Split {
  Reg<T> mantissa, exponent;
};

template <>
struct Reg<float> {
  using Mask = __mmask16;
  static constexpr int lanes = 16;
  __m512 v;
  static Reg load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Reg set(float x) { return {_mm512_set1_ps(x)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  // y 2^n for integral n in [-127, 127]; 0 for n = -127 (denormals are flushed).
  static Reg scale(Reg y, Reg n) { return {_mm512_scalef_ps(y.v, n.v)}; }
  // f(x - floor(x)) 2^floor(x); 0 below the smallest normal number.
  template <class F>
  static Reg with_exponent(Reg x, const F& f) {
    const __m512 fraction = _mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    return {_mm512_scalef_ps(f(Reg{fraction}).v, x.v)};
  }
  static Split<float> split(Reg x) {
    const __m512i u = _mm512_castps_si512(x.v);
    const __m512i exponent = _mm512_srai_epi32(_mm512_sub_epi32(u, _mm512_set1_epi32(0x3f3504f3)), 23);
    return {{_mm512_castsi512_ps(_mm512_sub_epi32(u, _mm512_slli_epi32(exponent, 23)))},
            {_mm512_cvtepi32_ps(exponent)}};
  }
  static Reg gather(const float* table, Reg index) {
    return {_mm512_i32gather_ps(_mm512_cvttps_epi32(index.v), table, 4)};
  }
  // An element of a table of this length, in one instruction. A gather takes dozens.
  static constexpr int table = 32;
  static Reg lookup(const float* t, Reg index) {
    return {_mm512_permutex2var_ps(_mm512_loadu_ps(t), _mm512_cvttps_epi32(index.v), _mm512_loadu_ps(t + 16))};
  }
};

template <>
struct Reg<double> {
  using Mask = __mmask8;
  static constexpr int lanes = 8;
  __m512d v;
  static Reg load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Reg set(double x) { return {_mm512_set1_pd(x)}; }
  void store(double* p) const { _mm512_storeu_pd(p, v); }
  static Reg scale(Reg y, Reg n) { return {_mm512_scalef_pd(y.v, n.v)}; }
  // f(x - floor(x)) 2^floor(x); 0 below the smallest normal number.
  template <class F>
  static Reg with_exponent(Reg x, const F& f) {
    const __m512d fraction = _mm512_reduce_pd(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    return {_mm512_scalef_pd(f(Reg{fraction}).v, x.v)};
  }
  static Split<double> split(Reg x) {
    const __m512i u = _mm512_castpd_si512(x.v);
    const __m512i exponent = _mm512_srai_epi64(_mm512_sub_epi64(u, _mm512_set1_epi64(0x3fe6a09e667f3bcd)), 52);
    return {{_mm512_castsi512_pd(_mm512_sub_epi64(u, _mm512_slli_epi64(exponent, 52)))},
            {_mm512_cvtepi64_pd(exponent)}};
  }
  static Reg gather(const double* table, Reg index) {
    return {_mm512_i32gather_pd(_mm512_cvttpd_epi32(index.v), table, 8)};
  }
  static constexpr int table = 16;
  static Reg lookup(const double* t, Reg index) {
    return {_mm512_permutex2var_pd(_mm512_loadu_pd(t), _mm512_cvttpd_epi64(index.v), _mm512_loadu_pd(t + 8))};
  }
};

inline Reg<float> operator+(Reg<float> a, Reg<float> b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Reg<float> operator-(Reg<float> a, Reg<float> b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Reg<float> operator*(Reg<float> a, Reg<float> b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Reg<float> operator/(Reg<float> a, Reg<float> b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Reg<float> fma(Reg<float> a, Reg<float> b, Reg<float> c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Reg<float> product_minus(Reg<float> a, Reg<float> b, Reg<float> c) { return {_mm512_fmsub_ps(a.v, b.v, c.v)}; }
inline Reg<float> min(Reg<float> a, Reg<float> b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Reg<float> max(Reg<float> a, Reg<float> b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Reg<float> abs(Reg<float> a) { return {_mm512_abs_ps(a.v)}; }
inline Reg<float> minus_abs(Reg<float> a) { return {_mm512_or_ps(_mm512_set1_ps(-0.0f), a.v)}; }
inline Reg<float> round(Reg<float> a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline __mmask16 less(Reg<float> a, Reg<float> b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
inline __mmask16 greater_equal(Reg<float> a, Reg<float> b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
inline __mmask16 equal(Reg<float> a, Reg<float> b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
inline __mmask16 not_equal(Reg<float> a, Reg<float> b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_NEQ_UQ); }
inline __mmask16 sign_bit(Reg<float> a) { return _mm512_movepi32_mask(_mm512_castps_si512(a.v)); }
inline bool is_any(__mmask16 m) { return m != 0; }
inline Reg<float> select(__mmask16 m, Reg<float> a, Reg<float> b) { return {_mm512_mask_blend_ps(m, b.v, a.v)}; }
inline Reg<float> add_where(__mmask16 m, Reg<float> a, Reg<float> b) { return {_mm512_mask_add_ps(a.v, m, a.v, b.v)}; }

inline Reg<double> operator+(Reg<double> a, Reg<double> b) { return {_mm512_add_pd(a.v, b.v)}; }
inline Reg<double> operator-(Reg<double> a, Reg<double> b) { return {_mm512_sub_pd(a.v, b.v)}; }
inline Reg<double> operator*(Reg<double> a, Reg<double> b) { return {_mm512_mul_pd(a.v, b.v)}; }
inline Reg<double> operator/(Reg<double> a, Reg<double> b) { return {_mm512_div_pd(a.v, b.v)}; }
inline Reg<double> fma(Reg<double> a, Reg<double> b, Reg<double> c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
inline Reg<double> product_minus(Reg<double> a, Reg<double> b, Reg<double> c) {
  return {_mm512_fmsub_pd(a.v, b.v, c.v)};
}
inline Reg<double> min(Reg<double> a, Reg<double> b) { return {_mm512_min_pd(a.v, b.v)}; }
inline Reg<double> max(Reg<double> a, Reg<double> b) { return {_mm512_max_pd(a.v, b.v)}; }
inline Reg<double> abs(Reg<double> a) { return {_mm512_abs_pd(a.v)}; }
inline Reg<double> minus_abs(Reg<double> a) { return {_mm512_or_pd(_mm512_set1_pd(-0.0), a.v)}; }
inline Reg<double> round(Reg<double> a) {
  return {_mm512_roundscale_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline __mmask8 less(Reg<double> a, Reg<double> b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ); }
inline __mmask8 greater_equal(Reg<double> a, Reg<double> b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_GE_OQ); }
inline __mmask8 equal(Reg<double> a, Reg<double> b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ); }
inline __mmask8 not_equal(Reg<double> a, Reg<double> b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_NEQ_UQ); }
inline Reg<double> select(__mmask8 m, Reg<double> a, Reg<double> b) { return {_mm512_mask_blend_pd(m, b.v, a.v)}; }
inline Reg<double> add_where(__mmask8 m, Reg<double> a, Reg<double> b) {
  return {_mm512_mask_add_pd(a.v, m, a.v, b.v)};
}

}  // namespace
}  // namespace segfuse
