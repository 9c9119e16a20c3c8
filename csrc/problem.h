// A call is a plan (which loss), a problem (which tensors) and constants. They are plain data without a pointer to the
// host. Nothing else goes from the binding to the engines and to a device.
#pragma once

#include <cmath>
#include <cstdint>

#include "dtype.h"
#include "losses.h"

namespace segfuse {

// ---------------------------------------------------------------------------------------------------------------- plan

enum class LinkKind : int { sigmoid, softmax, identity };

// The names that python/segfuse/_core/spec.py uses. Each list makes an enumeration and its names, in one order.
#define SEGFUSE_ENUMERATOR(name, ...) name,
#define SEGFUSE_ENUM(Enum, LIST) enum class Enum : int { LIST(SEGFUSE_ENUMERATOR) }

SEGFUSE_ENUM(PointwiseKind, SEGFUSE_POINTWISE);
SEGFUSE_ENUM(RegionKind, SEGFUSE_REGION);
SEGFUSE_ENUM(ShapeKind, SEGFUSE_SHAPE);

#define SEGFUSE_MODES(X) X(binary) X(multilabel) X(multiclass)
SEGFUSE_ENUM(Mode, SEGFUSE_MODES);

#define SEGFUSE_REDUCTIONS(X) X(mean) X(sum) X(none) X(sample)
SEGFUSE_ENUM(Reduction, SEGFUSE_REDUCTIONS);

// How a class counts whose row has no labelled pixel: by its formula, as 0, or not at all.
#define SEGFUSE_ABSENTS(X) X(score) X(zero) X(skip)
SEGFUSE_ENUM(Absent, SEGFUSE_ABSENTS);

// Which sums a region loss scores: of products, of squares, of min(p, t) ("soft label"), or of squared errors in place
// of the missed ones.
#define SEGFUSE_STATISTICS(X) X(product) X(squared) X(soft_label) X(squared_error)
SEGFUSE_ENUM(Statistics, SEGFUSE_STATISTICS);

// The factor of a class in the sums of a pooled row ("generalized"): 1, 1/T or 1/T², T being its labelled weight.
#define SEGFUSE_CLASS_FACTORS(X) X(none) X(simple) X(square)
SEGFUSE_ENUM(ClassFactor, SEGFUSE_CLASS_FACTORS);

// How the two parts of a pointwise loss are balanced. class_weight is applied inside the sum, one factor per class.
#define SEGFUSE_BALANCES(X) X(none) X(positive) X(negative) X(alpha) X(balanced) X(class_weight)
SEGFUSE_ENUM(Balance, SEGFUSE_BALANCES);

// Where the gradient is computed: in a second pass over the inputs, or in the first. The first pass can do it for one
// pointwise loss alone, where all pixels have the same factor. Then the backward has nothing to do, unless the upstream
// gradient is not 1 or some pixels did not count: then it multiplies. (float16 would underflow before that.)
#define SEGFUSE_SCHEMES(X) X(automatic) X(two_pass) X(gradient_in_forward)
SEGFUSE_ENUM(Scheme, SEGFUSE_SCHEMES);

#undef SEGFUSE_ENUM
#undef SEGFUSE_ENUMERATOR

// Whether a region loss reads the weight of what is not labelled, or TN.
HD bool reads_negatives(RegionKind kind) {
  switch (kind) {
#define SEGFUSE_CASE(name, type) \
  case RegionKind::name:         \
    return type::kNegatives;
    SEGFUSE_REGION(SEGFUSE_CASE)
#undef SEGFUSE_CASE
  }
  return false;
}

struct PointwiseTerm {
  PointwiseKind kind;
  double parameter[kParameters];
  float narrow[kParameters];  // the same; on a GPU, converting in every pixel would cost more than the loss
  Balance balance;
  double balance_value;        // if there are no class values
  int class_values;            // row of Constants::class_values, or -1
  bool weight_in_denominator;  // class weights of hard labels count in the denominator of the mean
  bool has_smoothing;          // the label is spread over the classes
  bool every_class;  // multiclass: each class of a pixel is an element of its own, a function of its p and its label

