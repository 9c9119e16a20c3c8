// The Python module segfuse._C: pointers, sizes and strides in; no tensor type, no per-loss code.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "../losses.h"
#include "steps.h"
#include "threads.h"

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
constexpr Name<Balance> kBalances[] = {{"none", Balance::none},
                                       {"positive", Balance::positive},
                                       {"alpha", Balance::alpha},
                                       {"balanced", Balance::balanced},
                                       {"class_weight", Balance::class_weight}};
constexpr Name<Absent> kAbsents[] = {{"score", Absent::score}, {"zero", Absent::zero}, {"skip", Absent::skip}};
constexpr Name<Statistics> kStatistics[] = {
    {"product", Statistics::product}, {"squared", Statistics::squared}, {"soft_label", Statistics::soft_label}};

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
  p.parameter[0] = field<double>(d, "parameter");
  p.balance = named(kBalances, d, "balance");
  p.balance_value = field<double>(d, "balance_value");
  p.table = field<int>(d, "table");
  p.weighs_the_mean = field<bool>(d, "weighs_the_mean");
  p.smooths = field<bool>(d, "smooths");
  return p;
}

RegionTerm region_term(const py::dict& d) {
  RegionTerm r{};
  r.kind = named(kRegions, d, "kind");
  r.shape = named(kShapes, d, "shape");
  r.statistics = named(kStatistics, d, "statistics");
  r.absent = named(kAbsents, d, "absent");
  r.pool_batch = field<bool>(d, "pool_batch");
  r.pool_classes = field<bool>(d, "pool_classes");
  r.smooth_numerator = field<double>(d, "smooth_numerator");
  r.smooth_denominator = field<double>(d, "smooth_denominator");
  r.eps = field<double>(d, "eps");
  r.alpha = field<double>(d, "alpha");
  r.beta = field<double>(d, "beta");
  r.shape_parameter = field<double>(d, "shape_parameter");
  r.table = field<int>(d, "table");
  r.classes = field<std::vector<int64_t>>(d, "classes");
  return r;
}

enum class Mode { binary, multilabel, multiclass };

