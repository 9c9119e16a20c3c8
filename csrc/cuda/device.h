// What kernels need of the machine: shared memory, sums over a block, 16-byte loads and stores, half precision.
// Instructions that are not C++ are here and in ../math.h, beside C++ that does the same on the host (and in
// tests/shim).
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "../dtype.h"
#include "../math.h"

namespace segfuse {
namespace {

constexpr int kWarp = 32, kThreads = 256, kWarps = kThreads / kWarp;

// The dynamic shared memory of the block. Each kernel has a layout of its own.
__device__ inline unsigned char* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
  return dynamic_shared_memory;
#else
  return segfuse_shim::shared_memory();
#endif
}

template <class T>
__device__ inline T warp_sum(T v) {
  for (int lane = kWarp / 2; lane > 0; lane /= 2) v += __shfl_xor_sync(0xffffffffu, v, lane);
  return v;
}

// A barrier for `threads` threads of the block that pass the same id, 1 to 15. They must be whole warps.
__device__ inline void sync_part(int id, int threads) {
#ifdef __CUDACC__
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  segfuse_shim::part_barrier(id, threads);
#endif
}

// Returns x, but hides where it comes from: the compiler keeps x, and does not compute it again in each turn of a loop.
template <class T>
__device__ inline T kept(T x) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a register, or two");
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 4)
    asm volatile("" : "+r"(x));
  else
    asm volatile("" : "+l"(x));
#endif
  return x;
}

// float(x), but the compiler does not know that: see find_gradient in label_map.h.
__device__ inline float opaque_float(int x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("cvt.rn.f32.s32 %0, %1;" : "=f"(y) : "r"(x));
  return y;
#else
  return float(x);
#endif
}

// -------------------------------------------------------------------------------------------------- half and bfloat16

__device__ inline float widen_half(uint16_t bits) {
#ifdef __CUDA_ARCH__
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
#else
  return widen(Half{bits});
#endif
}
__device__ inline uint16_t narrow_to_half(float x) {
#ifdef __CUDA_ARCH__
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#else
  return narrow_half(x).bits;
#endif
}
__device__ inline uint16_t narrow_to_bfloat16(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#else
  return narrow_bfloat16(x).bits;
#endif
}

// ------------------------------------------------------------------------------------------- vectors of 1 to 64 bytes

template <int kBytes>
struct Word;
template <>
struct Word<1> {
  using type = unsigned char;
};
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned int;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

// kCount consecutive elements, loaded and stored in the widest words possible. p is aligned to all of them, at most to
// 16 bytes.
template <class Element, int kCount>
struct Pack {
  static constexpr int kBytes = int(sizeof(Element)) * kCount, kWide = kBytes < 16 ? kBytes : 16;
  using W = typename Word<kWide>::type;
  union {
    W word[kBytes / kWide];
    Element element[kCount];
    uint32_t pair[(kBytes + 3) / 4];  // two 16-bit elements, or four bytes
  };
  __device__ Pack() {}
  __device__ void clear() {
    for (int i = 0; i < kBytes / kWide; ++i) word[i] = W{};
  }
  __device__ void load(const Element* p) {
    for (int i = 0; i < kBytes / kWide; ++i) word[i] = __ldg(reinterpret_cast<const W*>(p) + i);
  }
  // A streaming store: the gradient must not push out of the caches what is still to be read.
  __device__ void store(Element* p) const {
    for (int i = 0; i < kBytes / kWide; ++i) __stcs(reinterpret_cast<W*>(p) + i, word[i]);
  }
};

// Narrows two numbers at once. The first goes to the lower half.
__device__ inline uint32_t narrow_to_halves(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits;
#else
  return narrow_to_half(first) | uint32_t(narrow_to_half(second)) << 16;
#endif
}
__device__ inline uint32_t narrow_to_bfloat16s(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(second), "f"(first));
  return bits;
#else
  return narrow_to_bfloat16(first) | uint32_t(narrow_to_bfloat16(second)) << 16;
#endif
}

