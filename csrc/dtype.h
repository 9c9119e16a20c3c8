// Element types; half and bfloat16 for a host that lacks them.
#pragma once

#include <cstdint>
#include <cstring>

#include "hd.h"

namespace segfuse {

enum class Dtype : int { f32, f64, f16, bf16, boolean, u8, i8, i16, i32, i64, u16, u32, u64 };

HD int64_t size_of(Dtype t) {
  const bool one = t == Dtype::boolean || t == Dtype::u8 || t == Dtype::i8;
  const bool eight = t == Dtype::i64 || t == Dtype::f64 || t == Dtype::u64;
  const bool two = t == Dtype::f16 || t == Dtype::bf16 || t == Dtype::i16 || t == Dtype::u16;
  return one ? 1 : eight ? 8 : two ? 2 : 4;
}

inline bool is_floating(Dtype t) { return t <= Dtype::bf16; }

// Whether labels of a type can be a value. A uint8 cannot be -100: it would become 156. A float may be any value.
inline bool holds(Dtype t, int64_t value) {
  if (is_floating(t)) return true;
  const bool is_signed = t == Dtype::i8 || t == Dtype::i16 || t == Dtype::i32 || t == Dtype::i64;
  const int bits = int(size_of(t)) * 8 - (is_signed ? 1 : 0);
  const int64_t limit = bits >= 63 ? INT64_MAX : (int64_t(1) << bits) - 1;
  return value <= limit && value >= (is_signed ? -limit - 1 : 0);
}

namespace {

struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

HD uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
HD float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

HD float widen(Bfloat16 x) { return float_of(uint32_t(x.bits) << 16); }

HD float widen(Half h) {
  const uint32_t sign = uint32_t(h.bits & 0x8000u) << 16, exponent = (h.bits >> 10) & 31u, mantissa = h.bits & 0x3ffu;
  if (exponent == 31) return float_of(sign | 0x7f800000u | (mantissa << 13));
  if (exponent) return float_of(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = float(int32_t(mantissa)) * 5.9604644775390625e-8f;  // subnormal: mantissa 2^-24
  return sign ? -magnitude : magnitude;
}

// Round to nearest, ties to even; NaN stays NaN.
HD Bfloat16 narrow_bfloat16(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return {uint16_t(x != x ? (u >> 16) | 0x40u : rounded)};
}

// Computed in integers only: the result may be subnormal, and the kernels flush denormals.
HD Half narrow_half(float x) {
  const uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // 65520 and above round to infinity
  if (magnitude >= 0x38800000u) {
    const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
    return {uint16_t(sign | (rounded >> 13))};
  }
  if (magnitude < 0x33000000u) return {uint16_t(sign)};  // below half of the smallest subnormal
  const uint32_t shift = 126u - (magnitude >> 23), mantissa = (magnitude & 0x7fffffu) | 0x800000u;
  const uint32_t whole = mantissa >> shift, lost = mantissa & ((1u << shift) - 1u), half = 1u << (shift - 1u);
  return {uint16_t(sign | (whole + (lost > half || (lost == half && (whole & 1u)))))};
}

}  // namespace
}  // namespace segfuse
