// The instruction set that every machine has: SSE2 on x86-64, NEON on aarch64.
#include "isa.h"

namespace segfuse {

const Kernels& baseline_kernels() {
  static constexpr Kernels kernels{"baseline", &find_kernel, &elementary<float>, &elementary<double>};
  return kernels;
}

}  // namespace segfuse
