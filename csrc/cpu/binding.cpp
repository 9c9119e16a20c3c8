// The Python module segfuse._C: the CPU kernels.
// clang-format off: binding.h binds the steps that steps.h declares
#include "steps.h"
#include "../binding.h"
// clang-format on
#include "threads.h"

namespace segfuse {
namespace {

template <class T>
void elementary(int function, double parameter, const py::int_& in, const py::int_& out, int64_t count) {
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
  bind_steps(m);
  m.def("instruction_set", [] { return kernels().name; });
  m.def("instruction_sets", &instruction_sets);
  m.def("use_instruction_set", &use_instruction_set);
  m.def("thread_pool", &thread_pool_name);
  m.def("force_own_pool", &force_own_pool);
  m.def("elementary32", &elementary<float>);
  m.def("elementary64", &elementary<double>);
}
