// The CUDA engine for softmax, class indices and sums of products, for any number of classes that fits, any pointwise
// terms and any strides. The classes of a pixel are in registers, of one thread or of a team of threads that share
// them (slice.h). Plain jobs (is_plain in tile.cu) have kernels of their own, kPlain: a third fewer instructions.
//
// Given:   a job, by value, whose TilePlan is set (choose_tile); shared memory of tile_bytes; the block's index is the
//          chunk's (in reverse for the gradient).
// Assumes: Plan::fits_label_map; a tile's shape that kSlots hold; kStaged: is_run (tile_shape.h); kPlain: is_plain.
// Writes:  as sigmoid.h: sums of the chunk, its gradient, or both. A bad label: NaN in the sums.
// Called:  by kernel<> (kernels.h), as tile.cu lists it; policy.cu chooses.
#pragma once

#include "../pixel.h"
#include "pointwise_terms.h"
#include "slice.h"

namespace segfuse {
namespace {

template <class Element, int kSlots, bool kStaged, bool kPlain>
struct Tile {
  static constexpr bool kAlone = kSlots == kFewSlots;  // a thread has all classes of its pixel
  // No more than four: compute capability 7.5 has 1,024 threads per processor.
  static constexpr int kBlock = kThreads, kBlocks = !kAlone ? 2 : kPlain ? 4 : kStaged ? 2 : 3;
  static constexpr int kFusedBlocks = kBlocks;  // without regions they have registers to spare
  static constexpr int kSharedBytes = 0;        // depends on the job: tile_bytes

  const Job& job;
  Slice<Element, kSlots, kStaged, kPlain, kAlone> slice;
  const int teams;                // that share a pixel
  const bool regions, has_label;  // the last team also loads the label
  float w = 0.0f, rest = 0.0f, label_power = 0.0f, at_peak = 0.0f, log2_label = 0.0f, inverse = 0.0f;
  int y = 0, peak_team = 0;
  Pixel<float> x{};  // of the label's class

  __device__ Tile(const Job& j, int64_t index, bool statistics)
      : job(j),
        slice(j, j.chunks.at(index),
              int(stage_at(j.layout, {j.tile.pixels, int(j.problem.classes)}, kSlots, statistics))),
        teams(kAlone ? 1 : slice.shape.teams()),
        regions(j.plan.region_count > 0),
        has_label(slice.team == teams - 1) {}

  __device__ static Exchange& exchange() { return *reinterpret_cast<Exchange*>(shared_memory()); }
  __device__ static float* columns() { return reinterpret_cast<float*>(shared_memory() + sizeof(Exchange)); }
  __device__ int row() const { return slice.lane * (teams < 4 ? 4 : teams); }
  __device__ void share(float (&values)[2 * kThreads], float value) const { values[row() + slice.team] = value; }
  // Calls f(team, the value that it shared) for every team of the pixel.
  template <class F>
  __device__ void for_teams(const float (&values)[2 * kThreads], const F& f) const {
    const float4* of_pixel = reinterpret_cast<const float4*>(values + row());
#pragma unroll 2
    for (int t = 0; t < teams; t += 4) {
      const float4 v = of_pixel[t / 4];
      f(t, v.x);
      f(t + 1, v.y);
      f(t + 2, v.z);
      f(t + 3, v.w);
    }
  }
  __device__ float sum_over_teams(const float (&values)[2 * kThreads]) const {
    float sum = 0.0f;
    for_teams(values, [&](int, float v) { sum += v; });
    return sum;
  }
  // A barrier for the threads that share a pixel, and for the other pixels of their warps. Other warps go on.
  __device__ void sync_teams() const {
    if (kStaged || slice.shape.pixels < kWarp)
      __syncthreads();
    else
      sync_part(1 + slice.lane / kWarp, teams * kWarp);
  }
  // Sets the two extra values of two teams (Exchange). Ends with a barrier.
  __device__ void prepare() const {
    for (int i = threadIdx.x; teams == 2 && i < 2 * kThreads; i += kThreads) {
      exchange().peak[i] = -INFINITY;
      exchange().rest[i] = exchange().others[i] = 0.0f;
    }
    __syncthreads();
  }

