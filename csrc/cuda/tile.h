// The engine for softmax, class indices and sums of products, for any number of classes that fits: some pixels with all
// their classes in shared memory. Planes and channels_last alike are read in the order in which they lie.
#pragma once

#include "../pixel.h"
#include "points.h"
#include "source.h"

namespace segfuse {
namespace {

// Threads are lanes (pixels of the tile) times teams (every `teams`th class of a pixel). Arrays of a value per class
// and pixel have rows one longer than the tile, so that neither a walk along pixels nor one along classes meets one
// bank.
struct TileShape {
  int pixels, classes;
  HD int teams() const { return kThreads / pixels; }
  HD int row() const { return pixels + 1; }
  HD int64_t plane() const { return int64_t(classes) * row(); }
  // Exponentials, in the statistics of region losses three sums, in the gradient the slopes of the classes; and what
  // the teams of a pixel tell each other.
  HD int64_t shared_bytes(bool statistics, bool regions) const {
    const int64_t floats = plane() * (statistics && regions ? 4 : 1) + (statistics ? 0 : 2 * classes) + 4 * kThreads;
    const int64_t sums = 1 + 2 * kMaxPoints;
    return int64_t(sizeof(double)) * sums * (1 + kWarps) + int64_t(sizeof(float)) * floats;
  }
};

template <class Element>
struct Tile {
  static constexpr int kBlock = kThreads, kBlocks = 2, kSharedBytes = 0;  // depends on the job: TileShape

  const Job& job;
  const TileShape shape;
  const Span span;
  const int lane, team, teams, row;
  float *e, *sums, *of_label, *of_weight, *told[2];
  double *totals, *staging;
  float w = 0.0f, inverse = 0.0f;
  int y = 0, peak_class = 0;  // the label, and a class that reaches the peak: the label if it does
  Pixel<float> own{};

  __device__ Tile(const Job& j, int64_t chunk)
      : job(j),
        shape{j.tile_pixels, int(j.problem.classes)},
        span(chunk_of(j.cut, chunk)),
        lane(int(threadIdx.x) % shape.pixels),
        team(int(threadIdx.x) / shape.pixels),
        teams(shape.teams()),
        row(shape.row()) {
    constexpr int kSums = 1 + 2 * kMaxPoints;
    totals = reinterpret_cast<double*>(shared_memory());
    staging = totals + kSums;
    told[0] = reinterpret_cast<float*>(staging + kSums * kWarps);
    told[1] = told[0] + kThreads;
    of_label = told[1] + kThreads;
    of_weight = of_label + kThreads;
    e = of_weight + kThreads;
    sums = e + shape.plane();
  }

  // f(class, lane, offset in the tensor) for every element of the tile at `base`, neighbours in memory by neighbours.
  template <class F>
  __device__ void visit(const View& v, int64_t base, const F& f) const {
    const int64_t here = span.count - base < shape.pixels ? span.count - base : shape.pixels;
    if (v.dims == 1 && v.class_stride == 1) {
      const int64_t start = span.unit * v.sample_stride + (span.first + base) * v.stride[0];
      const int pixels = kThreads / shape.classes, classes = kThreads % shape.classes;
      int i = int(threadIdx.x) / shape.classes, c = int(threadIdx.x) % shape.classes;
      while (i < here) {
        f(c, i, start + i * v.stride[0] + c);
        i += pixels;
        c += classes;
        if (c >= shape.classes) {
          c -= shape.classes;
          ++i;
        }
      }
    } else if (lane < here) {
      const int64_t start = offset_of(v, span.unit, 0, span.first + base + lane);
      for (int c = team; c < shape.classes; c += teams) f(c, lane, start + c * v.class_stride);
    }
  }

  // The tile's logits, labels and weights; then exponentials (see LabelMap::At), and what a pixel needs of its label.
  __device__ void load(int64_t base) {
    const View& v = job.problem.logits;
    const Element* logits = static_cast<const Element*>(v.data);
    visit(v, base, [&](int c, int i, int64_t at) { e[c * row + i] = Number<Element>::widened(logits[at]); });
    if (team == 0) {
      const int64_t i = base + lane;
      float weight = 0.0f;
      int label = 0;
      if (i < span.count) {
        weight = load_weight<float>(job, span.unit, 0, span.first + i);
        label = load_class<float>(job, span.unit, span.first + i, weight);
      }
      of_weight[lane] = weight;
      of_label[lane] = float(label);
    }
    __syncthreads();
    w = of_weight[lane];
    y = int(of_label[lane]);
    normalise();
  }

