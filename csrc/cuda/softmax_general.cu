#include "kernels.h"
#include "softmax_general.h"

namespace segfuse {
namespace {

#define SEGFUSE_STEPS(Real, dtype, Link, link)                                                            \
  entry<SoftmaxGeneral<Real, Link>, Step::statistics>("softmax_general.statistics<" #Real ", " #link ">", \
                                                      Engine::softmax_general, dtype, LinkKind::link,     \
                                                      PointwiseSet::any, true),                           \
      entry<SoftmaxGeneral<Real, Link>, Step::values>("softmax_general.values<" #Real ", " #link ">",     \
                                                      Engine::softmax_general, dtype, LinkKind::link,     \
                                                      PointwiseSet::any, true),                           \
      entry<SoftmaxGeneral<Real, Link>, Step::gradient>("softmax_general.gradient<" #Real ", " #link ">", \
                                                        Engine::softmax_general, dtype, LinkKind::link,   \
                                                        PointwiseSet::any, true)

constexpr Kernel kKernels[] = {
    SEGFUSE_STEPS(float, Dtype::f32, Softmax, softmax),
    SEGFUSE_STEPS(float, Dtype::f32, Identity, identity),
    SEGFUSE_STEPS(double, Dtype::f64, Softmax, softmax),
    SEGFUSE_STEPS(double, Dtype::f64, Identity, identity),
};

}  // namespace

KernelTable softmax_general_kernels() { return {kKernels, sizeof(kKernels) / sizeof(Kernel)}; }

}  // namespace segfuse
