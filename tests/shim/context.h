// Stacks, and the switch between them. x86-64 has its own switch (a few ns; swapcontext makes a system call for the
// signal mask). Other machines use ucontext. ASan is told of every switch.
#pragma once

#include <cstddef>

#ifndef SEGFUSE_SHIM_ASAN
#ifdef __SANITIZE_ADDRESS__
#define SEGFUSE_SHIM_ASAN 1
#else
#define SEGFUSE_SHIM_ASAN 0
#endif
#endif
#if SEGFUSE_SHIM_ASAN
#include <sanitizer/common_interface_defs.h>
// The frames that a dying fiber leaves must not be poisoned: its stack is used again.
#define SEGFUSE_SHIM_PLAIN __attribute__((no_sanitize("address"), noinline))
#else
#define SEGFUSE_SHIM_PLAIN
#endif

#if defined(__x86_64__) && !defined(SEGFUSE_SHIM_UCONTEXT)
#define SEGFUSE_SHIM_ASSEMBLY 1
#else
#define SEGFUSE_SHIM_ASSEMBLY 0
#include <ucontext.h>
#endif

#if SEGFUSE_SHIM_ASSEMBLY
extern "C" __attribute__((visibility("hidden"))) void segfuse_shim_switch(void** from, void* to);
#endif

namespace segfuse_shim {

// Address space, not memory: only touched pages are backed. The lowest page is a guard.
constexpr size_t stack_bytes = SEGFUSE_SHIM_ASAN ? 256 << 10 : 64 << 10;

class Context {
 public:
  // Starts on `stack`. Its hot end is moved a little, by `index`, so that stacks do not all use the same cache sets.
  void start(unsigned char* stack, unsigned index, void (*entry)()) {
    bottom_ = stack;
    size_ = stack_bytes - index % 16 * 256;
#if SEGFUSE_SHIM_ASSEMBLY
    void** top = reinterpret_cast<void**>(stack + size_);
    *--top = nullptr;  // return address of entry: ends every backtrace
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    top_ = top;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = size_;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#endif
  }

  // Leaves this context for another; for good, if `dying`.
  SEGFUSE_SHIM_PLAIN void leave_for(Context& other, bool dying = false) {
    previous = this;
#if SEGFUSE_SHIM_ASAN
    __sanitizer_start_switch_fiber(dying ? nullptr : &fake_, other.bottom_, other.size_);
#else
    (void)dying;
#endif
#if SEGFUSE_SHIM_ASSEMBLY
    segfuse_shim_switch(&top_, other.top_);
#else
    swapcontext(&context_, &other.context_);
#endif
    arrive(fake_);
  }

  // What a new fiber calls first.
  SEGFUSE_SHIM_PLAIN static void arrive(void* fake = nullptr) {
#if SEGFUSE_SHIM_ASAN
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(fake, &bottom, &size);
    previous->bottom_ = bottom;  // new information only for the launching thread's own stack
    previous->size_ = size;
#else
    (void)fake;
#endif
  }

 private:
  inline static Context* previous = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  void* fake_ = nullptr;
#if SEGFUSE_SHIM_ASSEMBLY
  void* top_ = nullptr;
#else
  ucontext_t context_ = {};
#endif
};

unsigned char* new_stack();  // above a guard page

}  // namespace segfuse_shim
