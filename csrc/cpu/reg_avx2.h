// Registers of 256 bits.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace segfuse {
namespace {

template <class T>
struct Reg;

// x = mantissa 2^exponent with the mantissa in [sqrt(1/2), sqrt(2)), for normal x > 0.
template <class T>
struct Split {
  Reg<T> mantissa, exponent;
};

struct MaskF8 {
  __m256 m;
};
struct MaskD4 {
  __m256d m;
};

template <>
struct Reg<float> {
  using Mask = MaskF8;
  static constexpr int lanes = 8;
  __m256 v;
  static Reg load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Reg set(float x) { return {_mm256_set1_ps(x)}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  // y 2^n for integral n in [-127, 127]; 0 for n = -127.
  static Reg scale(Reg y, Reg n) {
    const __m256i i = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_mul_ps(y.v, _mm256_castsi256_ps(_mm256_slli_epi32(i, 23)))};
  }
  // f(x - floor(x)) 2^floor(x); 0 below the smallest normal number.
  template <class F>
  static Reg with_exponent(Reg x, const F& f) {
    const __m256 y = _mm256_max_ps(_mm256_set1_ps(-127.0f), x.v), n = _mm256_floor_ps(y);
    return scale(f(Reg{_mm256_sub_ps(y, n)}), {n});
  }
  static Split<float> split(Reg x) {
    const __m256i u = _mm256_castps_si256(x.v);
    const __m256i exponent = _mm256_srai_epi32(_mm256_sub_epi32(u, _mm256_set1_epi32(0x3f3504f3)), 23);
    return {{_mm256_castsi256_ps(_mm256_sub_epi32(u, _mm256_slli_epi32(exponent, 23)))},
            {_mm256_cvtepi32_ps(exponent)}};
  }
  static Reg gather(const float* table, Reg index) {
    return {_mm256_i32gather_ps(table, _mm256_cvttps_epi32(index.v), 4)};
  }
  // An element of a table of this length, where the gather takes a dozen instructions.
  static constexpr int table = 8;
  static Reg lookup(const float* t, Reg index) {
    return {_mm256_permutevar8x32_ps(_mm256_loadu_ps(t), _mm256_cvttps_epi32(index.v))};
  }
};

template <>
struct Reg<double> {
  using Mask = MaskD4;
  static constexpr int lanes = 4;
  __m256d v;
  static Reg load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static Reg set(double x) { return {_mm256_set1_pd(x)}; }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
  static Reg scale(Reg y, Reg n) {  // n + 1023 appears in the low bits of n + 1023 + 2^52
    const __m256d shifted = _mm256_add_pd(n.v, _mm256_set1_pd(4503599627370496.0 + 1023.0));
    return {_mm256_mul_pd(y.v, _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(shifted), 52)))};
  }
  // f(x - floor(x)) 2^floor(x); 0 below the smallest normal number.
  template <class F>
  static Reg with_exponent(Reg x, const F& f) {
    const __m256d y = _mm256_max_pd(_mm256_set1_pd(-1023.0), x.v), n = _mm256_floor_pd(y);
    return scale(f(Reg{_mm256_sub_pd(y, n)}), {n});
  }
  static Split<double> split(Reg x) {  // the exponent is biased to stay positive: there is no 64-bit arithmetic shift
    const __m256i bias = _mm256_set1_epi64x(int64_t(1023) << 52), u = _mm256_castpd_si256(x.v);
    const __m256i offset = _mm256_add_epi64(_mm256_sub_epi64(u, _mm256_set1_epi64x(0x3fe6a09e667f3bcd)), bias);
    const __m256i biased = _mm256_srli_epi64(offset, 52);
    const __m256d magic = _mm256_set1_pd(4503599627370496.0);
    return {{_mm256_castsi256_pd(_mm256_add_epi64(_mm256_sub_epi64(u, _mm256_slli_epi64(biased, 52)), bias))},
            {_mm256_sub_pd(_mm256_castsi256_pd(_mm256_or_si256(biased, _mm256_castpd_si256(magic))),
                           _mm256_set1_pd(4503599627370496.0 + 1023.0))}};
  }
  static Reg gather(const double* table, Reg index) {
    return {_mm256_i32gather_pd(table, _mm256_cvttpd_epi32(index.v), 8)};
  }
  static constexpr int table = 0;
};