  // Loads the tile at `base`: weight, label, and the logits' powers (Exponents in pixel.h), 0 in a slot with the
  // label's class or none. `rest` is their sum over this thread's slots.
  template <bool kFindsPeak>
  __device__ void load(uint32_t base, float (&e)[kSlots]) {
    uint64_t label = 0;  // of plain jobs: requested before the logits, used after them
    if constexpr (kPlain) {
      if (has_label) label = slice.label(base);
    } else if (has_label) {
      w = 0.0f;
      y = 0;
      if (slice.holds(base)) {
        w = load_weight<float>(job, slice.domain, 0, slice.position(base));
        y = load_class<float>(job, slice.domain, slice.position(base), w);
      }
    }
    slice.load(base, e);
    if constexpr (kPlain) {  // as in load_class; threads without the label get both later
      const bool is_class = label < job.tile.label_limit, is_ignored = job.can_ignore && label == job.tile.ignored;
      y = is_class ? int(label) : 0;
      w = is_ignored || !slice.holds(base) ? 0.0f : is_class ? 1.0f : NAN;
    }
    float peak = e[0];
    slice.each([&](int j) { peak = max(peak, e[j]); });
    if (teams > 1) {
      share(exchange().peak, peak);
      if (has_label) {
        exchange().label[slice.lane] = float(y);
        exchange().weight[slice.lane] = w;
      }
      sync_teams();
      y = int(exchange().label[slice.lane]);
      w = exchange().weight[slice.lane];
      peak = -INFINITY;
      peak_team = 0;
      for_teams(exchange().peak, [&](int t, float other) {
        if (kFindsPeak && other > peak) peak_team = t;
        peak = max(peak, other);
      });
    }
    float label_logit = slice.logit(y);
    if constexpr (!std::is_same_v<Element, Half>) {  // float16 has no logit as large
      if (abs(peak) > Base2<float>::largest) {
        slice.each([&](int j) { e[j] -= peak; });
        label_logit -= peak;
        peak = 0.0f;
      }
    }
    const Exponents<float, float> exponent(peak);
    log2_label = exponent.of(label_logit);
    const unsigned slot = unsigned(y - slice.first);
    unsigned empty = kSlots < 32 || slice.count < 32 ? ~0u << slice.count : 0u;
    if (kAlone || slot < unsigned(slice.count)) empty |= 1u << slot;
    rest = 0.0f;
    slice.each([&](int j) {
      const float power = fast_exp2(exponent.of(e[j]));
      e[j] = empty >> j & 1 ? 0.0f : power;
      rest += e[j];
    });
    at_peak = fast_exp2(exponent.of(peak));
    label_power = fast_exp2(log2_label);
  }

  // Makes the pixel that the loss reads, when every team has shared its `rest`.
  __device__ void finish() {
    x = Softmax::of_label<float, Number<Element>::kNarrow>(
        label_power, teams > 1 ? sum_over_teams(exchange().rest) : rest, log2_label, inverse);
  }

  // Calls f(loss, k, the factor of the label's class) for each pointwise term. Cross-entropy without factors is the
  // most usual: not looking for its kind and factor saves 70 instructions.
  template <class F>
  __device__ void for_pointwise(const F& f) const {
    const PointwiseTerm& term = job.plan.pointwise[0];
    if (kPlain || (job.plan.pointwise_count == 1 && term.kind == PointwiseKind::cross_entropy && term.class_values < 0))
      CrossEntropyOrNone::for_each<float>(job.plan, [&](const auto& loss, int k) { f(loss, k, 1.0f); });
    else
      AnyTerms::for_each<float>(job.plan, [&](const auto& loss, int k) { f(loss, k, class_scale<float>(job, k, y)); });
  }

  __device__ static void statistics(const Job& job) { Tile(job, blockIdx.x, true).template add_chunk<false>(); }
  __device__ static void fused(const Job& job) { Tile(job, blockIdx.x, true).template add_chunk<true>(); }

