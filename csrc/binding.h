// The binding of both Python modules: plans as objects, and the steps of a device (steps.h, included before this file).
// They take the named tuples Call and Buffers of python/segfuse/_core/calls.py. A tensor is (address, dtype code,
// shape, strides), other memory is (address, number of elements). No tensor type is used, so one build works with every
// torch.
#pragma once

#include "outputs.h"
#include "spec_fields.h"
#include "trace.h"

namespace segfuse {
namespace {

// ------------------------------------------------------------------------------------------------------------- tensors

[[noreturn]] void refuse(const char* argument, const std::string& what) {
  throw std::invalid_argument(std::string(argument) + ": " + what);
}

// An item of a tuple from Python, by the C interface: pybind11's conversions take a microsecond per call.
py::handle item(const py::handle& tuple, int i) {
  if (!PyTuple_Check(tuple.ptr()) || PyTuple_GET_SIZE(tuple.ptr()) <= i) throw py::type_error("a tuple is too short");
  return PyTuple_GET_ITEM(tuple.ptr(), i);
}
int64_t number(const py::handle& object) {
  const int64_t value = PyLong_AsLongLong(object.ptr());
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}
template <class T>
T* pointer(const py::handle& object) {
  void* address = PyLong_AsVoidPtr(object.ptr());
  if (!address && PyErr_Occurred()) throw py::error_already_set();
  return static_cast<T*>(address);
}
std::vector<int64_t> numbers(const py::handle& tuple) {
  std::vector<int64_t> found(py::len(tuple));
  for (size_t i = 0; i < found.size(); ++i) found[i] = number(item(tuple, int(i)));
  return found;
}

View view(const py::handle& tensor, const char* argument, bool has_classes, const Sizes& sizes) {
  View v;
  if (tensor.is_none()) return v;
  const auto shape = numbers(item(tensor, 2)), stride = numbers(item(tensor, 3));
  v.data = pointer<void>(item(tensor, 0));
  v.dtype = static_cast<Dtype>(number(item(tensor, 1)));
  const size_t first = has_classes ? 2 : 1;
  if (shape.size() < first || shape[0] != sizes.samples || (has_classes && shape[1] != sizes.classes))
    refuse(argument, "unexpected shape");
  v.sample_stride = sizes.samples > 1 ? stride[0] : 0;
  v.class_stride = has_classes && sizes.classes > 1 ? stride[1] : 0;
  int64_t total = 1;
  for (size_t d = first; d < shape.size(); ++d) {
    total *= shape[d];
    if (shape[d] == 1) continue;
    if (v.dims && v.stride[v.dims - 1] == stride[d] * shape[d]) {
      v.size[v.dims - 1] *= shape[d];
      v.stride[v.dims - 1] = stride[d];
      continue;
    }
    if (v.dims == kMaxDims)
      refuse(argument, "more than " + std::to_string(kMaxDims) + " spatial dimensions that do not merge");
    v.size[v.dims] = shape[d];
    v.stride[v.dims++] = stride[d];
  }
  if (!v.dims) {
    v.size[0] = 1;
    v.stride[v.dims++] = 1;
  }
  if (total != sizes.pixels) refuse(argument, "unexpected number of positions");
  if (!v.data && sizes.samples * total * (has_classes ? sizes.classes : 1) > 0) refuse(argument, "has no storage");
  return v;
}

// ---------------------------------------------------------------------------------------------------------------- call

// The fields of the named tuples, in their order. The package compares them with its own when it is imported.
#define SEGFUSE_CALL(X) \
  X(plan) X(logits) X(target) X(weight) X(soft) X(class_values) X(coefficients) X(classes) X(executor)
#define SEGFUSE_BUFFERS(X) X(loss) X(terms) X(slopes) X(output) X(sums) X(partial) X(workspace) X(vector)
#define SEGFUSE_FIELD(name) name,
#define SEGFUSE_FIELD_NAME(name) #name,
namespace field {
struct Call {
  enum { SEGFUSE_CALL(SEGFUSE_FIELD) };
};
struct Buffers {
  enum { SEGFUSE_BUFFERS(SEGFUSE_FIELD) };
};
}  // namespace field

// A plan with the data of one call. The tensors are there after read_tensors(); the head and `sizes` need none.
struct NativeCall {
  const NativePlan& native;
  const Plan& plan;
  Problem problem{};
  Constants constants;
  Executor executor;