// Conversions of an element to and from the type that it is computed in. kNarrow: the element has fewer digits. In a
// pack, widened() takes element k, and narrow() sets elements k and k + 1, k even. Both read and write half precision
// by words: each half of a word would cost an instruction more.
template <class Element>
struct Number {
  using Real = float;
  static constexpr bool kNarrow = false;
  __device__ static float widened(Element x) { return float(x); }
  __device__ static Element narrowed(float x) { return Element(x); }
  template <int kCount>
  __device__ static float widened(const Pack<Element, kCount>& pack, int k) {
    return float(pack.element[k]);
  }
  template <int kCount>
  __device__ static void narrow(float first, float second, Pack<Element, kCount>& pack, int k) {
    pack.element[k] = Element(first);
    pack.element[k + 1] = Element(second);
  }
};
template <>
struct Number<double> {
  using Real = double;
  static constexpr bool kNarrow = false;
  __device__ static double widened(double x) { return x; }
  __device__ static double narrowed(double x) { return x; }
};
template <>
struct Number<Half> {
  using Real = float;
  static constexpr bool kNarrow = true;
  __device__ static float widened(Half x) { return widen_half(x.bits); }
  __device__ static Half narrowed(float x) { return {narrow_to_half(x)}; }
  template <int kCount>
  __device__ static float widened(const Pack<Half, kCount>& pack, int k) {
    return widen_half(uint16_t(pack.pair[k / 2] >> (k % 2 * 16)));
  }
  template <int kCount>
  __device__ static void narrow(float first, float second, Pack<Half, kCount>& pack, int k) {
    pack.pair[k / 2] = narrow_to_halves(first, second);
  }
};
template <>
struct Number<Bfloat16> {
  using Real = float;
  static constexpr bool kNarrow = true;
  __device__ static float widened(Bfloat16 x) { return widen(x); }
  __device__ static Bfloat16 narrowed(float x) { return {narrow_to_bfloat16(x)}; }
  template <int kCount>
  __device__ static float widened(const Pack<Bfloat16, kCount>& pack, int k) {
    return float_of(k % 2 ? pack.pair[k / 2] & 0xffff0000u : pack.pair[k / 2] << 16);
  }
  template <int kCount>
  __device__ static void narrow(float first, float second, Pack<Bfloat16, kCount>& pack, int k) {
    pack.pair[k / 2] = narrow_to_bfloat16s(first, second);
  }
};

// ------------------------------------------------------------------------------------------- labels

// Whether all labels are in [0, kLimit), kLimit at most 128.
template <int kLimit, class T, int kCount>
__device__ inline bool all_below(const Pack<T, kCount>& labels) {
  bool all = true;
#pragma unroll
  for (int k = 0; k < kCount; ++k) all = all && uint64_t(int64_t(labels.element[k])) < uint64_t(kLimit);
  return all;
}
// Four labels at a time, if there are four. A label is too large if the highest bit of its byte is set, or if adding
// 128 - kLimit sets it.
template <int kLimit, int kCount>
__device__ inline bool all_below(const Pack<uint8_t, kCount>& labels) {
  uint32_t large = 0;
#pragma unroll
  for (int j = 0; j < (kCount + 3) / 4; ++j) {
    const uint32_t four = kCount % 4 ? labels.pair[j] & ((1u << 8 * (kCount % 4)) - 1) : labels.pair[j];
    large |= four | ((four & 0x7f7f7f7fu) + (128 - kLimit) * 0x01010101u);
  }
  return !(large & 0x80808080u);
}

// Element k, in one instruction.
template <int kCount>
__device__ inline int byte_of(const Pack<uint8_t, kCount>& bytes, int k) {
#ifdef __CUDA_ARCH__
  return int(__byte_perm(bytes.pair[k / 4], 0, 0x4440 + k % 4));
#else
  return bytes.element[k];
#endif
}

// -------------------------------------------------------------------------------------------- sums of blocks

// Sums of a block in double. A thread adds at most kAddsPerFlush floats to a value before add_over_block is called.
constexpr int kAddsPerFlush = 64;

// totals[i] += the sum of value[i] over the block's threads, for the first `count` of kCount values (a constant).
// staging: kWarps * kCount doubles. All threads call it. Ends with a barrier.
template <int kCount, class Real>
__device__ inline void add_over_block(const Real (&value)[kCount], int count, double* totals, double* staging) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i >= count) break;
    const Real sum = warp_sum(value[i]);
    if (lane == 0) staging[warp * kCount + i] = double(sum);
  }
  __syncthreads();
  if (int(threadIdx.x) < count) {
    double sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += staging[w * kCount + threadIdx.x];
    totals[threadIdx.x] += sum;
  }
  __syncthreads();
}

}  // namespace
}  // namespace segfuse
