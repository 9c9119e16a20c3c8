// The Python module segfuse._cuda: the CUDA kernels. Importing it needs no driver.
// clang-format off: binding.h binds the steps that steps.h declares
#include "steps.h"
#include "../binding.h"
// clang-format on

namespace segfuse {
namespace {

void write(const py::int_& to, const void* from, int64_t count, const py::int_& stream) {
  auto* words = pointer<uint64_t>(to);
  auto* executor = pointer<CUstream_st>(stream);
  if (count && !(words && from)) refuse("words", "has no storage");
  const py::gil_scoped_release release;
  write_words(words, static_cast<const uint64_t*>(from), count, executor);
}

void native_write_words(const py::int_& to, const py::int_& from, int64_t count, const py::int_& stream) {
  write(to, pointer<const void>(from), count, stream);
}

void native_write_classes(const NativePlan& plan, const py::int_& to, const py::int_& stream) {
  static_assert(sizeof(int64_t) == sizeof(uint64_t));
  write(to, plan.classes.data(), int64_t(plan.classes.size()), stream);
}

}  // namespace
}  // namespace segfuse

PYBIND11_MODULE(SEGFUSE_MODULE, m, py::mod_gil_not_used()) {
  using namespace segfuse;
  m.doc() = "CUDA kernels of segfuse. Internal: use the package.";
  bind_steps(m);
  m.def("write_words", &native_write_words);
  m.def("write_classes", &native_write_classes);
  m.def("unusable", &unusable);
  m.def("warmup", &warmup);
  m.def("kernel_names", &kernel_names);
  m.attr("few_rows") = kFewRows;
  m.attr("architectures") = SEGFUSE_ARCHITECTURES;
}
