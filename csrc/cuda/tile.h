// The engine for softmax, class indices and sums of products, for any number of classes that fits, any pointwise terms
// and any strides. The classes of a pixel stand in registers, of one thread or of a team of threads that share them
// (slice.h). Plain jobs (is_plain in tile.cu) have kernels of their own, kPlain: a third fewer instructions.
#pragma once

#include "../pixel.h"
#include "points.h"
#include "slice.h"

namespace segfuse {
namespace {

template <class Element, int kSlots, bool kStaged, bool kPlain>
struct Tile {
  static constexpr bool kAlone = kSlots == kFewSlots;  // a thread has all classes of its pixel
  // No more than four: compute capability 7.5 has 1,024 threads per processor.
  static constexpr int kBlock = kThreads, kBlocks = !kAlone ? 2 : kPlain ? 4 : kStaged ? 2 : 3;
  static constexpr int kBothBlocks = kBlocks;  // without regions they have registers to spare
  static constexpr int kSharedBytes = 0;       // depends on the job: tile_bytes

  const Job& job;
  Slice<Element, kSlots, kStaged, kPlain, kAlone> slice;
  const int teams;                // that share a pixel
  const bool regions, has_label;  // the last team also sees to the label
  float w = 0.0f, rest = 0.0f, own_power = 0.0f, at_peak = 0.0f, log2_own = 0.0f, inverse = 0.0f;
  int y = 0, peak_team = 0;
  Pixel<float> own{};

  __device__ Tile(const Job& j, int64_t chunk, bool statistics)
      : job(j),
        slice(j, chunk_of(j.cut, chunk),
              int(stage_at(j.layout, {j.tile.pixels, int(j.problem.classes)}, kSlots, statistics))),
        teams(kAlone ? 1 : slice.shape.teams()),
        regions(j.plan.region_count > 0),
        has_label(slice.team == teams - 1) {}

  __device__ static Told& told() { return *reinterpret_cast<Told*>(shared_memory()); }
  __device__ static float* table() { return reinterpret_cast<float*>(shared_memory() + sizeof(Told)); }
  __device__ int row() const { return slice.lane * (teams < 4 ? 4 : teams); }
  __device__ void tell(float (&values)[2 * kThreads], float mine) const { values[row() + slice.team] = mine; }
  // f(team, what it told) for every team of the pixel.
  template <class F>
  __device__ void hear(const float (&values)[2 * kThreads], const F& f) const {
    const float4* told_of = reinterpret_cast<const float4*>(values + row());
#pragma unroll 2
    for (int t = 0; t < teams; t += 4) {
      const float4 v = told_of[t / 4];
      f(t, v.x);
      f(t + 1, v.y);
      f(t + 2, v.z);
      f(t + 3, v.w);
    }
  }
  __device__ float sum_over_teams(const float (&values)[2 * kThreads]) const {
    float sum = 0.0f;
    hear(values, [&](int, float v) { sum += v; });
    return sum;
  }
  // A barrier for the threads that share a pixel, and for those of the pixels of their warps: others go on.
  __device__ void sync_teams() const {
    if (kStaged || slice.shape.pixels < kWarp)
      __syncthreads();
    else
      sync_part(1 + slice.lane / kWarp, teams * kWarp);
  }
  // The values that two teams have too many. Ends with a barrier.
  __device__ void prepare() const {
    for (int i = threadIdx.x; teams == 2 && i < 2 * kThreads; i += kThreads) {
      told().peak[i] = -INFINITY;
      told().rest[i] = told().others[i] = 0.0f;
    }
    __syncthreads();
  }

