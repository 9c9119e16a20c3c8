// HD marks what is compiled for the host and the device; INLINE what must be merged into its caller, before anything
// else is done with it: a vector that a function hands over by reference would pass through memory.
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