  HD const double* parameters(double) const { return parameter; }
  HD const float* parameters(float) const { return narrow; }
};

struct RegionTerm {
  RegionKind kind;
  ShapeKind shape;
  Statistics statistics;
  Absent absent;
  bool pool_batch, pool_classes;
  bool generalized;  // classes are weighted inside the ratio, by `factor` times class weight
  ClassFactor factor;
  double smooth_numerator, smooth_denominator, eps, alpha, beta, shape_parameter;
  bool adaptive;  // omega log(1 + L / epsilon) below `threshold`
  double omega, threshold, epsilon;
  int class_values;              // class weights: a row as above, or -1
  int first_class, class_count;  // scored classes, a part of Constants::classes, in the order of the output; 0: all
};

struct Term {
  bool is_region;
  int index;  // into pointwise or regions
  double coefficient;
};

constexpr int kMaxPointwise = 4, kMaxRegions = 8, kMaxTerms = kMaxPointwise + kMaxRegions;

struct Plan {
  LinkKind link;
  bool one_label;   // each pixel has one label: the negatives of a class are the positives of the others
  bool multiclass;  // the classes of a pixel are read together; else each (sample, channel) is a row of its own
  Reduction reduction;
  bool has_ignore;
  int64_t ignore_index;  // integer targets
  double ignore_value;   // float targets
  float ignored_label;   // ignore_value as float32; NaN, which matches nothing, if there is none
  int term_count, pointwise_count, region_count;
  Term terms[kMaxTerms];
  PointwiseTerm pointwise[kMaxPointwise];
  RegionTerm regions[kMaxRegions];

  HD bool sums_labels() const {
    for (int k = 0; k < pointwise_count; ++k)
      if (pointwise[k].balance == Balance::balanced) return true;
    return false;
  }
  HD bool sums_extra() const {
    for (int k = 0; k < region_count; ++k)
      if (regions[k].statistics != Statistics::product) return true;
    return false;
  }
  HD bool pools_batch() const {
    for (int k = 0; k < region_count; ++k)
      if (regions[k].pool_batch) return true;
    return false;
  }
  HD bool sums_negatives() const {
    for (int k = 0; k < region_count; ++k)
      if (reads_negatives(regions[k].kind)) return true;
    return false;
  }
  // Whether a shape magnifies a small TN. Then TN is summed for a label map too: as a difference of other sums it would
  // have lost its digits.
  HD bool magnifies_negatives() const {
    for (int k = 0; k < region_count; ++k)
      if (reads_negatives(regions[k].kind) && regions[k].shape == ShapeKind::log) return true;
    return false;
  }
  // Whether the engines for label maps can run the plan: softmax, only sums that they make, labels without smoothing.
  HD bool fits_label_map(bool label_map) const {
    for (int k = 0; k < pointwise_count; ++k)
      if (pointwise[k].has_smoothing || pointwise[k].every_class) return false;
    return label_map && link == LinkKind::softmax && !sums_extra() && !magnifies_negatives();
  }
  // Whether the loss is a pointwise loss per element. Then a pass of its own writes the values.
  HD bool unreduced() const { return reduction == Reduction::none && region_count == 0; }
  // Whether the elements of a multiclass loss are the classes of each pixel, not the pixels.
  HD bool unreduced_classes() const { return unreduced() && multiclass && pointwise[0].every_class; }
};

// What a call passes beside its tensors: class values (rows of `classes` doubles; a term names its row by number), one
// coefficient per term (null: the plan's), and the lists of scored classes.
struct Constants {
  const double *class_values, *coefficients;
  const int64_t* classes;
};

// ------------------------------------------------------------------------------------------------------------- problem

constexpr int kMaxDims = 16;

// A tensor seen as (sample, class, position). Positions go through the spatial dimensions in row-major order, for any
// strides. Dimensions that are contiguous with one another are merged.
struct View {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
  int64_t sample_stride = 0, class_stride = 0;
  int dims = 0;
  int64_t size[kMaxDims], stride[kMaxDims];
};

struct Sizes {
  int64_t samples, classes, pixels;

  HD int64_t domains(const Plan& plan) const { return plan.multiclass ? samples : samples * classes; }
};

struct Problem : Sizes {
  View logits, target, weight, upstream, output;
  bool has_weight, has_upstream;  // upstream: the gradient of an unreduced pointwise loss
  bool label_map;                 // multiclass: target holds class indices
  bool hard_target;               // target is integer or bool
  bool wide;                      // float64 logits: everything in double

