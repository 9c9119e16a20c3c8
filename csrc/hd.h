// HD marks what is compiled for the host and the device.
#pragma once

#ifdef __CUDACC__
#define HD __host__ __device__ inline
#else
#define HD inline
#endif
