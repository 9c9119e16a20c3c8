#define SEGFUSE_AVX2
#include "isa.h"

namespace segfuse {

const Kernels& avx2_kernels() {
  static constexpr Kernels kernels{"avx2", &find_kernel, &elementary<float>, &elementary<double>};
  return kernels;
}

}  // namespace segfuse