  __device__ void normalise() {
    const int of_team = team * shape.pixels + lane;
    float peak = 0.0f;
    for (int c = team; c < shape.classes; c += teams) {
      float& z = e[c * row + lane];
      if (w == 0.0f) z = 0.0f;
      peak = c == team ? z : max(peak, z);
    }
    told[0][of_team] = peak;
    __syncthreads();
    const int used = teams < shape.classes ? teams : shape.classes;
    peak = told[0][lane];
    for (int t = 1; t < used; ++t) peak = max(peak, told[0][t * shape.pixels + lane]);
    __syncthreads();
    const bool huge = abs(peak) > Base2<float>::largest;
    const float base = huge ? peak : 0.0f, shift = -((peak - base) * Base2<float>::log2_e);
    float rest = 0.0f, at_peak = -1.0f;  // and the team's class at the peak
    for (int c = team; c < shape.classes; c += teams) {
      float& z = e[c * row + lane];
      const float d = fma(z - base, Base2<float>::log2_e, shift);
      if (z == peak) at_peak = float(c);
      if (c == y) of_label[lane] = d;
      z = c == y ? 0.0f : fast_exp2(d);
      rest += z;
    }
    told[0][of_team] = rest;
    told[1][of_team] = at_peak;
    __syncthreads();
    rest = 0.0f;
    peak_class = y;
    for (int t = 0; t < used; ++t) {
      rest += told[0][t * shape.pixels + lane];
      if (told[1][t * shape.pixels + lane] >= 0.0f) peak_class = int(told[1][t * shape.pixels + lane]);
    }
    const float log2_own = of_label[lane], of_peak = fast_exp2(fma(peak - base, Base2<float>::log2_e, shift)),
                e_own = fast_exp2(log2_own);
    if (e_own == of_peak) peak_class = y;
    own = Softmax::of_label<float>(e_own, rest, log2_own, inverse);
  }

  __device__ float scale(int k) const {
    const int table = job.plan.points[k].table;
    return table < 0 ? 1.0f : float(job.constants.tables[table * job.problem.classes + y]);
  }

  __device__ static void statistics(const Job& job) {
    Tile tile(job, blockIdx.x);
    tile.add_chunk();
  }

  __device__ void add_chunk() {
    constexpr int kSums = 1 + 2 * kMaxPoints;
    const bool regions = job.plan.region_count > 0;
    const int group_count = int(job.layout.group_sums());
    const ChunkSums out = sums_of_chunk(job, blockIdx.x);
    float *fp = sums, *tp = fp + shape.plane(), *fn = tp + shape.plane();
    if (int(threadIdx.x) < kSums) totals[threadIdx.x] = 0;
    if (regions)
      for (int c = team; c < shape.classes; c += teams)
        for (float* sum : {fp, tp, fn}) sum[c * row + lane] = 0.0f;
    float group[kSums] = {};
    int adds = 0;
    bool first = true;
    const auto flush = [&] {
      add_over_block(group, group_count, totals, staging);
      if (regions) add_classes(out.from(group_count), first);
      for (float& v : group) v = 0.0f;
      first = false;
      adds = 0;
    };
    for (int64_t base = 0; base < span.count; base += shape.pixels) {
      load(base);
      const float scaled = w * inverse;
      for (int c = team; regions && c < shape.classes; c += teams) fp[c * row + lane] += scaled * e[c * row + lane];
      if (y % teams == team) {  // the label's class is this team's
        group[0] += w;
        AnyPoints::for_each<float>(job, [&](const auto& loss, int k) {
          const float factor = scale(k);
          add_at<1, 2 * kMaxPoints>(group, 2 * k, w * factor * loss(own, 1.0f).positive);
          add_at<1, 2 * kMaxPoints>(group, 2 * k + 1, job.plan.points[k].weighs_the_mean ? w * factor : w);
        });
        if (regions) {
          tp[y * row + lane] += w * own.p;
          fn[y * row + lane] += w * own.q;
        }
      }
      __syncthreads();
      if (++adds == kAddsPerFlush) flush();
    }
    if (adds > 0) flush();
    if (int(threadIdx.x) < group_count) out[threadIdx.x] = totals[threadIdx.x];
  }

