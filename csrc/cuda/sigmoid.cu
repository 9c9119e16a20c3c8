#include "kernels.h"
#include "sigmoid.h"

namespace segfuse {
namespace {

using Bce = OneTerm<BceWithLogits, true>;
using FocalSquareTerm = OneTerm<FocalSquare, false>;

#define SEGFUSE_ENTRY(step, name, E, engine, dtype, link, pointwise, extra)                                           \
  entry<E, Step::step>("sigmoid." #step "<" name ">", Engine::engine, dtype, LinkKind::link, PointwiseSet::pointwise, \
                       extra)

// Terms that are known at compile time, where planes are arrays.
#define SEGFUSE_DENSE(Element, name, dtype, pointwise, Pointwise, extra)                                               \
  SEGFUSE_ENTRY(statistics, name, SEGFUSE_ROWS(DenseRow<Element>, Sigmoid, Pointwise, extra), sigmoid, dtype, sigmoid, \
                pointwise, extra),                                                                                     \
      SEGFUSE_ENTRY(gradient, name, SEGFUSE_ROWS(DenseRow<Element>, Sigmoid, Pointwise, extra), sigmoid, dtype,        \
                    sigmoid, pointwise, extra)
#define SEGFUSE_ROWS(...) SigmoidRows<__VA_ARGS__>
#define SEGFUSE_ELEMENT(Element, name, dtype)                                                     \
  SEGFUSE_DENSE(Element, name ", none", dtype, none, NoTerm, false),                              \
      SEGFUSE_DENSE(Element, name ", bce", dtype, bce, Bce, false),                               \
      SEGFUSE_DENSE(Element, name ", focal_square", dtype, focal_square, FocalSquareTerm, false), \
      SEGFUSE_DENSE(Element, name ", any", dtype, any, AnyTerms, true)
#define SEGFUSE_STRIDED(Real, dtype, Link, link)                                                                 \
  SEGFUSE_ENTRY(statistics, "strided " #Real ", " #link, SEGFUSE_ROWS(StridedRow<Real>, Link, AnyTerms, true),   \
                strided_sigmoid, dtype, link, any, true),                                                        \
      SEGFUSE_ENTRY(values, "strided " #Real ", " #link, SEGFUSE_ROWS(StridedRow<Real>, Link, AnyTerms, true),   \
                    strided_sigmoid, dtype, link, any, true),                                                    \
      SEGFUSE_ENTRY(gradient, "strided " #Real ", " #link, SEGFUSE_ROWS(StridedRow<Real>, Link, AnyTerms, true), \
                    strided_sigmoid, dtype, link, any, true)

// No float16: a gradient divided by the number of pixels would underflow before it is scaled up. No focal loss: it
// would spill registers.
#define SEGFUSE_FUSED(Element, name, dtype)                                                                         \
  SEGFUSE_ENTRY(fused, name ", bce", SEGFUSE_ROWS(DenseRow<Element>, Sigmoid, Bce, false), sigmoid, dtype, sigmoid, \
                bce, false)

constexpr Kernel kKernels[] = {
    SEGFUSE_ELEMENT(float, "float32", Dtype::f32),           SEGFUSE_ELEMENT(Half, "float16", Dtype::f16),
    SEGFUSE_ELEMENT(Bfloat16, "bfloat16", Dtype::bf16),      SEGFUSE_FUSED(float, "float32", Dtype::f32),
    SEGFUSE_FUSED(Bfloat16, "bfloat16", Dtype::bf16),        SEGFUSE_STRIDED(float, Dtype::f32, Sigmoid, sigmoid),
    SEGFUSE_STRIDED(float, Dtype::f32, Identity, identity),  SEGFUSE_STRIDED(double, Dtype::f64, Sigmoid, sigmoid),
    SEGFUSE_STRIDED(double, Dtype::f64, Identity, identity),
};

}  // namespace

KernelTable sigmoid_kernels() { return {kKernels, sizeof(kKernels) / sizeof(Kernel)}; }

}  // namespace segfuse
