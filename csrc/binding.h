// What both Python modules take: a plan as a dict, tensors as (address, dtype code, shape, strides). No tensor type, no
// per-loss code; names come from the lists of losses.h.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "losses.h"
#include "problem.h"
#include "trace.h"

namespace py = pybind11;

namespace segfuse {
namespace {

// --------------------------------------------------------------------------------------------------------------- names

template <class Enum>
struct Name {
  const char* name;
  Enum value;
};

#define SEGFUSE_POINT_NAME(name, type) {#name, PointKind::name},
#define SEGFUSE_REGION_NAME(name, type) {#name, RegionKind::name},
#define SEGFUSE_SHAPE_NAME(name, type) {#name, ShapeKind::name},
constexpr Name<PointKind> kPoints[] = {SEGFUSE_POINTWISE(SEGFUSE_POINT_NAME)};
constexpr Name<RegionKind> kRegions[] = {SEGFUSE_REGION(SEGFUSE_REGION_NAME)};
constexpr Name<ShapeKind> kShapes[] = {SEGFUSE_SHAPE(SEGFUSE_SHAPE_NAME)};
constexpr Name<Reduction> kReductions[] = {
    {"mean", Reduction::mean}, {"sum", Reduction::sum}, {"none", Reduction::none}, {"sample", Reduction::sample}};
constexpr Name<Balance> kBalances[] = {{"none", Balance::none},         {"positive", Balance::positive},
                                       {"negative", Balance::negative}, {"alpha", Balance::alpha},
                                       {"balanced", Balance::balanced}, {"class_weight", Balance::class_weight}};
constexpr Name<Absent> kAbsents[] = {{"score", Absent::score}, {"zero", Absent::zero}, {"skip", Absent::skip}};
constexpr Name<Statistics> kStatistics[] = {{"product", Statistics::product},
                                            {"squared", Statistics::squared},
                                            {"soft_label", Statistics::soft_label},
                                            {"squared_error", Statistics::squared_error}};
constexpr Name<ClassFactor> kFactors[] = {
    {"none", ClassFactor::none}, {"simple", ClassFactor::simple}, {"square", ClassFactor::square}};

template <class Enum, size_t N>
Enum named(const Name<Enum> (&list)[N], const py::dict& d, const char* key) {
  const std::string name = py::cast<std::string>(d[key]);
  for (const Name<Enum>& entry : list)
    if (name == entry.name) return entry.value;
  throw std::invalid_argument(std::string(key) + ": unknown name '" + name + "'");
}

template <class T>
T field(const py::dict& d, const char* key) {
  if (!d.contains(key)) throw std::invalid_argument(std::string("plan: missing '") + key + "'");
  return py::cast<T>(d[key]);
}

PointTerm point_term(const py::dict& d) {
  PointTerm p{};
  p.kind = named(kPoints, d, "kind");
  const auto parameters = field<std::vector<double>>(d, "parameters");
  if (parameters.size() > size_t(kParameters)) throw std::invalid_argument("parameters: too many");
  std::copy(parameters.begin(), parameters.end(), p.parameter);
  p.balance = named(kBalances, d, "balance");
  p.balance_value = field<double>(d, "balance_value");
  p.table = field<int>(d, "table");
  p.weighs_the_mean = field<bool>(d, "weighs_the_mean");
  p.smooths = field<bool>(d, "smooths");
  p.every_class = field<bool>(d, "every_class");
  return p;
}

// Its scored classes are appended to `classes`.
RegionTerm region_term(const py::dict& d, std::vector<int64_t>& classes) {
  RegionTerm r{};
  r.kind = named(kRegions, d, "kind");
  r.shape = named(kShapes, d, "shape");
  r.statistics = named(kStatistics, d, "statistics");
  r.absent = named(kAbsents, d, "absent");
  r.pool_batch = field<bool>(d, "pool_batch");
  r.pool_classes = field<bool>(d, "pool_classes");
  r.smooth_numerator = field<double>(d, "smooth_numerator");
  r.smooth_denominator = field<double>(d, "smooth_denominator");
  r.generalized = field<bool>(d, "generalized");
  r.factor = named(kFactors, d, "factor");
  r.adaptive = !d["adaptive"].is_none();
  if (r.adaptive) {
    const auto adaptive = field<std::vector<double>>(d, "adaptive");
    r.omega = adaptive.at(0), r.threshold = adaptive.at(1), r.epsilon = adaptive.at(2);
  }
  r.eps = field<double>(d, "eps");
  r.alpha = field<double>(d, "alpha");
  r.beta = field<double>(d, "beta");
  r.shape_parameter = field<double>(d, "shape_parameter");
  r.table = field<int>(d, "table");
  const auto scored = field<std::vector<int64_t>>(d, "classes");
  r.first_class = int(classes.size());
  r.class_count = int(scored.size());
  classes.insert(classes.end(), scored.begin(), scored.end());
  return r;
}

enum class Mode { binary, multilabel, multiclass };

struct PyPlan {
  Plan plan{};
  Mode mode;
  std::vector<int64_t> classes;  // Constants::classes

