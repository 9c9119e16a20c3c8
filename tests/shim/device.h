// The device side of CUDA: qualifiers, vector types, thread coordinates and intrinsics. Included by cuda_runtime.h.
#pragma once

// In libstdc++ only <memory> uses an attribute __noinline__: it must be read before this file defines the macro.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

#include "fiber.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))

// ------------------------------------------------------------------------------------------------------ vector types

namespace segfuse_shim {
template <class T>
struct Same {
  using type = T;
};
// The types for which CUDA overloads __ldg and the like. Any other type is an error under nvcc, so it is one here.
template <class T>
constexpr bool loadable = false;
}  // namespace segfuse_shim

#define SEGFUSE_SHIM_SCALAR(T) \
  template <>                  \
  inline constexpr bool segfuse_shim::loadable<T> = true;
#define SEGFUSE_SHIM_VECTOR2(name, T, alignment)                     \
  struct alignas(alignment) name##2 { T x, y; };                     \
  inline name##2 make_##name##2(T x, T y) { return name##2 {x, y}; } \
  SEGFUSE_SHIM_SCALAR(name##2)
#define SEGFUSE_SHIM_VECTOR3(name, T) \
  struct name##3 { T x, y, z; };      \
  inline name##3 make_##name##3(T x, T y, T z) { return name##3 {x, y, z}; }
#define SEGFUSE_SHIM_VECTOR4(name, T, alignment)                                     \
  struct alignas(alignment) name##4 { T x, y, z, w; };                               \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return name##4 {x, y, z, w}; } \
  SEGFUSE_SHIM_SCALAR(name##4)
#define SEGFUSE_SHIM_VECTORS(name, T)          \
  SEGFUSE_SHIM_SCALAR(T)                       \
  SEGFUSE_SHIM_VECTOR2(name, T, 2 * sizeof(T)) \
  SEGFUSE_SHIM_VECTOR3(name, T)                \
  SEGFUSE_SHIM_VECTOR4(name, T, 4 * sizeof(T))

SEGFUSE_SHIM_VECTORS(uchar, unsigned char)
SEGFUSE_SHIM_VECTORS(ushort, unsigned short)
SEGFUSE_SHIM_VECTORS(short, short)
SEGFUSE_SHIM_VECTORS(uint, unsigned)
SEGFUSE_SHIM_VECTORS(int, int)
SEGFUSE_SHIM_VECTORS(float, float)
SEGFUSE_SHIM_VECTOR2(char, signed char, 2)
SEGFUSE_SHIM_VECTOR4(char, signed char, 4)
SEGFUSE_SHIM_VECTOR2(longlong, long long, 16)
SEGFUSE_SHIM_VECTOR2(ulonglong, unsigned long long, 16)
SEGFUSE_SHIM_VECTOR2(double, double, 16)
SEGFUSE_SHIM_SCALAR(char)
SEGFUSE_SHIM_SCALAR(signed char)
SEGFUSE_SHIM_SCALAR(long)
SEGFUSE_SHIM_SCALAR(unsigned long)
SEGFUSE_SHIM_SCALAR(long long)
SEGFUSE_SHIM_SCALAR(unsigned long long)
SEGFUSE_SHIM_SCALAR(double)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return uint3{x, y, z}; }
};

extern uint3 threadIdx, blockIdx;  // set at every switch
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// ------------------------------------------------------------------------------------------------ loads and stores

namespace segfuse_shim {
// Copies the bytes: the sources read float planes as uint4 and the like, which C++ forbids and CUDA allows.
template <class T>
T checked_load(const T* address, Site site) {
  static_assert(loadable<T>, "CUDA has no cached load or store of this type");
  check_alignment(address, sizeof(T), site);
  T value;
  std::memcpy(&value, address, sizeof value);
  return value;
}
template <class T>
void checked_store(T* address, const T& value, Site site) {
  static_assert(loadable<T>, "CUDA has no cached load or store of this type");
  check_alignment(address, sizeof(T), site);
  std::memcpy(address, &value, sizeof value);
}
}  // namespace segfuse_shim

#define SEGFUSE_SHIM_LOAD(name)                                                    \
  template <class T>                                                               \
  T name(const T* address, segfuse_shim::Site site = segfuse_shim::Site::here()) { \
    return segfuse_shim::checked_load(address, site);                              \
  }
#define SEGFUSE_SHIM_STORE(name)                                    \
  template <class T>                                                \
  void name(T* address, typename segfuse_shim::Same<T>::type value, \
            segfuse_shim::Site site = segfuse_shim::Site::here()) { \
    segfuse_shim::checked_store(address, value, site);              \
  }
