// What the kernels of an instruction set offer: for a job, the function that runs one chunk of one step.
#pragma once

#include <cstdint>

#include "../chunks.h"
#include "../problem.h"

namespace segfuse {

// What a value that must not be there is: an integer label, the same of an unsigned type, a float label, a probability.
enum class ValueKind : int { label, unsigned_label, soft_label, probability };

// Values that are neither in range nor ignored: how many, and the first. Of labels before probabilities.
struct ValueReport {
  int64_t count = 0, sample = 0, channel = 0, position = 0, label = 0;
  ValueKind kind = ValueKind::label;
  double number = 0;  // of those that are no integers

  INLINE bool is_before(const ValueReport& other) const {
    if (kind != other.kind) return kind < other.kind;
    if (sample != other.sample) return sample < other.sample;
    if (channel != other.channel) return channel < other.channel;
    return position < other.position;
  }
  // Takes up `more`, which has a count.
  INLINE void add(const ValueReport& more) {
    const int64_t before = count && kind <= more.kind ? count : 0, after = !count || more.kind <= kind ? more.count : 0;
    if (!count || more.is_before(*this)) *this = more;
    count = before + after;
  }
};

// Two steps are statistics that also store something in the gradient's place: `fused` the gradient of a pointwise loss
// with assumed slopes; `cache` what a gradient would compute again of every logit. `from_cache` is the gradient from
// there.
enum class Step : int { statistics, values, gradient, fused, cache, from_cache };

// A call, as plain data (no standard container: see math.h).
struct Job {
  const Problem* problem;
  Plan plan;  // as the problem reads it: resolve()
  Layout layout;
  const void* class_scale[kMaxPointwise];  // multiclass: C values of the computation's type, or null
  const void* slopes;        // domains x domain_slopes() of the computation's type, the upstream gradient multiplied in
  bool has_infinite_slopes;  // pixels that do not count are to be selected out of the gradient, not multiplied by 0
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
