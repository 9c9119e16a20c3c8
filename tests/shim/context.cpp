#include "context.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

#if SEGFUSE_SHIM_ASSEMBLY
// Saves what a callee must keep by the System V ABI, except the floating-point modes: all fibers share the caller's.
asm(R"(
.pushsection .text
.p2align 4
.globl segfuse_shim_switch
.hidden segfuse_shim_switch
.type segfuse_shim_switch, @function
segfuse_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size segfuse_shim_switch, .-segfuse_shim_switch
.popsection
)");
#endif

namespace segfuse_shim {

unsigned char* new_stack() {
  const size_t guard = size_t(sysconf(_SC_PAGESIZE));
  void* p =
      mmap(nullptr, stack_bytes + guard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED || mprotect(p, guard, PROT_NONE)) std::abort();
  return static_cast<unsigned char*>(p) + guard;
}

}  // namespace segfuse_shim