  // Adds up a chunk. kWrites: also writes the gradient of one pointwise loss, with the assumed factor of the mean.
  template <bool kWrites>
  __device__ void add_chunk() {
    float weights = 0.0f, losses = 0.0f;  // of plain jobs
    const int pixels = slice.shape.pixels, classes = slice.shape.classes, group = int(job.layout.group_sums());
    const int step = job.layout.region_sums, rows = group + (regions ? 2 * classes : 0);
    for (int i = threadIdx.x; i < rows * pixels; i += kThreads) columns()[i] = 0.0f;
    if constexpr (kWrites) assume_slopes(job, slice.domain, exchange().slopes);
    prepare();
    float fp[kSlots] = {};
    for (uint32_t base = 0, adds = 1; base < slice.pixels; base += pixels, ++adds) {
      float e[kSlots];  // declared here, so that unused slots keep nothing from turn to turn
      load<false>(base, e);
      if (teams > 1) {
        share(exchange().rest, rest);
        sync_teams();
      }
      finish();
      if (w != 0.0f) {  // a pixel of weight 0 has no effect
        const float scaled = w * inverse;
        if (!kWrites && regions) slice.each([&](int j) { fp[j] += scaled * e[j]; });
        if constexpr (kPlain) {
          weights += w;
          for_pointwise([&](const auto& loss, int, float) { losses += w * loss(x, 1.0f).positive; });
        }
        if (has_label && !(kWrites && kPlain)) add_label(group);  // plain, fused: no regions, all is added above
      }
      if constexpr (kWrites) {
        write_pointwise(w, pointwise_slope(exchange().slopes, 1.0f), e);
        slice.store(base, e);
      }
      if (adds % kAddsPerFlush && base + pixels < slice.pixels) continue;
      const bool first = adds <= kAddsPerFlush;
      if (kPlain && has_label) {
        float* column = columns() + slice.lane;
        column[0] = weights;
        if (group > 1) {
          column[pixels] = losses;
          column[2 * pixels] = weights;
        }
        weights = losses = 0.0f;
      }
      __syncthreads();
      add_rows(0, rows, first, [&](int r) {
        return r < group             ? r
               : r < group + classes ? group + (r - group) * step
                                     : group + (r - group - classes) * step + kFn;
      });
      __syncthreads();
      if (kWrites || !regions) continue;
      slice.each([&](int j) {
        if (j < slice.count) columns()[(group + slice.first + j) * pixels + slice.lane] = fp[j];
        fp[j] = 0.0f;
      });
      __syncthreads();
      add_rows(group, group + classes, first, [&](int r) { return group + (r - group) * step + kFp; });
      __syncthreads();
    }
    // A label map needs no sum of negatives: row_scores.h.
    for (int c = threadIdx.x; step > kRegionSums && c < classes; c += kThreads)
      sums_of_chunk(job, blockIdx.x)[group + c * step + kTn] = 0;
  }

  __device__ void add_label(int group) {
    const int pixels = slice.shape.pixels;
    float* column = columns() + slice.lane;
    if constexpr (!kPlain) {
      column[0] += w;
      for_pointwise([&](const auto& loss, int k, float factor) {
        column[(1 + 2 * k) * pixels] += w * factor * loss(x, 1.0f).positive;
        column[(2 + 2 * k) * pixels] += job.plan.pointwise[k].weight_in_denominator ? w * factor : w;
      });
    }
    if (!regions) return;
    column += (group + y) * pixels;
    column[0] += w * x.p;
    column[slice.shape.classes * pixels] += w * x.q;
  }

  // The chunk's sum index(r) += row r of the columns, added over the lanes, for begin <= r < end; the rows become 0.
  template <class F>
  __device__ void add_rows(int begin, int end, bool first, const F& index) {
    const ChunkSums out = sums_of_chunk(job, blockIdx.x);
    const int of_warp = int(threadIdx.x) % kWarp, pixels = slice.shape.pixels;
    for (int r = begin + int(threadIdx.x) / kWarp; r < end; r += kWarps) {
      float sum = 0.0f;
#pragma unroll 1
      for (int i = of_warp; i < pixels; i += kWarp) {
        sum += columns()[r * pixels + i];
        columns()[r * pixels + i] = 0.0f;
      }
      sum = warp_sum(sum);
      if (of_warp == 0) out[index(r)] = first ? double(sum) : out[index(r)] + double(sum);
    }
  }