  explicit NativeCall(const py::tuple& t)
      : native(py::cast<const NativePlan&>(item(t, field::Call::plan))),
        plan(native.plan),
        constants{pointer<const double>(item(t, field::Call::class_values)),
                  pointer<const double>(item(t, field::Call::coefficients)),
                  pointer<const int64_t>(item(t, field::Call::classes))},
        executor((Executor)number(item(t, field::Call::executor))) {
    if (!constants.classes) constants.classes = native.classes.data();
    const py::handle logits = item(t, field::Call::logits);
    Problem& p = problem;
    set_sizes(numbers(item(logits, 2)));
    p.label_map = plan.multiclass && item(t, field::Call::soft).ptr() != Py_True;
    p.logits.dtype = static_cast<Dtype>(number(item(logits, 1)));
    if (!is_floating(p.logits.dtype)) refuse("logits", "not a floating type");
    p.wide = p.logits.dtype == Dtype::f64;
  }

  void read_tensors(const py::tuple& t) {
    const py::handle weight = item(t, field::Call::weight);
    const bool multilabel = native.mode == Mode::multilabel;
    Problem& p = problem;
    p.logits = view(item(t, field::Call::logits), "logits", has_classes(), p);
    p.target = view(item(t, field::Call::target), "target", multilabel || (plan.multiclass && !p.label_map), p);
    p.weight = view(weight, "weight", multilabel, p);
    p.has_weight = !weight.is_none();
    p.hard_target = !is_floating(p.target.dtype);
  }

  bool has_classes() const { return native.mode != Mode::binary; }
  // Whether the values of an unreduced loss have a class axis.
  bool values_have_classes() const { return native.mode == Mode::multilabel || plan.unreduced_classes(); }
  MemorySizes sizes() const { return memory_sizes(plan, problem); }
  int64_t outputs() const { return OutputMap{plan, problem, nullptr}.count(); }
  Call with(const Problem& p, Scheme scheme = Scheme::automatic) const { return {plan, p, constants, scheme}; }

 private:
  void set_sizes(const std::vector<int64_t>& shape) {
    const size_t first = has_classes() ? 2 : 1;
    if (shape.size() < first) refuse("logits", "too few dimensions");
    problem.samples = shape[0];
    problem.classes = has_classes() ? shape[1] : 1;
    problem.pixels = 1;
    for (size_t d = first; d < shape.size(); ++d) problem.pixels *= shape[d];
  }
};

// The memory of a step. Each part must have the size that the call gives.
class NativeBuffers {
 public:
  NativeBuffers(const py::tuple& tuple, const NativeCall& call) : tuple_(tuple), call_(call) {}

  Buffers found{};

  py::handle output() const { return item(tuple_, field::Buffers::output); }
  template <class T>
  T* checked(int index, const char* name, int64_t expected) const {
    const py::handle memory = item(tuple_, index);
    const int64_t count = number(item(memory, 1));
    if (count != expected)
      refuse(name, std::to_string(count) + " numbers, where " + std::to_string(expected) + " are expected");
    T* address = pointer<T>(item(memory, 0));
    if (!address && expected) refuse(name, "has no storage");
    return address;
  }
  // Sets the status too, which is behind the slopes.
  void set_slopes() {
    const int64_t slopes = Layout(call_.plan, call_.problem).slopes();
    char* first = checked<char>(field::Buffers::slopes, "slopes", slopes + 1);
    found.slopes = first;
    found.status = first + slopes * int64_t(call_.problem.wide ? sizeof(double) : sizeof(float));
  }
  void set_results() {
    set_slopes();
    // An unreduced loss has its values in the output.
    if (!call_.plan.unreduced()) found.loss = checked<void>(field::Buffers::loss, "loss", call_.outputs());
    found.terms = checked<double>(field::Buffers::terms, "terms", call_.outputs() * call_.plan.term_count);
  }

