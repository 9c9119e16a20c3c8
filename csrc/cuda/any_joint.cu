#include "any_joint.h"
#include "kernels.h"

namespace segfuse {
namespace {

#define SEGFUSE_STEPS(Real, dtype, Link, link)                                                                      \
  entry<AnyJoint<Real, Link>, Step::statistics>("any_joint.statistics<" #Real ", " #link ">", Engine::any_joint,    \
                                                dtype, LinkKind::link, PointSet::any, true),                        \
      entry<AnyJoint<Real, Link>, Step::values>("any_joint.values<" #Real ", " #link ">", Engine::any_joint, dtype, \
                                                LinkKind::link, PointSet::any, true),                               \
      entry<AnyJoint<Real, Link>, Step::gradient>("any_joint.gradient<" #Real ", " #link ">", Engine::any_joint,    \
                                                  dtype, LinkKind::link, PointSet::any, true)

constexpr Kernel kKernels[] = {
    SEGFUSE_STEPS(float, Dtype::f32, Softmax, softmax),
    SEGFUSE_STEPS(float, Dtype::f32, Identity, identity),
    SEGFUSE_STEPS(double, Dtype::f64, Softmax, softmax),
    SEGFUSE_STEPS(double, Dtype::f64, Identity, identity),
};

}  // namespace

KernelTable any_joint_kernels() { return {kKernels, sizeof(kKernels) / sizeof(Kernel)}; }

}  // namespace segfuse