  // The tile at `base`: weight, label, powers of the logits (see LabelMap::At), 0 where a slot holds the label's class
  // or none; `rest`: their sum over this thread's slots.
  template <bool kFindsPeak>
  __device__ void load(uint32_t base, float (&e)[kSlots]) {
    uint64_t label = 0;  // of plain jobs, asked for ahead of the logits and used behind them
    if constexpr (kPlain) {
      if (has_label) label = slice.label(base);
    } else if (has_label) {
      w = 0.0f;
      y = 0;
      if (slice.holds(base)) {
        w = load_weight<float>(job, slice.unit, 0, slice.position(base));
        y = load_class<float>(job, slice.unit, slice.position(base), w);
      }
    }
    slice.load(base, e);
    if constexpr (kPlain) {  // as in load_class; threads without the label will be told
      const bool is_class = label < job.tile.label_limit, is_ignored = job.can_ignore && label == job.tile.ignored;
      y = is_class ? int(label) : 0;
      w = is_ignored || !slice.holds(base) ? 0.0f : is_class ? 1.0f : NAN;
    }
    float peak = e[0];
    slice.each([&](int j) { peak = max(peak, e[j]); });
    if (teams > 1) {
      tell(told().peak, peak);
      if (has_label) {
        told().label[slice.lane] = float(y);
        told().weight[slice.lane] = w;
      }
      sync_teams();
      y = int(told().label[slice.lane]);
      w = told().weight[slice.lane];
      peak = -INFINITY;
      peak_team = 0;
      hear(told().peak, [&](int t, float other) {
        if (kFindsPeak && other > peak) peak_team = t;
        peak = max(peak, other);
      });
    }
    float own_logit = slice.logit(y);
    if constexpr (!std::is_same_v<Element, Half>) {  // which has none of these
      if (abs(peak) > Base2<float>::largest) {
        slice.each([&](int j) { e[j] -= peak; });
        own_logit -= peak;
        peak = 0.0f;
      }
    }
    const float shift = -(peak * Base2<float>::log2_e);
    log2_own = fma(own_logit, Base2<float>::log2_e, shift);
    const unsigned slot = unsigned(y - slice.first);
    unsigned empty = kSlots < 32 || slice.count < 32 ? ~0u << slice.count : 0u;
    if (kAlone || slot < unsigned(slice.count)) empty |= 1u << slot;
    rest = 0.0f;
    slice.each([&](int j) {
      const float power = fast_exp2(fma(e[j], Base2<float>::log2_e, shift));
      e[j] = empty >> j & 1 ? 0.0f : power;
      rest += e[j];
    });
    at_peak = fast_exp2(fma(peak, Base2<float>::log2_e, shift));
    own_power = fast_exp2(log2_own);
  }

  // What the loss reads of the pixel, once every team has told its `rest`.
  __device__ void finish() {
    own = Softmax::of_label<float, Number<Element>::kNarrow>(own_power, teams > 1 ? sum_over_teams(told().rest) : rest,
                                                             log2_own, inverse);
  }

  // f(loss, k, the factor of the label's class) for each pointwise term. Cross-entropy without factors, the most usual
  // of all, need not look for its kind and factor: 70 instructions.
  template <class F>
  __device__ void for_points(const F& f) const {
    const PointTerm& term = job.plan.points[0];
    if (kPlain || (job.plan.point_count == 1 && term.kind == PointKind::cross_entropy && term.table < 0))
      CrossEntropyOrNone::for_each<float>(job, [&](const auto& loss, int k) { f(loss, k, 1.0f); });
    else
      AnyPoints::for_each<float>(job, [&](const auto& loss, int k) { f(loss, k, class_scale<float>(job, k, y)); });
  }

  __device__ static void statistics(const Job& job) { Tile(job, blockIdx.x, true).template add_chunk<false>(); }
  __device__ static void both(const Job& job) { Tile(job, blockIdx.x, true).template add_chunk<true>(); }