struct PyPlan {
  Plan plan;
  Mode mode;

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
    for (const py::handle& handle : field<py::list>(d, "terms")) {
      const auto term = py::cast<py::dict>(handle);
      const bool is_region = field<std::string>(term, "family") == "region";
      const int index = int(is_region ? plan.regions.size() : plan.points.size());
      if (is_region)
        plan.regions.push_back(region_term(term));
      else
        plan.points.push_back(point_term(term));
      plan.terms.push_back({is_region, index, field<double>(term, "coefficient")});
    }
    if (plan.points.size() > size_t(kMaxPoints))
      throw std::invalid_argument("a compound holds at most " + std::to_string(kMaxPoints) + " pointwise losses, got " +
                                  std::to_string(plan.points.size()));
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
  v.sample_stride = stride[0];
  v.class_stride = has_classes ? stride[1] : 0;
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

Problem make_problem(const PyPlan& plan, const py::object& logits, const py::object& target, const py::object& weight,
                     bool soft, const py::object& upstream, const py::object& output, bool output_has_classes) {
  const auto shape = py::cast<std::vector<int64_t>>(py::cast<py::tuple>(logits)[2]);
  const bool has_classes = plan.mode != Mode::binary;
  if (shape.size() < (has_classes ? 2u : 1u)) throw std::invalid_argument("logits: too few dimensions");
  Problem p{};
  p.samples = shape[0];
  p.classes = has_classes ? shape[1] : 1;
  p.pixels = 1;
  for (size_t d = has_classes ? 2 : 1; d < shape.size(); ++d) p.pixels *= shape[d];
  const auto make = [&](const py::object& t, const char* argument, bool with_classes) {
    return view(t, argument, with_classes, p.classes, p.samples, p.pixels);
  };
  const bool multilabel = plan.mode == Mode::multilabel;
  p.logits = make(logits, "logits", has_classes);
  p.target = make(target, "target", multilabel || soft);
  p.weight = make(weight, "weight", multilabel);
  p.upstream = make(upstream, "grad_output", multilabel);
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

// The outputs beside views: of the size that the plan gives, and with storage.
void check_slopes(const PyPlan& plan, const Problem& problem, uintptr_t slopes, int64_t count) {
  const Layout layout(plan.plan, problem);
  if (count != layout.units * layout.unit_slopes()) throw std::invalid_argument("slopes: unexpected size");
  if (count && !slopes) throw std::invalid_argument("slopes: has no storage");
}

void py_forward(const PyPlan& plan, const py::object& logits, const py::object& target, const py::object& weight,
                bool soft, uintptr_t tables, uintptr_t coefficients, const py::object& unreduced, uintptr_t loss,
                uintptr_t terms, uintptr_t slopes, int64_t slope_count, int threads) {
  const Problem problem =
      make_problem(plan, logits, target, weight, soft, py::none(), unreduced, plan.mode == Mode::multilabel);
  check_slopes(plan, problem, slopes, slope_count);
  if (unreduced.is_none() && problem.samples && !(loss && terms)) throw std::invalid_argument("loss: has no storage");
  std::vector<double> constants;
  for (const Term& t : plan.plan.terms) constants.push_back(t.coefficient);
  const double* c = coefficients ? pointer<const double>(coefficients) : constants.data();
  const py::gil_scoped_release release;
  forward(plan.plan, problem, pointer<const double>(tables), c, threads,
          {pointer<void>(loss), pointer<double>(terms), pointer<void>(slopes)});
}

void py_backward(const PyPlan& plan, const py::object& logits, const py::object& target, const py::object& weight,
                 bool soft, uintptr_t tables, uintptr_t slopes, int64_t slope_count, uintptr_t scalar_upstream,
                 const py::object& upstream, const py::object& gradient, int threads) {
  const Problem problem =
      make_problem(plan, logits, target, weight, soft, upstream, gradient, plan.mode != Mode::binary);
  check_slopes(plan, problem, slopes, slope_count);
  if (upstream.is_none() && problem.samples && !scalar_upstream)
    throw std::invalid_argument("grad_output: has no storage");
  const py::gil_scoped_release release;
  backward(plan.plan, problem, pointer<const double>(tables), pointer<const void>(slopes),
           pointer<const void>(scalar_upstream), threads);
}

template <class T>
void py_elementary(int function, double parameter, uintptr_t in, uintptr_t out, int64_t count) {
  if constexpr (sizeof(T) == 4)
    kernels().elementary32(function, T(parameter), pointer<const T>(in), pointer<T>(out), count);
  else
    kernels().elementary64(function, T(parameter), pointer<const T>(in), pointer<T>(out), count);
}

}  // namespace
}  // namespace segfuse

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  using namespace segfuse;
  m.doc() = "CPU kernels of segfuse. Internal: use the package.";
  static py::handle index_error = PyExc_IndexError;
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const LabelError& e) {
      PyErr_SetString(index_error.ptr(), e.what());
    }
  });
  py::class_<PyPlan>(m, "Plan").def(py::init<const py::dict&>());
  m.def("forward", &py_forward);
  m.def("backward", &py_backward);
  m.def("trace_start", &trace_start);
  m.def("trace_stop", [] {
    py::list events;
    for (const TraceEvent& e : trace_stop())
      events.append(py::make_tuple(e.kernel, e.instruction_set, e.bytes_read, e.bytes_written));
    return events;
  });
  m.def("instruction_set", [] { return kernels().name; });
  m.def("instruction_sets", &instruction_sets);
  m.def("use_instruction_set", &use_instruction_set);
  m.def("thread_pool", &thread_pool_name);
  m.def("force_own_pool", &force_own_pool);
  m.def("elementary32", &py_elementary<float>);
  m.def("elementary64", &py_elementary<double>);
}