  // The row of each class in `out` += I, FP, FN over the pixels; they become 0. A barrier stands before, and in load()
  // or at the end of the kernel after.
  __device__ void add_classes(const ChunkSums& out, bool first) {
    const int of_warp = int(threadIdx.x) % kWarp;
    for (int r = int(threadIdx.x) / kWarp; r < 3 * shape.classes; r += kWarps) {
      const int c = r / 3, which = r % 3;
      float* values = sums + (which == 0 ? 1 : which == 1 ? 0 : 2) * shape.plane() + c * row;
      double sum = 0;
      for (int i = of_warp; i < shape.pixels; i += kWarp) {
        sum += double(values[i]);
        values[i] = 0.0f;
      }
      sum = warp_sum(sum);
      if (of_warp != 0) continue;
      const ChunkSums own = out.from(c * job.layout.region_sums);
      own[which] = first ? sum : own[which] + sum;
      if (job.layout.region_sums > kRegionSums) own[kRegionSums] = 0;  // a label map needs no sum of negatives: head.h
    }
  }

  __device__ static void gradient(const Job& job) {
    Tile tile(job, int64_t(gridDim.x) - 1 - blockIdx.x);
    tile.write_chunk();
  }

  __device__ void write_chunk() {
    const View& output = job.problem.output;
    Element* gradient_of = static_cast<Element*>(output.data);
    const float* slopes = static_cast<const float*>(job.slopes) + span.unit * job.layout.unit_slopes();
    const bool regions = job.plan.region_count > 0;
    float *present = sums, *absent = present + shape.classes;
    for (int c = threadIdx.x; c < shape.classes; c += kThreads) {
      const float* r = slopes + 2 * job.plan.point_count + kRegionSlopes * c;
      const float upstream = regions ? upstream_of<float>(job, span.unit, c) : 0.0f;
      present[c] = regions ? r[0] * upstream : 0.0f;
      absent[c] = regions ? r[1] * upstream : 0.0f;
    }
    const float of_point = upstream_of<float>(job, span.unit, 0);
    for (int64_t base = 0; base < span.count; base += shape.pixels) {
      load(base);
      float weight = w;
      if (job.problem.has_upstream && base + lane < span.count) {
        const View& v = job.problem.upstream;
        weight = masked_product(w, load_number<float>(v, offset_of(v, span.unit, 0, span.first + base + lane)));
      }
      const Pixel<Dual<float>> dual = Softmax::seed(own);
      float d = 0.0f;
      AnyPoints::for_each<float>(job, [&](const auto& loss, int k) {
        d += slopes[2 * k] * of_point * scale(k) * loss(dual, 1.0f).positive.d[0];
      });
      const float s = present[y], reference = peak_class == y ? s : absent[peak_class];
      float others = 0.0f;
      for (int c = team; regions && c < shape.classes; c += teams)
        others += e[c * row + lane] * (absent[c] - reference);
      __syncthreads();
      told[0][team * shape.pixels + lane] = others;
      __syncthreads();
      others = 0.0f;
      for (int t = 0; t < teams; ++t) others += told[0][t * shape.pixels + lane];
      const float mean = own.p * (s - reference) + others * inverse;
      const float at_label = weight * softmax_pull_back(own.p, own.q, s - reference, mean, d, 0.0f);
      const float scaled = weight * inverse;
      for (int c = team; c < shape.classes; c += teams) {
        float& g = e[c * row + lane];
        g = c == y ? at_label : softmax_pull_back(g * scaled, absent[c] - reference, mean + d);
        if (weight == 0.0f) g = 0.0f;  // also where slopes are infinite
      }
      __syncthreads();
      visit(output, base,
            [&](int c, int i, int64_t at) { gradient_of[at] = Number<Element>::narrowed(e[c * row + i]); });
      __syncthreads();
    }
  }
};

}  // namespace
}  // namespace segfuse
