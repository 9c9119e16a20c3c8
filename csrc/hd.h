// HD marks functions that are compiled for the host and the device. INLINE marks functions that must be inlined: a
// vector passed by reference to a function that is not inlined goes through memory.
#pragma once

#if defined(_MSC_VER)
#define INLINE __forceinline
#define INLINE_LAMBDA
#else
#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#endif

#ifdef __CUDACC__
#define HD __host__ __device__ inline
#else
#define HD INLINE
#endif