 private:
  const py::tuple& tuple_;
  const NativeCall& call_;
};

// --------------------------------------------------------------------------------------------------------------- steps

// True if the output has been written.
bool native_forward(const py::tuple& call_tuple, const py::tuple& buffer_tuple, const std::string& scheme) {
  NativeCall call(call_tuple);
  call.read_tensors(call_tuple);
  NativeBuffers buffers(buffer_tuple, call);
  buffers.set_results();
  buffers.found.workspace = buffers.checked<double>(field::Buffers::workspace, "workspace", call.sizes().workspace);
  Problem problem = call.problem;
  const bool by_class = call.plan.unreduced() ? call.values_have_classes() : call.has_classes();
  problem.output = view(buffers.output(), "output", by_class, problem);
  const auto wanted = named<Scheme>(scheme, "scheme");
  const py::gil_scoped_release release;
  return forward(call.with(problem, wanted), buffers.found, call.executor);
}

void native_statistics(const py::tuple& call_tuple, const py::tuple& buffer_tuple) {
  NativeCall call(call_tuple);
  call.read_tensors(call_tuple);
  const MemorySizes sizes = call.sizes();
  NativeBuffers buffers(buffer_tuple, call);
  buffers.found.sums = buffers.checked<double>(field::Buffers::sums, "sums", sizes.sums);
  buffers.found.partial = buffers.checked<double>(field::Buffers::partial, "partial", sizes.partial);
  const py::gil_scoped_release release;
  statistics(call.with(call.problem), buffers.found, call.executor);
}

void native_head(const py::tuple& call_tuple, const py::tuple& buffer_tuple, int halves) {
  const NativeCall call(call_tuple);
  const MemorySizes sizes = call.sizes();
  NativeBuffers buffers(buffer_tuple, call);
  buffers.set_results();
  buffers.found.sums = buffers.checked<double>(field::Buffers::sums, "sums", sizes.sums);
  buffers.found.workspace = buffers.checked<double>(field::Buffers::workspace, "workspace", sizes.head_workspace);
  buffers.found.vector = buffers.checked<double>(field::Buffers::vector, "vector", sizes.vector);
  const py::gil_scoped_release release;
  head(call.with(call.problem), buffers.found, halves, call.executor);
}

// upstream: a tensor of the loss's shape and type, dense unless the loss is unreduced. prefilled: the output holds what
// `forward` has written there.
void native_backward(const py::tuple& call_tuple, const py::tuple& buffer_tuple, const py::tuple& upstream,
                     bool prefilled) {
  NativeCall call(call_tuple);
  call.read_tensors(call_tuple);
  NativeBuffers buffers(buffer_tuple, call);
  buffers.set_slopes();
  Problem problem = call.problem;
  problem.output = view(buffers.output(), "output", call.has_classes(), problem);
  problem.has_upstream = call.plan.unreduced();
  const void* dense = nullptr;
  if (problem.has_upstream) {
    problem.upstream = view(upstream, "grad_output", call.values_have_classes(), problem);
  } else {
    dense = pointer<const void>(item(upstream, 0));
    if (!dense && problem.samples) refuse("grad_output", "has no storage");
  }
  const py::gil_scoped_release release;
  backward(call.with(problem), buffers.found, dense, prefilled, call.executor);
}

// ------------------------------------------------------------------------------------------------------------- binding

// The size of an array as samples * (a + b * classes): a numbers per sample, and b per class of it. It returns (a, b),
// for a traced graph, whose sizes are symbols.
template <int64_t (Layout::*kCount)() const>
std::pair<int64_t, int64_t> per_sample_and_class(const NativePlan& plan) {
  const int64_t one = (Layout(plan.plan, {1, 1, 1}).*kCount)(), two = (Layout(plan.plan, {1, 2, 1}).*kCount)();
  return {2 * one - two, two - one};
}

void bind_steps(py::module_& m) {
  py::class_<NativePlan>(m, "Plan", py::module_local())
      .def(py::init<const py::object&>())
      .def_property_readonly("sums", &per_sample_and_class<&Layout::sums>)
      .def_property_readonly("slopes", &per_sample_and_class<&Layout::slopes>)
      .def_property_readonly("listed_classes", [](const NativePlan& plan) { return plan.classes.size(); });
  m.attr("CALL") = py::tuple(py::cast(std::vector<std::string>{SEGFUSE_CALL(SEGFUSE_FIELD_NAME)}));
  m.attr("BUFFERS") = py::tuple(py::cast(std::vector<std::string>{SEGFUSE_BUFFERS(SEGFUSE_FIELD_NAME)}));
  using namespace py::literals;
  m.attr("NAMES") =
      py::dict("Mode"_a = names<Mode>(), "Reduction"_a = names<Reduction>(), "PointwiseKind"_a = names<PointwiseKind>(),
               "RegionKind"_a = names<RegionKind>(), "Shape"_a = names<ShapeKind>(), "Absent"_a = names<Absent>(),
               "Statistics"_a = names<Statistics>(), "ClassFactor"_a = names<ClassFactor>(),
               "Balance"_a = names<Balance>(), "Scheme"_a = names<Scheme>());
  m.attr("GATHER") = kGather;
  m.attr("FINISH") = kFinish;
  m.def("sizes", [](const py::tuple& call) {
    const MemorySizes s = NativeCall(call).sizes();
    return py::make_tuple(s.sums, s.partial, s.workspace, s.head_workspace, s.vector);
  });
  m.def("forward", &native_forward);
  m.def("statistics", &native_statistics);
  m.def("head", &native_head);
  m.def("backward", &native_backward);
  m.def("trace_start", [] { trace().start(); });
  m.def("trace_stop", [] {
    py::list events;
    for (const TraceEvent& e : trace().stop())
      events.append(py::make_tuple(e.kernel, e.instruction_set, e.bytes_read, e.bytes_written));
    return events;
  });
}

}  // namespace
}  // namespace segfuse
