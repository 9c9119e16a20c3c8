#include "kernels.h"
#include "rows.h"

namespace segfuse {
namespace {

using BcePoint = OnePoint<BceWithLogits, true>;
using FocalPoint = OnePoint<FocalSquare, false>;

#define SEGFUSE_ENTRY(step, name, E, engine, dtype, link, points, extra) \
  entry<E, Step::step>("rows." #step "<" name ">", Engine::engine, dtype, LinkKind::link, PointSet::points, extra)

// Points that are known at compile time, where planes are arrays.
#define SEGFUSE_DENSE(Element, name, dtype, points, Points, extra)                                                 \
  SEGFUSE_ENTRY(statistics, name, SEGFUSE_ROWS(DenseRow<Element>, Sigmoid, Points, extra), rows, dtype, sigmoid,   \
                points, extra),                                                                                    \
      SEGFUSE_ENTRY(gradient, name, SEGFUSE_ROWS(DenseRow<Element>, Sigmoid, Points, extra), rows, dtype, sigmoid, \
                    points, extra)
#define SEGFUSE_ROWS(...) Rows<__VA_ARGS__>
#define SEGFUSE_ELEMENT(Element, name, dtype)                                                \
  SEGFUSE_DENSE(Element, name ", none", dtype, none, NoPoints, false),                       \
      SEGFUSE_DENSE(Element, name ", bce", dtype, bce, BcePoint, false),                     \
      SEGFUSE_DENSE(Element, name ", focal_square", dtype, focal_square, FocalPoint, false), \
      SEGFUSE_DENSE(Element, name ", any", dtype, any, AnyPoints, true)
#define SEGFUSE_STRIDED(Real, dtype, Link, link)                                                                  \
  SEGFUSE_ENTRY(statistics, "strided " #Real ", " #link, SEGFUSE_ROWS(StridedRow<Real>, Link, AnyPoints, true),   \
                strided_rows, dtype, link, any, true),                                                            \
      SEGFUSE_ENTRY(values, "strided " #Real ", " #link, SEGFUSE_ROWS(StridedRow<Real>, Link, AnyPoints, true),   \
                    strided_rows, dtype, link, any, true),                                                        \
      SEGFUSE_ENTRY(gradient, "strided " #Real ", " #link, SEGFUSE_ROWS(StridedRow<Real>, Link, AnyPoints, true), \
                    strided_rows, dtype, link, any, true)

// float16 is not among them: a gradient divided by the number of pixels would underflow before it is scaled up. Nor is
// the focal loss: it would spill.
#define SEGFUSE_BOTH(Element, name, dtype)                                                                           \
  SEGFUSE_ENTRY(both, name ", bce", SEGFUSE_ROWS(DenseRow<Element>, Sigmoid, BcePoint, false), rows, dtype, sigmoid, \
                bce, false)

constexpr Kernel kKernels[] = {
    SEGFUSE_ELEMENT(float, "float32", Dtype::f32),           SEGFUSE_ELEMENT(Half, "float16", Dtype::f16),
    SEGFUSE_ELEMENT(Bfloat16, "bfloat16", Dtype::bf16),      SEGFUSE_BOTH(float, "float32", Dtype::f32),
    SEGFUSE_BOTH(Bfloat16, "bfloat16", Dtype::bf16),         SEGFUSE_STRIDED(float, Dtype::f32, Sigmoid, sigmoid),
    SEGFUSE_STRIDED(float, Dtype::f32, Identity, identity),  SEGFUSE_STRIDED(double, Dtype::f64, Sigmoid, sigmoid),
    SEGFUSE_STRIDED(double, Dtype::f64, Identity, identity),
};

}  // namespace

KernelTable rows_kernels() { return {kKernels, sizeof(kKernels) / sizeof(Kernel)}; }

}  // namespace segfuse