SEGFUSE_SHIM_LOAD(__ldg)
SEGFUSE_SHIM_LOAD(__ldca)
SEGFUSE_SHIM_LOAD(__ldcs)
SEGFUSE_SHIM_LOAD(__ldlu)
SEGFUSE_SHIM_STORE(__stcs)
SEGFUSE_SHIM_STORE(__stcg)
SEGFUSE_SHIM_STORE(__stwb)
SEGFUSE_SHIM_STORE(__stwt)

// The load that bypasses the first-level cache: spin-waits are made of it.
template <class T>
T __ldcg(const T* address, segfuse_shim::Site site = segfuse_shim::Site::here()) {
  segfuse_shim::pause();
  return segfuse_shim::checked_load(address, site);
}
template <class T>
T __ldcv(const T* address, segfuse_shim::Site site = segfuse_shim::Site::here()) {
  return __ldcg(address, site);
}

// --------------------------------------------------------------------------------------------------------- barriers

// Callers never pass `site`: each default is evaluated at the call.
inline void __syncthreads(segfuse_shim::Site site = segfuse_shim::Site::here()) {
  segfuse_shim::barrier(segfuse_shim::Op::sync, 0, site);
}
inline int __syncthreads_or(int predicate, segfuse_shim::Site site = segfuse_shim::Site::here()) {
  return segfuse_shim::barrier(segfuse_shim::Op::sync_or, predicate, site);
}
inline int __syncthreads_and(int predicate, segfuse_shim::Site site = segfuse_shim::Site::here()) {
  return segfuse_shim::barrier(segfuse_shim::Op::sync_and, predicate, site);
}
inline int __syncthreads_count(int predicate, segfuse_shim::Site site = segfuse_shim::Site::here()) {
  return segfuse_shim::barrier(segfuse_shim::Op::sync_count, predicate, site);
}

// Fences order nothing here (one host thread runs everything, in order). They are points where another thread may run.
inline void __threadfence() { segfuse_shim::pause(); }
inline void __threadfence_block() { segfuse_shim::pause(); }
inline void __threadfence_system() { segfuse_shim::pause(); }
inline void __nanosleep(unsigned) { segfuse_shim::pause(true); }

// ----------------------------------------------------------------------------------------------- collectives of a warp

