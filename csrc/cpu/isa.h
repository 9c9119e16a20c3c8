// The kernels of one instruction set: instances of the engines, and which runs. Each isa_*.cpp includes this file once.
#pragma once

#include "denormals.h"
#include "kernels.h"
#include "label_map.h"
#include "sigmoid.h"
#include "softmax_general.h"
#include "vec_math.h"

namespace segfuse {
namespace {

template <class Real, class Link, class Pointwise>
ChunkFunction find_sigmoid(const Job& job, Step step) {
  if (job.layout.region_sums == kExtraSums) return SigmoidRows<Real, Link, AnyPointwise, true>::step(step);
  return SigmoidRows<Real, Link, Pointwise, false>::step(step);
}

template <class Real>
ChunkFunction find_softmax(const Job& job, Step step) {
  const bool plain = job.plan.fits_label_map(job.problem->label_map) && !job.has_infinite_slopes;
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
        if (step == Step::fused) return &Engine::template statistics<Step::fused>;
        return step == Step::cache ? &Engine::template statistics<Step::cache>
                                   : &Engine::template gradient<Step::from_cache>;
      }
      return ChunkFunction(nullptr);
    };
    if (job.plan.pointwise_count == 0) return of(LabelMap<Real, NoPointwise>());
    if (job.plan.pointwise_count == 1 && job.plan.pointwise[0].kind == PointwiseKind::cross_entropy)
      return of(LabelMap<Real, OnePointwise<CrossEntropy>>());
    return of(LabelMap<Real, AnyPointwise>());
  }
  const bool extra = job.layout.region_sums == kExtraSums;
  if (job.plan.link == LinkKind::identity)
    return extra ? any(SoftmaxGeneral<Real, Identity, true>()) : any(SoftmaxGeneral<Real, Identity, false>());
  return extra ? any(SoftmaxGeneral<Real, Softmax, true>()) : any(SoftmaxGeneral<Real, Softmax, false>());
}

inline ChunkFunction find_kernel(const Job& job, Step step) {
  if (job.problem->wide) {
    if (job.plan.multiclass) return find_softmax<double>(job, step);
    if (job.plan.link == LinkKind::identity) return find_sigmoid<double, Identity, AnyPointwise>(job, step);
    return find_sigmoid<double, Sigmoid, AnyPointwise>(job, step);
  }
  if (job.plan.multiclass) return find_softmax<float>(job, step);
  if (job.plan.link == LinkKind::identity) return find_sigmoid<float, Identity, AnyPointwise>(job, step);
  if (job.plan.pointwise_count == 0) return find_sigmoid<float, Sigmoid, NoPointwise>(job, step);
  if (job.plan.pointwise_count == 1) {
    if (job.plan.pointwise[0].kind == PointwiseKind::bce_with_logits)
      return find_sigmoid<float, Sigmoid, OnePointwise<BceWithLogits>>(job, step);
    if (job.plan.pointwise[0].kind == PointwiseKind::focal_square)
      return find_sigmoid<float, Sigmoid, OnePointwise<FocalSquare>>(job, step);
  }
  return find_sigmoid<float, Sigmoid, AnyPointwise>(job, step);
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
