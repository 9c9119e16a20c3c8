// What device.h and cuda_runtime.h call in the scheduler, fiber.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

struct cudaLaunchConfig_st;

namespace segfuse_shim {

// A line of source: where the CUDA function is called. Unlike a return address it survives inlining, unrolling and
// cloning: one line is one site, however often the compiler copies it.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

enum class Op : uint8_t {
  sync,  // the barriers of a block
  sync_or,
  sync_and,
  sync_count,
  sync_part,  // the barrier of some of its warps
  warp_sync,  // from here on: collectives of a warp
  shuffle,
  shuffle_up,
  shuffle_down,
  shuffle_xor,
  ballot,
  any,
  all,
  match_any,
  none
};

// Dynamic shared memory of the running block: exactly as many bytes as the launch asked for, aligned to 16.
unsigned char* shared_memory();

int barrier(Op op, int predicate, Site site);
void part_barrier(int id, unsigned threads, Site site = Site::here());
uint64_t collective(Op op, unsigned mask, uint64_t value, int argument, int width, Site site);
unsigned own_lane_bit();

// A point where another thread may run: sometimes, or always if `sleep`. The watchdog counts these points.
void pause(bool sleep = false);
long long ticks();

[[noreturn]] void fail(const char* what, Site site);
[[noreturn]] void fail_alignment(const void* address, size_t size, Site site);

inline void check_alignment(const volatile void* address, size_t size, Site site) {
  if (reinterpret_cast<uintptr_t>(address) % size) fail_alignment(const_cast<const void*>(address), size, site);
}

int dynamic_shared_limit(const void* function);
void set_dynamic_shared_limit(const void* function, int bytes);
int multiprocessors();
int fault();

// Runs the grid to its end. call(argument) is one thread's run of the kernel. Returns a cudaError_t.
int launch(const cudaLaunchConfig_st& config, const void* function, void (*call)(const void*), const void* argument);

template <class T>
uint64_t to_bits(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace segfuse_shim
