// The Python module segfuse._C: the CPU kernels.
#include "../binding.h"

#include "steps.h"
#include "threads.h"

namespace segfuse {
namespace {

// output: of an unreduced loss its values; else where its gradient may go. True if that has been written.
bool py_forward(const PyPlan& plan, const py::object& logits, const py::object& target, const py::object& weight,
                bool soft, uintptr_t tables, uintptr_t coefficients, const py::object& output, uintptr_t loss,
                uintptr_t terms, uintptr_t slopes, int64_t slope_count, int threads) {
  const Problem problem =
      make_problem(plan, logits, target, weight, soft, py::none(), output, output_has_classes(plan));
  check_slopes(plan, problem, slopes, slope_count);
  if (!plan.plan.unreduced() && problem.samples && !(loss && terms))
    throw std::invalid_argument("loss: has no storage");
  const Constants constants{pointer<const double>(tables), pointer<const double>(coefficients), plan.classes.data()};
  const py::gil_scoped_release release;
  return forward(plan.plan, problem, constants, threads,
                 {pointer<void>(loss), pointer<double>(terms), pointer<void>(slopes)});
}

void py_statistics(const PyPlan& plan, const py::object& logits, const py::object& target, const py::object& weight,
                   bool soft, uintptr_t tables, uintptr_t sums, int64_t count, int threads) {
  const Problem problem = make_problem(plan, logits, target, weight, soft, py::none(), py::none(), false);
  const Layout layout(plan.plan, problem);
  check_size("sums", sums, count, layout.units * layout.unit_sums());
  const Constants constants{pointer<const double>(tables), nullptr, plan.classes.data()};
  const py::gil_scoped_release release;
  statistics(plan.plan, problem, constants, threads, pointer<double>(sums));
}

void py_head(const PyPlan& plan, const std::vector<int64_t>& shape, bool label_map, bool wide, uintptr_t tables,
             uintptr_t coefficients, uintptr_t sums, uintptr_t workspace, int64_t workspace_count, uintptr_t vector,
             int64_t vector_count, uintptr_t loss, uintptr_t terms, uintptr_t slopes, int64_t slope_count, int parts) {
  const Problem problem = make_head_problem(plan, shape, label_map, wide);
  check_slopes(plan, problem, slopes, slope_count);
  check_size("workspace", workspace, workspace_count, workspace_size(plan.plan, problem));
  check_size("vector", vector, vector_count, vector_size(plan.plan, problem));
  const Constants constants{pointer<const double>(tables), pointer<const double>(coefficients), plan.classes.data()};
  const py::gil_scoped_release release;
  head(plan.plan, problem, constants,
       {pointer<void>(loss), pointer<double>(terms), pointer<void>(slopes), pointer<double>(sums),
        pointer<double>(workspace), pointer<double>(vector)},
       parts);
}

void py_backward(const PyPlan& plan, const py::object& logits, const py::object& target, const py::object& weight,
                 bool soft, uintptr_t tables, uintptr_t slopes, int64_t slope_count, uintptr_t scalar_upstream,
                 const py::object& upstream, const py::object& gradient, bool ahead, int threads) {
  const Problem problem =
      make_problem(plan, logits, target, weight, soft, upstream, gradient, plan.mode != Mode::binary);
  check_slopes(plan, problem, slopes, slope_count);
  if (upstream.is_none() && problem.samples && !scalar_upstream)
    throw std::invalid_argument("grad_output: has no storage");
  const Constants constants{pointer<const double>(tables), nullptr, plan.classes.data()};
  const py::gil_scoped_release release;
  backward(plan.plan, problem, constants, pointer<const void>(slopes), pointer<const void>(scalar_upstream), ahead,
           threads);
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
    } catch (const ValueOutOfRange& e) {
      PyErr_SetString(index_error.ptr(), e.what());
    }
  });
  py::class_<PyPlan>(m, "Plan").def(py::init<const py::dict&>());
  m.def("sum_count", &sum_count);
  m.def("workspace_size", [](const PyPlan& plan, const std::vector<int64_t>& shape) {
    return workspace_size(plan.plan, make_head_problem(plan, shape, false, false));
  });
  m.def("vector_size", [](const PyPlan& plan, const std::vector<int64_t>& shape) {
    return vector_size(plan.plan, make_head_problem(plan, shape, false, false));
  });
  m.def("forward", &py_forward);
  m.def("statistics", &py_statistics);
  m.def("head", &py_head);
  m.def("backward", &py_backward);
  bind_trace(m, trace());
  m.def("instruction_set", [] { return kernels().name; });
  m.def("instruction_sets", &instruction_sets);
  m.def("use_instruction_set", &use_instruction_set);
  m.def("thread_pool", &thread_pool_name);
  m.def("force_own_pool", &force_own_pool);
  m.def("elementary32", &py_elementary<float>);
  m.def("elementary64", &py_elementary<double>);
}
