// The number type of the CUDA kernels: plain float and double. Declared ahead of losses.h and its kin, whose templates
// find these functions by name.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define SCALAR __host__ __device__ inline
#else
#define SCALAR inline
#endif

namespace segfuse {
namespace {

template <class T>
SCALAR T select(bool mask, const T& a, const T& b) {
  return mask ? a : b;
}
// As on the CPU: the second operand where either is NaN.
SCALAR float min(float a, float b) { return a < b ? a : b; }
SCALAR float max(float a, float b) { return a > b ? a : b; }
SCALAR double min(double a, double b) { return a < b ? a : b; }
SCALAR double max(double a, double b) { return a > b ? a : b; }
SCALAR float abs(float a) { return ::fabsf(a); }
SCALAR double abs(double a) { return ::fabs(a); }

SCALAR float exp_nonpositive(float x) { return ::expf(x); }
SCALAR double exp_nonpositive(double x) { return ::exp(x); }
SCALAR float log(float x) { return ::logf(x); }
SCALAR float log1p(float x) { return ::log1pf(x); }
SCALAR float log1p_unit(float x) { return ::log1pf(x); }
SCALAR double log1p_unit(double x) { return ::log1p(x); }
SCALAR float pow(float base, float exponent) { return ::powf(base, exponent); }
SCALAR double pow(double base, double exponent) { return ::pow(base, exponent); }

}  // namespace
}  // namespace segfuse