  bool has_labels() const { return hard_target || label_map; }  // else target holds probabilities
};

// The plan, with the fields filled in that depend on the problem.
inline Plan resolve(Plan plan, const Problem& problem) {
  for (int k = 0; k < plan.pointwise_count; ++k) {
    PointwiseTerm& pointwise = plan.pointwise[k];
    if (pointwise.has_smoothing) pointwise.parameter[1] = pointwise.parameter[0] / double(problem.classes);
    if (!problem.label_map) pointwise.weight_in_denominator = false;  // as in torch: class probabilities are no labels
    for (int i = 0; i < kParameters; ++i) pointwise.narrow[i] = float(pointwise.parameter[i]);
  }
  plan.one_label = problem.label_map;
  const float label = float(plan.ignore_value);
  plan.ignored_label = plan.has_ignore && double(label) == plan.ignore_value ? label : NAN;
  return plan;
}

// A call of the kernels, on one device.
struct Call {
  const Plan& plan;
  const Problem& problem;
  const Constants& constants;
  Scheme scheme = Scheme::automatic;
};

// Memory that the steps read and write. Each step uses its own part of it.
struct Buffers {
  void* loss;     // float32, or float64 if problem.wide; an unreduced loss lies in problem.output
  double* terms;  // one value per term and loss element
  void* slopes;   // Layout::slopes(), in the type of the loss
  // One number behind the slopes, of the same type, by which `forward` tells `backward` about a gradient that it has
  // written. On a CPU it is the factor that the gradient still lacks; on a GPU it is the true factor of the mean
  // divided by the assumed one (0: no gradient was written).
  void* status;
  double *sums, *partial, *workspace, *vector;  // MemorySizes
};

// How many doubles the steps of a device need in Buffers.
struct MemorySizes {
  int64_t sums;                    // of `statistics` and `head`
  int64_t partial;                 // of `statistics`
  int64_t workspace;               // of `forward`
  int64_t head_workspace, vector;  // of `head`: kept between its halves; added over ranks in between
};

// The halves of the head (head.h).
constexpr int kGather = 1, kFinish = 2;

// The sums of a row that region losses read, in their order; d = p - t.
enum RegionSum : int {
  kTp,               // Σ w t p
  kFp,               // Σ w (1-t) p
  kFn,               // Σ w t q
  kTn,               // Σ w (1-t) q
  kPositiveSquares,  // Σ w t d²
  kNegativeSquares,  // Σ w (1-t) d²
  kPositiveErrors,   // Σ -w t d
  kOver,             // Σ w max(d, 0)
  kUnder,            // Σ w max(-d, 0)
  kMinimum,          // Σ w min(p, t)
  kPositiveRest,     // Σ w t (1-d²)
  kNegativeRest,     // Σ w (1-t) (1-d²)
  kExtraSums         // how many these are
};
constexpr int kRegionSums = 3, kNegativeSums = 4;  // without kTn, and with it

// dL/dp of a row, in the order in which the head writes it: see RowSlopes in pixel.h.
enum RegionSlope : int {
  kAtPositive,
  kAtNegative,
  kSquaredAtPositive,
  kSquaredAtNegative,
  kBelow,
  kAbove,
  kRegionSlopes  // how many these are
};

// Sums of a domain (a row, or in multiclass plans a sample with all its classes), in doubles:
//   Σ w | per pointwise term: two | Σ w t, if a term is balanced | per class of the domain: its
//   RegionSums, the first kRegionSums, kNegativeSums, or all
// A quantity that is small beside another sum has a sum of its own: a difference would have lost its digits. Slopes of
// a domain, in the type of the computation:
//   per pointwise term: of the positive and of the negative part | per class: those of RowSlopes in pixel.h
struct Layout {
  int64_t domains, rows_per_domain;
  int pointwise_count, label_sums, region_sums, region_slopes;

  Layout() = default;
  HD Layout(const Plan& plan, const Sizes& sizes)
      : domains(sizes.domains(plan)),
        rows_per_domain(plan.multiclass ? sizes.classes : 1),
        pointwise_count(plan.pointwise_count),
        label_sums(plan.sums_labels() ? 1 : 0),
        region_sums(plan.region_count == 0  ? 0
                    : plan.sums_extra()     ? kExtraSums
                    : plan.sums_negatives() ? kNegativeSums
                                            : kRegionSums),
        region_slopes(plan.region_count == 0 ? 0 : kRegionSlopes) {}

  HD int64_t sums() const { return domains * domain_sums(); }
  HD int64_t slopes() const { return domains * domain_slopes(); }
  HD int64_t domain_sums() const { return group_sums() + rows_per_domain * region_sums; }
  HD int64_t domain_slopes() const { return 2 * pointwise_count + rows_per_domain * region_slopes; }
  HD int64_t group_sums() const { return 1 + 2 * pointwise_count + label_sums; }
};

}  // namespace segfuse