  // kWrites: and, of one pointwise loss, the gradient with the factor of the mean that is foreseen.
  template <bool kWrites>
  __device__ void add_chunk() {
    float weights = 0.0f, losses = 0.0f;  // of plain jobs
    const int pixels = slice.shape.pixels, classes = slice.shape.classes, group = int(job.layout.group_sums());
    const int step = job.layout.region_sums, rows = group + (regions ? 2 * classes : 0);
    for (int i = threadIdx.x; i < rows * pixels; i += kThreads) table()[i] = 0.0f;
    if constexpr (kWrites) foresee_slopes(job, slice.unit, told().slopes);
    prepare();
    float fp[kSlots] = {};
    for (uint32_t base = 0, adds = 1; base < slice.pixels; base += pixels, ++adds) {
      float e[kSlots];  // of this turn alone: what no slot holds is not kept
      load<false>(base, e);
      if (teams > 1) {
        tell(told().rest, rest);
        sync_teams();
      }
      finish();
      if (w != 0.0f) {  // else not read into anything
        const float scaled = w * inverse;
        if (!kWrites && regions) slice.each([&](int j) { fp[j] += scaled * e[j]; });
        if constexpr (kPlain) {
          weights += w;
          for_points([&](const auto& loss, int, float) { losses += w * loss(own, 1.0f).positive; });
        }
        if (has_label && !(kWrites && kPlain)) add_label(group);  // then without regions, the rest is added above
      }
      if constexpr (kWrites) {
        write_points(w, slope_of_points(told().slopes, 1.0f), e);
        slice.store(base, e);
      }
      if (adds % kAddsPerFlush && base + pixels < slice.pixels) continue;
      const bool first = adds <= kAddsPerFlush;
      if (kPlain && has_label) {
        float* mine = table() + slice.lane;
        mine[0] = weights;
        if (group > 1) {
          mine[pixels] = losses;
          mine[2 * pixels] = weights;
        }
        weights = losses = 0.0f;
      }
      __syncthreads();
      add_rows(0, rows, first, [&](int r) {
        return r < group             ? r
               : r < group + classes ? group + (r - group) * step
                                     : group + (r - group - classes) * step + 2;
      });
      __syncthreads();
      if (kWrites || !regions) continue;
      slice.each([&](int j) {
        if (j < slice.count) table()[(group + slice.first + j) * pixels + slice.lane] = fp[j];
        fp[j] = 0.0f;
      });
      __syncthreads();
      add_rows(group, group + classes, first, [&](int r) { return group + (r - group) * step + 1; });
      __syncthreads();
    }
    // A label map needs no sum of negatives: head.h.
    for (int c = threadIdx.x; step > kRegionSums && c < classes; c += kThreads)
      sums_of_chunk(job, blockIdx.x)[group + c * step + kRegionSums] = 0;
  }

  __device__ void add_label(int group) {
    const int pixels = slice.shape.pixels;
    float* mine = table() + slice.lane;
    if constexpr (!kPlain) {
      mine[0] += w;
      for_points([&](const auto& loss, int k, float factor) {
        mine[(1 + 2 * k) * pixels] += w * factor * loss(own, 1.0f).positive;
        mine[(2 + 2 * k) * pixels] += job.plan.points[k].weighs_the_mean ? w * factor : w;
      });
    }
    if (!regions) return;
    mine += (group + y) * pixels;
    mine[0] += w * own.p;
    mine[slice.shape.classes * pixels] += w * own.q;
  }

  // The chunk's sum index(r) += row r of the table, added over the lanes, for begin <= r < end; the rows become 0.
  template <class F>
  __device__ void add_rows(int begin, int end, bool first, const F& index) {
    const ChunkSums out = sums_of_chunk(job, blockIdx.x);
    const int of_warp = int(threadIdx.x) % kWarp, pixels = slice.shape.pixels;
    for (int r = begin + int(threadIdx.x) / kWarp; r < end; r += kWarps) {
      float sum = 0.0f;
#pragma unroll 1
      for (int i = of_warp; i < pixels; i += kWarp) {
        sum += table()[r * pixels + i];
        table()[r * pixels + i] = 0.0f;
      }
      sum = warp_sum(sum);
      if (of_warp == 0) out[index(r)] = first ? double(sum) : out[index(r)] + double(sum);
    }
  }

  // dL/dlog p of the label's class, of the pointwise terms.
  __device__ float slope_of_points(const float* slopes, float upstream) const {
    const Pixel<Dual<float>> dual = Softmax::seed(own);
    float d = 0.0f;
    for_points([&](const auto& loss, int k, float factor) {
      d += slopes[2 * k] * upstream * factor * loss(dual, 1.0f).positive.d[0];
    });
    return d;
  }