  static void check_count(bool is_region, int count) {
    const int most = is_region ? kMaxRegions : kMaxPoints;
    if (count > most)
      throw std::invalid_argument("a compound holds at most " + std::to_string(most) +
                                  (is_region ? " region" : " pointwise") + " losses, got " + std::to_string(count));
  }

  explicit PyPlan(const py::dict& d) {
    constexpr Name<Mode> modes[] = {
        {"binary", Mode::binary}, {"multilabel", Mode::multilabel}, {"multiclass", Mode::multiclass}};
    mode = named(modes, d, "mode");
    plan.joint = mode == Mode::multiclass;
    plan.link = !field<bool>(d, "from_logits") ? LinkKind::identity
                : plan.joint                   ? LinkKind::softmax
                                               : LinkKind::sigmoid;
    plan.reduction = named(kReductions, d, "reduction");
    plan.has_ignore = !d["ignore_index"].is_none();
    plan.ignore_index = plan.has_ignore ? field<int64_t>(d, "ignore_index") : 0;
    plan.ignore_value = double(plan.ignore_index);
    const auto terms = field<py::list>(d, "terms");
    int regions = 0;
    for (const py::handle& term : terms) regions += field<std::string>(py::cast<py::dict>(term), "family") == "region";
    check_count(true, regions);
    check_count(false, int(terms.size()) - regions);
    for (const py::handle& handle : terms) {
      const auto term = py::cast<py::dict>(handle);
      const bool is_region = field<std::string>(term, "family") == "region";
      int& count = is_region ? plan.region_count : plan.point_count;
      if (is_region)
        plan.regions[count] = region_term(term, classes);
      else
        plan.points[count] = point_term(term);
      plan.terms[plan.term_count++] = {is_region, count++, field<double>(term, "coefficient")};
    }
  }
};

// ------------------------------------------------------------------------------------------------------------- tensors

// (address, dtype code, shape, strides), or None.
View view(const py::object& tensor, const char* argument, bool has_classes, int64_t classes, int64_t samples,
          int64_t pixels) {
  View v;
  if (tensor.is_none()) return v;
  const auto t = py::cast<py::tuple>(tensor);
  const auto shape = py::cast<std::vector<int64_t>>(t[2]), stride = py::cast<std::vector<int64_t>>(t[3]);
  v.data = reinterpret_cast<void*>(py::cast<uintptr_t>(t[0]));
  v.dtype = static_cast<Dtype>(py::cast<int>(t[1]));
  const size_t first = has_classes ? 2 : 1;
  const auto fail = [&](const std::string& what) { throw std::invalid_argument(std::string(argument) + ": " + what); };
  if (shape.size() < first || shape[0] != samples || (has_classes && shape[1] != classes)) fail("unexpected shape");
  v.sample_stride = samples > 1 ? stride[0] : 0;
  v.class_stride = has_classes && classes > 1 ? stride[1] : 0;
  int64_t total = 1;
  for (size_t d = first; d < shape.size(); ++d) {
    total *= shape[d];
    if (shape[d] == 1) continue;
    if (v.dims && v.stride[v.dims - 1] == stride[d] * shape[d]) {
      v.size[v.dims - 1] *= shape[d];
      v.stride[v.dims - 1] = stride[d];
      continue;
    }
    if (v.dims == kMaxDims) fail("more than " + std::to_string(kMaxDims) + " spatial dimensions that do not merge");
    v.size[v.dims] = shape[d];
    v.stride[v.dims++] = stride[d];
  }
  if (!v.dims) {
    v.size[0] = 1;
    v.stride[v.dims++] = 1;
  }
  if (total != pixels) fail("unexpected number of positions");
  if (!v.data && samples * pixels * (has_classes ? classes : 1) > 0) fail("has no storage");
  return v;
}

// Of the sizes of the logits alone.
inline Problem make_sizes(const PyPlan& plan, const std::vector<int64_t>& shape) {
  const bool has_classes = plan.mode != Mode::binary;
  if (shape.size() < (has_classes ? 2u : 1u)) throw std::invalid_argument("logits: too few dimensions");
  Problem p{};
  p.samples = shape[0];
  p.classes = has_classes ? shape[1] : 1;
  p.pixels = 1;
  for (size_t d = has_classes ? 2 : 1; d < shape.size(); ++d) p.pixels *= shape[d];
  return p;
}

inline Problem make_problem(const PyPlan& plan, const py::object& logits, const py::object& target,
                            const py::object& weight, bool soft, const py::object& upstream, const py::object& output,
                            bool output_has_classes) {
  Problem p = make_sizes(plan, py::cast<std::vector<int64_t>>(py::cast<py::tuple>(logits)[2]));
  const auto make = [&](const py::object& t, const char* argument, bool with_classes) {
    return view(t, argument, with_classes, p.classes, p.samples, p.pixels);
  };
  const bool multilabel = plan.mode == Mode::multilabel;
  p.logits = make(logits, "logits", plan.mode != Mode::binary);
  p.target = make(target, "target", multilabel || soft);
  p.weight = make(weight, "weight", multilabel);
  p.upstream = make(upstream, "grad_output", multilabel || plan.plan.unreduced_classes());
  p.output = make(output, "output", output_has_classes);
  p.has_weight = !weight.is_none();
  p.has_upstream = !upstream.is_none();
  p.label_map = plan.mode == Mode::multiclass && !soft;
  p.hard_target = !is_floating(p.target.dtype);
  p.wide = p.logits.dtype == Dtype::f64;
  if (!is_floating(p.logits.dtype)) throw std::invalid_argument("logits: not a floating type");
  if (p.label_map && !p.hard_target) throw std::invalid_argument("target: a label map holds integers");
  return p;
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Sizes alone, for the head.
inline Problem make_head_problem(const PyPlan& plan, const std::vector<int64_t>& shape, bool label_map, bool wide) {
  Problem p = make_sizes(plan, shape);
  p.label_map = label_map;
  p.wide = wide;
  return p;
}
inline int64_t sum_count(const PyPlan& plan, const std::vector<int64_t>& shape) {
  const Layout layout(plan.plan, make_sizes(plan, shape));
  return layout.units * layout.unit_sums();
}

// Outputs beside views: of the size that the plan gives, and with storage.
inline void check_size(const char* name, uintptr_t address, int64_t count, int64_t expected) {
  if (count != expected) throw std::invalid_argument(std::string(name) + ": unexpected size");
  if (!address && expected) throw std::invalid_argument(std::string(name) + ": has no storage");
}
// Whether what a forward writes has a class axis: the values of an unreduced loss, else a gradient.
inline bool output_has_classes(const PyPlan& plan) {
  if (plan.plan.unreduced()) return plan.mode == Mode::multilabel || plan.plan.unreduced_classes();
  return plan.mode != Mode::binary;
}
inline void check_slopes(const PyPlan& plan, const Problem& problem, uintptr_t slopes, int64_t count) {
  const Layout layout(plan.plan, problem);
  check_size("slopes", slopes, count, layout.units * layout.unit_slopes());
  if (!slopes) throw std::invalid_argument("slopes: has no storage");  // there is one more number behind them
}

inline void bind_trace(py::module_& m, Trace& trace) {
  m.def("trace_start", [&trace] { trace.start(); });
  m.def("trace_stop", [&trace] {
    py::list events;
    for (const TraceEvent& e : trace.stop())
      events.append(py::make_tuple(e.kernel, e.instruction_set, e.bytes_read, e.bytes_written));
    return events;
  });
}

}  // namespace
}  // namespace segfuse
