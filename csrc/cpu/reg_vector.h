// Registers as the compiler's own vector types: 32 bytes with AVX2, else 16. Every x86-64 (SSE2) and every aarch64
// (NEON) has 16 bytes; for a machine that has less, the compiler splits them.
#pragma once

#include <cstdint>

#if defined(SEGFUSE_AVX2)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace segfuse {
namespace {

#if defined(SEGFUSE_AVX2)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif
#if defined(__aarch64__)
constexpr int kMachineRegisters = 32;
#else
constexpr int kMachineRegisters = 16;
#endif

// How a number is encoded: the bits of its mantissa, the bias of its exponent, the number sqrt(1/2).
template <class T>
struct Encoding;
template <>
struct Encoding<float> {
  using Integer = int32_t;
  using Unsigned = uint32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr Integer root_half = 0x3f3504f3;
};
template <>
struct Encoding<double> {
  using Integer = int64_t;
  using Unsigned = uint64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr Integer root_half = 0x3fe6a09e667f3bcd;
};

template <class T>
struct Lanes {
  using Integer = typename Encoding<T>::Integer;
  typedef T Vector __attribute__((vector_size(kRegisterBytes)));
  typedef T Memory __attribute__((vector_size(kRegisterBytes), aligned(4), may_alias));
  typedef Integer Bits __attribute__((vector_size(kRegisterBytes)));
  typedef typename Encoding<T>::Unsigned Unsigned __attribute__((vector_size(kRegisterBytes)));
};
using Floats = Lanes<float>::Vector;
using Doubles = Lanes<double>::Vector;

// Operations that vector types have no operator for.
struct Machine {
#if defined(SEGFUSE_AVX2)
  static constexpr bool fuses = true;
  static constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }
  static Floats floor(Floats a) { return _mm256_floor_ps(a); }
  static Doubles floor(Doubles a) { return _mm256_floor_pd(a); }
  static Floats round(Floats a) { return _mm256_round_ps(a, nearest); }
  static Doubles round(Doubles a) { return _mm256_round_pd(a, nearest); }
  template <class Bits>
  static bool is_any(Bits m) {
    return _mm256_movemask_epi8((__m256i)m) != 0;
  }
  static Floats gather(const float* t, Floats i) { return _mm256_i32gather_ps(t, _mm256_cvttps_epi32(i), 4); }
  static Doubles gather(const double* t, Doubles i) { return _mm256_i32gather_pd(t, _mm256_cvttpd_epi32(i), 8); }
#elif defined(__aarch64__)
  static constexpr bool fuses = true;
  static Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static Doubles fma(Doubles a, Doubles b, Doubles c) { return vfmaq_f64(c, a, b); }
  static Floats floor(Floats a) { return vrndmq_f32(a); }
  static Doubles floor(Doubles a) { return vrndmq_f64(a); }
  static Floats round(Floats a) { return vrndnq_f32(a); }
  static Doubles round(Doubles a) { return vrndnq_f64(a); }
  template <class Bits>
  static bool is_any(Bits m) {
    return vmaxvq_u32((uint32x4_t)m) != 0;
  }
#else
  static constexpr bool fuses = false;
  // It rounds twice. The range reductions bear that: their constants end in zeros.
  template <class Vector>
  static Vector fma(Vector a, Vector b, Vector c) {
    return a * b + c;
  }
  template <class Vector>
  static Vector floor(Vector a) {
    const Vector nearest = round(a);
    const auto above = a < nearest;
    return nearest - (Vector)(above & (decltype(a < a))(Vector{} + 1));
  }
  // To the nearest integer, for |a| below 2^22 (double: 2^51).
  static Floats round(Floats a) { return (a + 12582912.0f) - 12582912.0f; }
  static Doubles round(Doubles a) { return (a + 6755399441055744.0) - 6755399441055744.0; }
  template <class Bits>
  static bool is_any(Bits m) {
    const auto words = (Lanes<double>::Bits)m;
    return (words[0] | words[1]) != 0;
  }
#endif
#if !defined(SEGFUSE_AVX2)
  template <class T, class Vector>
  static Vector gather(const T* t, Vector index) {
    Vector found{};
    for (int i = 0; i < kRegisterBytes / int(sizeof(T)); ++i) found[i] = t[int32_t(index[i])];
    return found;
  }
#endif
};

// x = mantissa 2^exponent with the mantissa in [sqrt(1/2), sqrt(2)), for normal x > 0.
template <class T>
struct Split;

template <class T>
struct Reg {
  using Code = Encoding<T>;
  using Vector = typename Lanes<T>::Vector;
  using Memory = typename Lanes<T>::Memory;
  using Bits = typename Lanes<T>::Bits;
  struct Mask {
    Bits m;  // all bits of a lane, or none
  };
  static constexpr int lanes = kRegisterBytes / int(sizeof(T));
  Vector v;

