// The Python module segfuse._cuda: the CUDA kernels. Importing it needs no driver.
#include "../binding.h"

#include <algorithm>

#include "../head.h"
#include "steps.h"

namespace segfuse {
namespace {

Constants constants_of(uintptr_t tables, uintptr_t coefficients, uintptr_t classes) {
  return {pointer<const double>(tables), pointer<const double>(coefficients), pointer<const int64_t>(classes)};
}

// True if the gradient, where one is asked for, has been written.
bool py_forward(const PyPlan& plan, const py::object& logits, const py::object& target, const py::object& weight,
                bool soft, uintptr_t tables, uintptr_t coefficients, uintptr_t classes, const py::object& output,
                uintptr_t loss, uintptr_t terms, uintptr_t slopes, int64_t slope_count, uintptr_t workspace,
                int64_t workspace_count, int scheme, uintptr_t stream) {
  const Problem problem =
      make_problem(plan, logits, target, weight, soft, py::none(), output, output_has_classes(plan));
  check_slopes(plan, problem, slopes, slope_count);
  if (!plan.plan.unreduced() && problem.samples && !(loss && terms))
    throw std::invalid_argument("loss: has no storage");
  const Constants constants = constants_of(tables, coefficients, classes);
  if (workspace_count < workspace_size(plan.plan, problem)) throw std::invalid_argument("workspace: too small");
  const py::gil_scoped_release release;
  return forward(plan.plan, problem, constants, {pointer<void>(loss), pointer<double>(terms), pointer<void>(slopes)},
                 pointer<double>(workspace), static_cast<Scheme>(scheme), pointer<CUstream_st>(stream));
}

void py_statistics(const PyPlan& plan, const py::object& logits, const py::object& target, const py::object& weight,
                   bool soft, uintptr_t tables, uintptr_t sums, int64_t count, uintptr_t partial, int64_t partial_count,
                   uintptr_t stream) {
  const Problem problem = make_problem(plan, logits, target, weight, soft, py::none(), py::none(), false);
  const Layout layout(plan.plan, problem);
  check_size("sums", sums, count, layout.units * layout.unit_sums());
  check_size("partial", partial, partial_count, partial_size(plan.plan, problem));
  const Constants constants = constants_of(tables, 0, 0);
  const py::gil_scoped_release release;
  statistics(plan.plan, problem, constants, pointer<double>(sums), pointer<double>(partial),
             pointer<CUstream_st>(stream));
}

void py_head(const PyPlan& plan, const std::vector<int64_t>& shape, bool label_map, bool wide, uintptr_t tables,
             uintptr_t coefficients, uintptr_t classes, uintptr_t sums, uintptr_t workspace, int64_t workspace_count,
             uintptr_t vector, int64_t vector_count, uintptr_t loss, uintptr_t terms, uintptr_t slopes,
             int64_t slope_count, int parts, uintptr_t stream) {
  const Problem problem = make_head_problem(plan, shape, label_map, wide);
  check_slopes(plan, problem, slopes, slope_count);
  check_size("workspace", workspace, workspace_count, head_workspace_size(plan.plan, problem));
  check_size("vector", vector, vector_count, vector_size(plan.plan, problem));
  const Constants constants = constants_of(tables, coefficients, classes);
  const py::gil_scoped_release release;
  head(plan.plan, problem, constants, {pointer<void>(loss), pointer<double>(terms), pointer<void>(slopes)},
       pointer<double>(sums), pointer<double>(workspace), pointer<double>(vector), parts, pointer<CUstream_st>(stream));
}

using SizeFunction = int64_t (*)(const Plan&, const Problem&);
template <SizeFunction kSize>
int64_t py_size(const PyPlan& plan, const std::vector<int64_t>& shape) {
  return kSize(plan.plan, make_head_problem(plan, shape, false, false));
}

void py_backward(const PyPlan& plan, const py::object& logits, const py::object& target, const py::object& weight,
                 bool soft, uintptr_t tables, uintptr_t classes, uintptr_t slopes, int64_t slope_count,
                 uintptr_t scalar_upstream, const py::object& upstream, const py::object& gradient, bool ahead,
                 uintptr_t stream) {
  const Problem problem =
      make_problem(plan, logits, target, weight, soft, upstream, gradient, plan.mode != Mode::binary);
  check_slopes(plan, problem, slopes, slope_count);
  if (upstream.is_none() && problem.samples && !scalar_upstream)
    throw std::invalid_argument("grad_output: has no storage");
  const Constants constants = constants_of(tables, 0, classes);
  const py::gil_scoped_release release;
  backward(plan.plan, problem, constants, pointer<const void>(slopes), pointer<const void>(scalar_upstream), ahead,
           pointer<CUstream_st>(stream));
}

void py_write_words(uintptr_t to, uintptr_t from, int64_t count, uintptr_t stream) {
  if (count && !(to && from)) throw std::invalid_argument("words: has no storage");
  const py::gil_scoped_release release;
  write_words(pointer<uint64_t>(to), pointer<const uint64_t>(from), count, pointer<CUstream_st>(stream));
}

void py_write_classes(const PyPlan& plan, uintptr_t to, uintptr_t stream) {
  static_assert(sizeof(int64_t) == sizeof(uint64_t));
  py_write_words(to, reinterpret_cast<uintptr_t>(plan.classes.data()), int64_t(plan.classes.size()), stream);
}

}  // namespace
}  // namespace segfuse

PYBIND11_MODULE(SEGFUSE_MODULE, m, py::mod_gil_not_used()) {
  using namespace segfuse;
  m.doc() = "CUDA kernels of segfuse. Internal: use the package.";
  py::class_<PyPlan>(m, "Plan", py::module_local()).def(py::init<const py::dict&>());
  m.def("workspace_size", &py_size<workspace_size>);
  m.def("partial_size", &py_size<partial_size>);
  m.def("head_workspace_size", &py_size<head_workspace_size>);
  m.def("vector_size", &py_size<vector_size>);
  m.def("sum_count", &sum_count);
  m.def("forward", &py_forward);
  m.def("statistics", &py_statistics);
  m.def("head", &py_head);
  m.def("backward", &py_backward);
  m.def("write_words", &py_write_words);
  m.def("write_classes", &py_write_classes);
  m.def("unusable", &unusable);
  m.def("warmup", &warmup);
  m.def("kernel_names", &kernel_names);
  bind_trace(m, trace());
  m.attr("few_rows") = kFewRows;
  m.attr("architectures") = SEGFUSE_ARCHITECTURES;
}
