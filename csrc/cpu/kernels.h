// The kernels of an instruction set: for a job and a step, the function that runs one chunk.
#pragma once

#include <cstdint>

#include "../chunks.h"
#include "../problem.h"

namespace segfuse {

// What kind of value is out of range: an integer label (of a signed or an unsigned type), a float label, a probability.
enum class ValueKind : int { label, unsigned_label, float_label, soft_label, probability };

// Values that are neither in range nor ignored: their number, and the first. Only the first kind is counted: labels
// before probabilities.
struct ValueReport {
  int64_t count = 0, sample = 0, channel = 0, position = 0, label = 0;
  ValueKind kind = ValueKind::label;
  double number = 0;  // the value, if it is no integer

  INLINE bool is_before(const ValueReport& other) const {
    if (kind != other.kind) return kind < other.kind;
    if (sample != other.sample) return sample < other.sample;
    if (channel != other.channel) return channel < other.channel;
    return position < other.position;
  }
  // Merges `more`, which has at least one value.
  INLINE void add(const ValueReport& more) {
    const int64_t before = count && kind <= more.kind ? count : 0, after = !count || more.kind <= kind ? more.count : 0;
    if (!count || more.is_before(*this)) *this = more;
    count = before + after;
  }
};

// fused and cache are statistics that also write to the gradient's place. fused writes the gradient of a pointwise loss
// with assumed slopes. cache writes numbers that the gradient would have to compute from every logit again; from_cache
// is the gradient, computed from them.
enum class Step : int { statistics, values, gradient, fused, cache, from_cache };

// A call as plain data, without standard containers (elements.h says why).
struct Job {
  const Problem* problem;
  Plan plan;  // as the problem reads it: resolve()
  Layout layout;
  const void* class_scale[kMaxPointwise];  // multiclass: C values of the computation's type, or null
  const void* slopes;        // domains x domain_slopes() of the computation's type, the upstream gradient multiplied in
  bool has_infinite_slopes;  // then pixels that do not count get 0 by selection: 0 times infinity is NaN
};

using ChunkFunction = void (*)(const Job&, const Chunk&, double* sums, ValueReport&);

struct Kernels {
  const char* name;
  ChunkFunction (*find)(const Job&, Step);  // null: there is no such step
  // out[i] = f(in[i]), f in exp, log, log1p, log1p_unit, exp2, log2, pow (with `parameter`): for the accuracy tests.
  void (*elementary32)(int function, float parameter, const float* in, float* out, int64_t count);
  void (*elementary64)(int function, double parameter, const double* in, double* out, int64_t count);
};

const Kernels& baseline_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();

}  // namespace segfuse
