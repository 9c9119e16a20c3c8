// Which kernels this machine can run, and which are in use.
#include <atomic>
#include <stdexcept>

#include "steps.h"

namespace segfuse {
namespace {

std::vector<const Kernels*> available() {
  std::vector<const Kernels*> list{&baseline_kernels()};
#ifdef SEGFUSE_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    list.push_back(&avx2_kernels());
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    list.push_back(&avx512_kernels());
#endif
  return list;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> kernels{available().back()};
  return kernels;
}

}  // namespace

const Kernels& kernels() { return *chosen(); }

void use_instruction_set(const std::string& name) {
  for (const Kernels* k : available())
    if (name.empty() || name == k->name) {
      chosen() = name.empty() ? available().back() : k;
      return;
    }
  throw std::invalid_argument("instruction set '" + name + "' is not available on this machine");
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* k : available()) names.push_back(k->name);
  return names;
}

}  // namespace segfuse