inline Reg<float> operator+(Reg<float> a, Reg<float> b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Reg<float> operator-(Reg<float> a, Reg<float> b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Reg<float> operator*(Reg<float> a, Reg<float> b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Reg<float> operator/(Reg<float> a, Reg<float> b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Reg<float> fma(Reg<float> a, Reg<float> b, Reg<float> c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Reg<float> product_minus(Reg<float> a, Reg<float> b, Reg<float> c) { return {_mm256_fmsub_ps(a.v, b.v, c.v)}; }
inline Reg<float> min(Reg<float> a, Reg<float> b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Reg<float> max(Reg<float> a, Reg<float> b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Reg<float> abs(Reg<float> a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline Reg<float> minus_abs(Reg<float> a) { return {_mm256_or_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline Reg<float> round(Reg<float> a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline MaskF8 less(Reg<float> a, Reg<float> b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline MaskF8 greater_equal(Reg<float> a, Reg<float> b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)}; }
inline MaskF8 equal(Reg<float> a, Reg<float> b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
inline MaskF8 not_equal(Reg<float> a, Reg<float> b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_NEQ_UQ)}; }
inline MaskF8 sign_bit(Reg<float> a) { return {a.v}; }  // all that a select looks at
inline bool is_any(MaskF8 m) { return _mm256_movemask_ps(m.m) != 0; }
inline Reg<float> select(MaskF8 m, Reg<float> a, Reg<float> b) { return {_mm256_blendv_ps(b.v, a.v, m.m)}; }

// a + (m ? b : 0).
inline Reg<float> add_where(MaskF8 m, Reg<float> a, Reg<float> b) {
  return {_mm256_add_ps(a.v, _mm256_and_ps(m.m, b.v))};
}

inline Reg<double> operator+(Reg<double> a, Reg<double> b) { return {_mm256_add_pd(a.v, b.v)}; }
inline Reg<double> operator-(Reg<double> a, Reg<double> b) { return {_mm256_sub_pd(a.v, b.v)}; }
inline Reg<double> operator*(Reg<double> a, Reg<double> b) { return {_mm256_mul_pd(a.v, b.v)}; }
inline Reg<double> operator/(Reg<double> a, Reg<double> b) { return {_mm256_div_pd(a.v, b.v)}; }
inline Reg<double> fma(Reg<double> a, Reg<double> b, Reg<double> c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
inline Reg<double> product_minus(Reg<double> a, Reg<double> b, Reg<double> c) {
  return {_mm256_fmsub_pd(a.v, b.v, c.v)};
}
inline Reg<double> min(Reg<double> a, Reg<double> b) { return {_mm256_min_pd(a.v, b.v)}; }
inline Reg<double> max(Reg<double> a, Reg<double> b) { return {_mm256_max_pd(a.v, b.v)}; }
inline Reg<double> abs(Reg<double> a) { return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v)}; }
inline Reg<double> minus_abs(Reg<double> a) { return {_mm256_or_pd(_mm256_set1_pd(-0.0), a.v)}; }
inline Reg<double> round(Reg<double> a) {
  return {_mm256_round_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline MaskD4 less(Reg<double> a, Reg<double> b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ)}; }
inline MaskD4 greater_equal(Reg<double> a, Reg<double> b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_GE_OQ)}; }
inline MaskD4 equal(Reg<double> a, Reg<double> b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ)}; }
inline MaskD4 not_equal(Reg<double> a, Reg<double> b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_NEQ_UQ)}; }
inline bool is_any(MaskD4 m) { return _mm256_movemask_pd(m.m) != 0; }
inline Reg<double> select(MaskD4 m, Reg<double> a, Reg<double> b) { return {_mm256_blendv_pd(b.v, a.v, m.m)}; }
inline Reg<double> add_where(MaskD4 m, Reg<double> a, Reg<double> b) {
  return {_mm256_add_pd(a.v, _mm256_and_pd(m.m, b.v))};
}

}  // namespace
}  // namespace segfuse
