#define SEGFUSE_AVX512
#include "isa.h"

namespace segfuse {

const Kernels& avx512_kernels() {
  static constexpr Kernels kernels{"avx512", &find_kernel, &elementary<float>, &elementary<double>};
  return kernels;
}

}  // namespace segfuse
