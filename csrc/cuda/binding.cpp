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

int64_t py_workspace_size(const PyPlan& plan, const std::vector<int64_t>& shape) {
  const Problem problem = make_sizes(plan, shape);
  return workspace_size(plan.plan, problem);
}

// True if the gradient, where one is asked for, has been written.
bool py_forward(const PyPlan& plan, const py::object& logits, const py::object& target, const py::object& weight,
                bool soft, uintptr_t tables, uintptr_t coefficients, uintptr_t classes, const py::object& output,
                uintptr_t loss, uintptr_t terms, uintptr_t slopes, int64_t slope_count, uintptr_t sums,
                int64_t sum_count, uintptr_t ahead, uintptr_t workspace, int64_t workspace_count, int scheme,
                uintptr_t stream) {
  const bool unreduced = plan.plan.unreduced();
  const bool with_classes =
      unreduced ? plan.mode == Mode::multilabel || plan.plan.unreduced_classes() : plan.mode != Mode::binary;
  const Problem problem = make_problem(plan, logits, target, weight, soft, py::none(), output, with_classes);
  check_slopes(plan, problem, slopes, slope_count);
  check_sums(plan, problem, sums, sum_count);
  if (!ahead) throw std::invalid_argument("slopes: has no storage");
  if (!unreduced && problem.samples && !(loss && terms)) throw std::invalid_argument("loss: has no storage");
  const Constants constants = constants_of(tables, coefficients, classes);
  if (workspace_count < workspace_size(plan.plan, problem)) throw std::invalid_argument("workspace: too small");
  const py::gil_scoped_release release;
  return forward(plan.plan, problem, constants,
                 {pointer<void>(loss), pointer<double>(terms), pointer<void>(slopes), pointer<double>(sums),
                  pointer<float>(ahead)},
                 pointer<double>(workspace), static_cast<Scheme>(scheme), pointer<CUstream_st>(stream));
}

void py_backward(const PyPlan& plan, const py::object& logits, const py::object& target, const py::object& weight,
                 bool soft, uintptr_t tables, uintptr_t classes, uintptr_t slopes, int64_t slope_count,
                 uintptr_t scalar_upstream, const py::object& upstream, const py::object& gradient, uintptr_t ahead,
                 uintptr_t stream) {
  const Problem problem =
      make_problem(plan, logits, target, weight, soft, upstream, gradient, plan.mode != Mode::binary);
  check_slopes(plan, problem, slopes, slope_count);
  if (upstream.is_none() && problem.samples && !scalar_upstream)
    throw std::invalid_argument("grad_output: has no storage");
  const Constants constants = constants_of(tables, 0, classes);
  const py::gil_scoped_release release;
  backward(plan.plan, problem, constants, pointer<const void>(slopes), pointer<const void>(scalar_upstream),
           pointer<const float>(ahead), pointer<CUstream_st>(stream));
}

}  // namespace
}  // namespace segfuse

PYBIND11_MODULE(SEGFUSE_MODULE, m, py::mod_gil_not_used()) {
  using namespace segfuse;
  m.doc() = "CUDA kernels of segfuse. Internal: use the package.";
  py::class_<PyPlan>(m, "Plan", py::module_local())
      .def(py::init<const py::dict&>())
      .def_property_readonly("classes", [](const PyPlan& plan) { return plan.classes; });
  m.def("workspace_size", &py_workspace_size);
  m.def("forward", &py_forward);
  m.def("backward", &py_backward);
  m.def("unusable", &unusable);
  m.def("warmup", &warmup);
  m.def("kernel_names", &kernel_names);
  bind_trace(m, trace());
  m.attr("architectures") = SEGFUSE_ARCHITECTURES;
}