inline void __syncwarp(unsigned mask = 0xffffffffu, segfuse_shim::Site site = segfuse_shim::Site::here()) {
  segfuse_shim::collective(segfuse_shim::Op::warp_sync, mask, 0, 0, warpSize, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, segfuse_shim::Site site = segfuse_shim::Site::here()) {
  return unsigned(segfuse_shim::collective(segfuse_shim::Op::ballot, mask, predicate != 0, 0, warpSize, site));
}
inline int __any_sync(unsigned mask, int predicate, segfuse_shim::Site site = segfuse_shim::Site::here()) {
  return int(segfuse_shim::collective(segfuse_shim::Op::any, mask, predicate != 0, 0, warpSize, site));
}
inline int __all_sync(unsigned mask, int predicate, segfuse_shim::Site site = segfuse_shim::Site::here()) {
  return int(segfuse_shim::collective(segfuse_shim::Op::all, mask, predicate != 0, 0, warpSize, site));
}
// Lanes are never converged here, so that no code can depend on it: only the own bit is set, which CUDA permits.
inline unsigned __activemask() { return segfuse_shim::own_lane_bit(); }

#define SEGFUSE_SHIM_SHUFFLE(T, name, op, kind)                                                 \
  inline T name(unsigned mask, T value, kind argument, int width = warpSize,                    \
                segfuse_shim::Site site = segfuse_shim::Site::here()) {                         \
    return segfuse_shim::from_bits<T>(segfuse_shim::collective(                                 \
        segfuse_shim::Op::op, mask, segfuse_shim::to_bits(value), int(argument), width, site)); \
  }
#define SEGFUSE_SHIM_LANES(T)                                                                                          \
  SEGFUSE_SHIM_SHUFFLE(T, __shfl_sync, shuffle, int)                                                                   \
  SEGFUSE_SHIM_SHUFFLE(T, __shfl_up_sync, shuffle_up, unsigned)                                                        \
  SEGFUSE_SHIM_SHUFFLE(T, __shfl_down_sync, shuffle_down, unsigned)                                                    \
  SEGFUSE_SHIM_SHUFFLE(T, __shfl_xor_sync, shuffle_xor, int)                                                           \
  inline unsigned __match_any_sync(unsigned mask, T value, segfuse_shim::Site site = segfuse_shim::Site::here()) {     \
    return unsigned(                                                                                                   \
        segfuse_shim::collective(segfuse_shim::Op::match_any, mask, segfuse_shim::to_bits(value), 0, warpSize, site)); \
  }
SEGFUSE_SHIM_LANES(int)
SEGFUSE_SHIM_LANES(unsigned)
SEGFUSE_SHIM_LANES(long)
SEGFUSE_SHIM_LANES(unsigned long)
SEGFUSE_SHIM_LANES(long long)
SEGFUSE_SHIM_LANES(unsigned long long)
SEGFUSE_SHIM_LANES(float)
SEGFUSE_SHIM_LANES(double)

// ---------------------------------------------------------------------------------------------------------- atomics

namespace segfuse_shim {
template <class T, class Update>
T atomic(T* address, Site site, Update update) {
  check_alignment(address, sizeof(T), site);
  pause();
  T old;
  std::memcpy(&old, address, sizeof old);
  const T next = update(old);
  std::memcpy(address, &next, sizeof next);
  return old;
}
inline int wrapping_sum(int a, int b) { return int(unsigned(a) + unsigned(b)); }
template <class T>
T wrapping_sum(T a, T b) {
  return a + b;
}
}  // namespace segfuse_shim

// Overloads, not templates: a type that CUDA lacks (unsigned long, say) must not compile.
#define SEGFUSE_SHIM_ATOMIC(name, T, ...)                                                    \
  inline T name(T* address, T value, segfuse_shim::Site site = segfuse_shim::Site::here()) { \
    return segfuse_shim::atomic(address, site, [value](T old) -> T {                         \
      (void)old;                                                                             \
      return __VA_ARGS__;                                                                    \
    });                                                                                      \
  }
#define SEGFUSE_SHIM_ATOMIC_INTEGER(T)                                                                        \
  SEGFUSE_SHIM_ATOMIC(atomicAdd, T, segfuse_shim::wrapping_sum(old, value))                                   \
  SEGFUSE_SHIM_ATOMIC(atomicExch, T, value)                                                                   \
  SEGFUSE_SHIM_ATOMIC(atomicMax, T, old < value ? value : old)                                                \
  SEGFUSE_SHIM_ATOMIC(atomicMin, T, value < old ? value : old)                                                \
  SEGFUSE_SHIM_ATOMIC(atomicAnd, T, old& value)                                                               \
  SEGFUSE_SHIM_ATOMIC(atomicOr, T, old | value)                                                               \
  SEGFUSE_SHIM_ATOMIC(atomicXor, T, old ^ value)                                                              \
  inline T atomicCAS(T* address, T expected, T value, segfuse_shim::Site site = segfuse_shim::Site::here()) { \
    return segfuse_shim::atomic(address, site, [=](T old) { return old == expected ? value : old; });         \
  }
SEGFUSE_SHIM_ATOMIC_INTEGER(int)
SEGFUSE_SHIM_ATOMIC_INTEGER(unsigned)
SEGFUSE_SHIM_ATOMIC_INTEGER(unsigned long long)
SEGFUSE_SHIM_ATOMIC(atomicAdd, float, old + value)
SEGFUSE_SHIM_ATOMIC(atomicAdd, double, old + value)
SEGFUSE_SHIM_ATOMIC(atomicExch, float, value)
SEGFUSE_SHIM_ATOMIC(atomicInc, unsigned, old >= value ? 0u : old + 1u)
SEGFUSE_SHIM_ATOMIC(atomicDec, unsigned, old == 0u || old > value ? value : old - 1u)

// ------------------------------------------------------------------------------------------------------------- bits

inline unsigned __float_as_uint(float x) { return unsigned(segfuse_shim::to_bits(x)); }
inline int __float_as_int(float x) { return int(segfuse_shim::to_bits(x)); }
inline float __uint_as_float(unsigned x) { return segfuse_shim::from_bits<float>(x); }
inline float __int_as_float(int x) { return segfuse_shim::from_bits<float>(segfuse_shim::to_bits(x)); }
inline long long __double_as_longlong(double x) { return (long long)(segfuse_shim::to_bits(x)); }
inline double __longlong_as_double(long long x) { return segfuse_shim::from_bits<double>(uint64_t(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)(x)) : 64; }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1u) << (31 - i);
  return r;
}

// ------------------------------------------------------------------------------------------------------- arithmetic

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }

#define SEGFUSE_SHIM_MIN_MAX(T)                    \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
SEGFUSE_SHIM_MIN_MAX(int)
SEGFUSE_SHIM_MIN_MAX(unsigned)
SEGFUSE_SHIM_MIN_MAX(long)
SEGFUSE_SHIM_MIN_MAX(unsigned long)
SEGFUSE_SHIM_MIN_MAX(long long)
SEGFUSE_SHIM_MIN_MAX(unsigned long long)
inline float min(float a, float b) { return std::fmin(a, b); }  // a NaN is dropped
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

inline long long clock64() { return segfuse_shim::ticks(); }
[[noreturn]] inline void __trap(segfuse_shim::Site site = segfuse_shim::Site::here()) {
  segfuse_shim::fail("__trap()", site);
}