  __device__ float pointwise_slope(const float* slopes, float upstream) const {
    LabelSlope<float> slope(x);
    for_pointwise([&](const auto& loss, int k, float factor) { slope.add(loss, slopes[2 * k] * upstream * factor); });
    return slope.sum;
  }

  // The gradient replaces the powers. With weight 0 it is 0, also if slopes are infinite.
  __device__ void write_pointwise(float weight, float slope, float (&e)[kSlots]) {
    const PointwiseGradient<float> dz(weight, x, inverse, slope);
    const int slot = y - slice.first;
    slice.each([&](int j) { e[j] = j == slot ? dz.at_label : dz.of(e[j]); });
    if (weight == 0.0f) slice.each([&](int j) { e[j] = 0.0f; });
  }

  __device__ static void gradient(const Job& job) {
    // In reverse: the second cache still holds the chunks that the statistics read last.
    Tile(job, int64_t(gridDim.x) - 1 - blockIdx.x, false).write_chunk();
  }

  __device__ void write_chunk() {
    const float* slopes = static_cast<const float*>(job.slopes) + slice.domain * job.layout.domain_slopes();
    float *at_negative = columns(), *const at_positive = at_negative + teams * kSlots;
    if (regions) {
      for (int i = threadIdx.x; i < teams * kSlots; i += kThreads) {
        const int t = i / kSlots, c = slice.shape.first_class(t) + i % kSlots;
        at_negative[i] = 0.0f;
        if (c >= slice.shape.first_class(t + 1)) continue;
        const float* r = slopes + 2 * job.plan.pointwise_count + kRegionSlopes * c;
        const float of_class = upstream_of<float>(job, slice.domain, c);
        at_positive[c] = r[kAtPositive] * of_class;
        at_negative[i] = r[kAtNegative] * of_class;
      }
      at_negative += slice.team * kSlots;
    }
    prepare();
    const float upstream = upstream_of<float>(job, slice.domain, 0);
    const float plain_slope = kPlain ? pointwise_slope(slopes, upstream) : 0.0f;
    for (uint32_t base = 0; base < slice.pixels; base += slice.shape.pixels) {
      float e[kSlots];
      load<true>(base, e);
      float weight = w;
      if (!kPlain && job.problem.has_upstream) {
        const View& v = job.problem.upstream;
        weight = masked_product(w, load_number<float>(v, offset_of(v, slice.domain, 0, slice.position(base))));
      }
      // The slope of the class at the peak is subtracted from all slopes: softmax_pull_back says why. If the label is
      // not at the peak, a team without the peak's class subtracts its first slope instead; the difference is added
      // once all teams have shared their sums.
      const bool wrong = label_power < at_peak;
      float s = 0.0f, reference = 0.0f, others = 0.0f;
      if (regions) {
        s = at_positive[y];
        reference = wrong ? at_negative[0] : s;
        if (wrong && slice.team == peak_team)
          slice.each(at_negative, [&](int j, float a) {
            if (e[j] == at_peak) reference = a;
          });
        slice.each(at_negative, [&](int j, float a) { others += e[j] * (a - reference); });
      }
      if (teams > 1) {
        share(exchange().rest, rest);
        share(exchange().others, others);
        if (slice.team == peak_team) exchange().reference[slice.lane] = reference;
        sync_teams();
      }
      finish();
      const float slope = kPlain ? plain_slope : pointwise_slope(slopes, upstream);
      if (!regions) {
        write_pointwise(weight, slope, e);
      } else {
        if (teams > 1) {
          reference = exchange().reference[slice.lane];
          others = sum_over_teams(exchange().others);
          if (wrong)
            for_teams(exchange().rest, [&](int t, float v) {
              if (t < teams && t != peak_team) others += v * (columns()[t * kSlots] - reference);
            });
        }
        const RegionGradient<float> dz(weight, x, inverse, slope, s, reference, others);
        const int slot = y - slice.first;
        slice.each(at_negative, [&](int j, float a) { e[j] = j == slot ? dz.at_label : dz.of(e[j], a); });
        if (weight == 0.0f) slice.each([&](int j) { e[j] = 0.0f; });
      }
      slice.store(base, e);
    }
  }
};

}  // namespace
}  // namespace segfuse
