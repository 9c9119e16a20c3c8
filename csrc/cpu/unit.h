// One instruction-set unit: the engines instantiated, and the choice among them. Included once by each unit_*.cpp.
#pragma once

#include "any_joint.h"
#include "flush.h"
#include "kernels.h"
#include "label_map.h"
#include "rows.h"
#include "vec.h"

namespace segfuse {
namespace {

template <class Real, class Link, class Points>
ChunkFunction find_rows(const Job& job, Step step) {
  if (job.region_sums == kExtraSums) return Rows<Real, Link, AnyPoints, true>::step(step);
  return Rows<Real, Link, Points, false>::step(step);
}

template <class Real>
ChunkFunction find_joint(const Job& job, Step step) {
  bool plain = job.problem->label_map && job.link == LinkKind::softmax && job.region_sums != kExtraSums &&
               !job.sums_true_negatives && !job.has_infinite_slopes;
  for (int k = 0; k < job.points; ++k) plain = plain && !job.point[k].smooths && !job.point[k].every_class;
  const auto any = [&](auto engine) {
    using Engine = decltype(engine);
    if (step == Step::statistics) return &Engine::template statistics<Step::statistics>;
    if (step == Step::values) return &Engine::values;
    return step == Step::gradient ? &Engine::template gradient<Step::gradient> : ChunkFunction(nullptr);
  };
  if (plain && step != Step::values) {
    const auto of = [&](auto engine) {
      using Engine = decltype(engine);
      if (step == Step::statistics) return &Engine::template statistics<Step::statistics>;
      if (step == Step::gradient) return &Engine::template gradient<Step::gradient>;
      if constexpr (sizeof(Real) == 4) {
        if (step == Step::both) return &Engine::template statistics<Step::both>;
        return step == Step::keep ? &Engine::template statistics<Step::keep> : &Engine::template gradient<Step::resume>;
      }
      return ChunkFunction(nullptr);
    };
    if (job.points == 0) return of(LabelMap<Real, NoPoints>());
    if (job.points == 1 && job.point[0].kind == PointKind::cross_entropy)
      return of(LabelMap<Real, OnePoint<CrossEntropy>>());
    return of(LabelMap<Real, AnyPoints>());
  }
  const bool extra = job.region_sums == kExtraSums;
  if (job.link == LinkKind::identity)
    return extra ? any(AnyJoint<Real, Identity, true>()) : any(AnyJoint<Real, Identity, false>());
  return extra ? any(AnyJoint<Real, Softmax, true>()) : any(AnyJoint<Real, Softmax, false>());
}

inline ChunkFunction find_kernel(const Job& job, Step step) {
  if (job.problem->wide) {
    if (job.joint) return find_joint<double>(job, step);
    if (job.link == LinkKind::identity) return find_rows<double, Identity, AnyPoints>(job, step);
    return find_rows<double, Sigmoid, AnyPoints>(job, step);
  }
  if (job.joint) return find_joint<float>(job, step);
  if (job.link == LinkKind::identity) return find_rows<float, Identity, AnyPoints>(job, step);
  if (job.points == 0) return find_rows<float, Sigmoid, NoPoints>(job, step);
  if (job.points == 1) {
    if (job.point[0].kind == PointKind::bce_with_logits)
      return find_rows<float, Sigmoid, OnePoint<BceWithLogits>>(job, step);
    if (job.point[0].kind == PointKind::focal_square)
      return find_rows<float, Sigmoid, OnePoint<FocalSquare>>(job, step);
  }
  return find_rows<float, Sigmoid, AnyPoints>(job, step);
}

template <class Real>
void elementary(int function, Real parameter, const Real* in, Real* out, int64_t count) {
  using V = Vec<Real>;
  const FlushDenormals flush;
  alignas(64) Real x[V::lanes], y[V::lanes];
  for (int64_t i = 0; i < count; i += V::lanes) {
    const int64_t n = smaller(V::lanes, count - i);
    for (int64_t k = 0; k < V::lanes; ++k) x[k] = k < n ? in[i + k] : Real(0);
    const V v = V::load(x);
    const V r = function == 0   ? exp_nonpositive(v)
                : function == 1 ? log(v)
                : function == 2 ? log1p(v)
                : function == 3 ? log1p_unit(v)
                : function == 4 ? fast_exp2(v)
                : function == 5 ? fast_log2(v)
                                : pow(v, parameter);
    r.store(y);
    for (int64_t k = 0; k < n; ++k) out[i + k] = y[k];
  }
}

}  // namespace
}  // namespace segfuse