  static Reg load(const T* p) { return {*reinterpret_cast<const Memory*>(p)}; }
  static Reg set(T x) { return {x - Vector{}}; }  // not x + 0, which is +0 for x = -0
  void store(T* p) const { *reinterpret_cast<Memory*>(p) = v; }

  // y 2^n for integral n in [-bias, bias]; 0 for n = -bias. The low bits of n + bias + 2^mantissa are n + bias.
  static Reg scale(Reg y, Reg n) {
    const Vector shifted = n.v + (whole + T(Code::bias));
    return {y.v * (Vector)((Bits)shifted << Code::mantissa)};
  }
  // f(x - floor(x)) 2^floor(x); 0 below the smallest normal number.
  template <class F>
  static Reg with_exponent(Reg x, const F& f) {
    const Vector y = max(set(T(-Code::bias)), x).v, n = Machine::floor(y);
    return scale(f(Reg{y - n}), {n});
  }
  static Split<T> split(Reg x) {
    const Bits u = (Bits)x.v;
    if constexpr (sizeof(T) == 4) {
      const Bits exponent = (u - Code::root_half) >> Code::mantissa;
      return {{(Vector)(u - (exponent << Code::mantissa))}, {__builtin_convertvector(exponent, Vector)}};
    } else {  // a bias keeps the exponent positive: AVX2 has no arithmetic shift of 64 bits, and no conversion
      const Bits bias = (int64_t(Code::bias) << Code::mantissa) - Bits{}, offset = u - Code::root_half + bias;
      const Bits biased = (Bits)((typename Lanes<T>::Unsigned)offset >> Code::mantissa);
      const Vector shifted = (Vector)(biased | (Bits)set(whole).v);
      return {{(Vector)(u - (biased << Code::mantissa) + bias)}, {shifted - (whole + T(Code::bias))}};
    }
  }
  static Reg gather(const T* t, Reg index) { return {Machine::gather(t, index.v)}; }
#if defined(SEGFUSE_AVX2)
  // An element of a table of this length. A gather takes a dozen instructions.
  static constexpr int table = sizeof(T) == 4 ? 8 : 0;
  static Reg lookup(const T* t, Reg index) {
    return {_mm256_permutevar8x32_ps(load(t).v, _mm256_cvttps_epi32(index.v))};
  }
#else
  static constexpr int table = 0;  // there is no lookup
#endif

  friend Reg operator+(Reg a, Reg b) { return {a.v + b.v}; }
  friend Reg operator-(Reg a, Reg b) { return {a.v - b.v}; }
  friend Reg operator*(Reg a, Reg b) { return {a.v * b.v}; }
  friend Reg operator/(Reg a, Reg b) { return {a.v / b.v}; }
  // As the x86 instructions do: the second operand if either is NaN.
  friend Reg min(Reg a, Reg b) { return {a.v < b.v ? a.v : b.v}; }
  friend Reg max(Reg a, Reg b) { return {b.v < a.v ? a.v : b.v}; }
  friend Reg fma(Reg a, Reg b, Reg c) { return {Machine::fma(a.v, b.v, c.v)}; }
  // a b - c with one rounding, for c near a b.
  friend Reg product_minus(Reg a, Reg b, Reg c) {
    if constexpr (Machine::fuses) return {Machine::fma(a.v, b.v, -c.v)};
    Reg found{};
    for (int i = 0; i < lanes; ++i)
      found.v[i] = sizeof(T) == 4 ? T(double(a.v[i]) * double(b.v[i]) - double(c.v[i]))
                                  : T(__builtin_fma(a.v[i], b.v[i], -c.v[i]));
    return found;
  }
  friend Reg abs(Reg a) { return {(Vector)((Bits)a.v & ~(Bits)set(T(-0.0)).v)}; }
  friend Reg minus_abs(Reg a) { return {(Vector)((Bits)a.v | (Bits)set(T(-0.0)).v)}; }
  friend Reg round(Reg a) { return {Machine::round(a.v)}; }
  friend Mask less(Reg a, Reg b) { return {a.v < b.v}; }
  friend Mask greater_equal(Reg a, Reg b) { return {a.v >= b.v}; }
  friend Mask equal(Reg a, Reg b) { return {a.v == b.v}; }
  friend Mask not_equal(Reg a, Reg b) { return {a.v != b.v}; }
  friend Mask sign_bit(Reg a) { return {(Bits)a.v < 0}; }
  friend bool is_any(Mask m) { return Machine::is_any(m.m); }
  friend Reg select(Mask m, Reg a, Reg b) { return {m.m ? a.v : b.v}; }
  // a + (m ? b : 0).
  friend Reg add_where(Mask m, Reg a, Reg b) { return {a.v + (Vector)(m.m & (Bits)b.v)}; }

 private:
  static constexpr T whole = T(typename Lanes<T>::Integer(1) << Code::mantissa);  // larger numbers have no fractions
};

template <class T>
struct Split {
  Reg<T> mantissa, exponent;
};

}  // namespace
}  // namespace segfuse