  // The gradient takes the place of the powers; this without regions. Weight 0: 0, also where slopes are infinite.
  __device__ void write_points(float weight, float d, float (&e)[kSlots]) {
    const float at_label = weight * d * own.q, scaled = -(weight * inverse * d);
    const int slot = y - slice.first;
    slice.each([&](int j) { e[j] = j == slot ? at_label : e[j] * scaled; });
    if (weight == 0.0f) slice.each([&](int j) { e[j] = 0.0f; });
  }

  __device__ static void gradient(const Job& job) {
    // The chunks that the statistics read last are those that the second cache still holds.
    Tile(job, int64_t(gridDim.x) - 1 - blockIdx.x, false).write_chunk();
  }

  __device__ void write_chunk() {
    const float* slopes = static_cast<const float*>(job.slopes) + slice.unit * job.layout.unit_slopes();
    float *absent = table(), *const present = absent + teams * kSlots;
    if (regions) {
      for (int i = threadIdx.x; i < teams * kSlots; i += kThreads) {
        const int t = i / kSlots, c = slice.shape.first_class(t) + i % kSlots;
        absent[i] = 0.0f;
        if (c >= slice.shape.first_class(t + 1)) continue;
        const float* r = slopes + 2 * job.plan.point_count + kRegionSlopes * c;
        const float upstream = upstream_of<float>(job, slice.unit, c);
        present[c] = r[0] * upstream;
        absent[i] = r[1] * upstream;
      }
      absent += slice.team * kSlots;
    }
    prepare();
    const float of_point = upstream_of<float>(job, slice.unit, 0);
    const float plain_slope = kPlain ? slope_of_points(slopes, of_point) : 0.0f;
    for (uint32_t base = 0; base < slice.pixels; base += slice.shape.pixels) {
      float e[kSlots];
      load<true>(base, e);
      float weight = w;
      if (!kPlain && job.problem.has_upstream) {
        const View& v = job.problem.upstream;
        weight = masked_product(w, load_number<float>(v, offset_of(v, slice.unit, 0, slice.position(base))));
      }
      // All slopes are taken less one of them, the slope of the class at the peak: softmax_pull_back says why. If the
      // label is not at the peak, a team without that class takes its first slope off instead; the difference is added
      // once all teams have told their sums.
      const bool wrong = own_power < at_peak;
      float s = 0.0f, reference = 0.0f, others = 0.0f;
      if (regions) {
        s = present[y];
        reference = wrong ? absent[0] : s;
        if (wrong && slice.team == peak_team)
          slice.each(absent, [&](int j, float a) {
            if (e[j] == at_peak) reference = a;
          });
        slice.each(absent, [&](int j, float a) { others += e[j] * (a - reference); });
      }
      if (teams > 1) {
        tell(told().rest, rest);
        tell(told().others, others);
        if (slice.team == peak_team) told().reference[slice.lane] = reference;
        sync_teams();
      }
      finish();
      const float d = kPlain ? plain_slope : slope_of_points(slopes, of_point);
      if (!regions) {
        write_points(weight, d, e);
      } else {
        if (teams > 1) {
          reference = told().reference[slice.lane];
          others = sum_over_teams(told().others);
          if (wrong)
            hear(told().rest, [&](int t, float v) {
              if (t < teams && t != peak_team) others += v * (table()[t * kSlots] - reference);
            });
        }
        const float mean = own.p * (s - reference) + others * inverse, scaled = weight * inverse;
        const float at_label = weight * softmax_pull_back(own.p, own.q, s - reference, mean, d, 0.0f);
        const int slot = y - slice.first;
        slice.each(absent, [&](int j, float a) {
          e[j] = j == slot ? at_label : softmax_pull_back(e[j] * scaled, a - reference, mean + d);
        });
        if (weight == 0.0f) slice.each([&](int j) { e[j] = 0.0f; });
      }
      slice.store(base, e);
    }
  }
};

}  // namespace
}  // namespace segfuse
