// Tests what cuda_runtime.h promises: correct kernels are correct under every order, wrong kernels are caught.
#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

using segfuse_shim::shared_memory;

static int failures = 0;
#define EXPECT(condition) \
  if (!(condition)) std::printf("FAILED %s:%d: %s\n", __FILE__, __LINE__, #condition), ++failures

static void seed(int s) { setenv("SEGFUSE_SHIM_SEED", std::to_string(s).c_str(), 1); }

template <class... Expected, class... Actual>
cudaError_t launch(void (*kernel)(Expected...), dim3 grid, dim3 block, size_t shared, Actual... arguments) {
  const cudaLaunchConfig_t config = {grid, block, shared, nullptr, nullptr, 0};
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// ------------------------------------------------------------------------------------------- a sum in three levels

struct Job {
  const float* input;
  double* partial;
  double* sum;
  unsigned* ticket;
  char padding[3000];  // as large as the parameters of the real kernels
};

enum class Omit { nothing, barrier_of_sum, barrier_of_ticket, warp_sync };

template <Omit omit>
__global__ void __launch_bounds__(256) sum_kernel(const __grid_constant__ Job job) {
  double* per_warp = reinterpret_cast<double*>(shared_memory());
  float* neighbours = reinterpret_cast<float*>(shared_memory() + 64);
  unsigned* last = reinterpret_cast<unsigned*>(shared_memory() + 64 + 1024);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float4 v = __ldcs(reinterpret_cast<const float4*>(job.input) + blockIdx.x * blockDim.x + threadIdx.x);
  neighbours[threadIdx.x] = v.x + v.y + v.z + v.w;
  if (omit != Omit::warp_sync) __syncwarp();
  double x = neighbours[threadIdx.x ^ 1];
  for (int i = 16; i; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  if (lane == 0) per_warp[warp] = x;
  if (omit != Omit::barrier_of_sum) __syncthreads();
  if (warp == 0) {
    x = lane < blockDim.x / 32 ? per_warp[lane] : 0.0;
    for (int i = 16; i; i /= 2) x += __shfl_down_sync(0xffffffffu, x, unsigned(i));
    if (lane == 0) {
      __stcg(job.partial + blockIdx.x, x);
      __threadfence();
      *last = atomicInc(job.ticket, gridDim.x - 1) == gridDim.x - 1;
    }
  }
  if (omit != Omit::barrier_of_ticket) __syncthreads();
  if (!*last || threadIdx.x != 255) return;
  double sum = 0.0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += __ldcg(job.partial + i);
  *job.sum = sum;
}

template <Omit omit>
int wrong_sums(int seeds) {
  const unsigned blocks = 7, threads = 256;
  std::vector<float> input(blocks * threads * 4 + 4);
  float* aligned = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(input.data()) + 15) / 16 * 16);
  double expected = 0.0;
  for (unsigned i = 0; i < blocks * threads * 4; ++i) expected += aligned[i] = float(i % 1013);
  int wrong = 0;
  for (int s = 0; s < seeds; ++s) {
    seed(s);
    std::vector<double> partial(blocks, -1.0);
    double sum = -1.0;
    unsigned ticket = 0;
    const Job job = {aligned, partial.data(), &sum, &ticket, {}};
    EXPECT(launch(sum_kernel<omit>, blocks, threads, 64 + 1024 + 4, job) == cudaSuccess);
    wrong += sum != expected || ticket != 0;
  }
  return wrong;
}

// --------------------------------------------------------------------------------------------------- parts of a block

// Four parts of two warps each. In a part, one warp reads what the other wrote. omit: a part that does not wait.
__global__ void parts_kernel(int* errors, int omit) {
  int* values = reinterpret_cast<int*>(shared_memory());
  const int part = int(threadIdx.x) / 64, other = int(threadIdx.x) ^ 32;
  for (int round = 0; round <= part; ++round) {  // some parts go on while others still wait
    values[threadIdx.x] = 1000 * round + int(threadIdx.x);
    if (part != omit) segfuse_shim::part_barrier(1 + part, 64);
    atomicAdd(errors, int(values[other] != 1000 * round + other));
    if (part != omit) segfuse_shim::part_barrier(1 + part, 64);
  }
}
__global__ void half_a_part(int) {
  if (threadIdx.x < 32) segfuse_shim::part_barrier(3, 64);
}
__global__ void part_of_no_warp(int) { segfuse_shim::part_barrier(16, 64); }

int wrong_parts(int omit, int seeds) {
  int errors = 0;
  for (int s = 0; s < seeds; ++s) {
    seed(s);
    EXPECT(launch(parts_kernel, 3, 256, 1024, &errors, omit) == cudaSuccess);
  }
  return errors;
}

// ------------------------------------------------------------------------------------------------------------- lanes

__global__ void lanes_kernel(int* errors) {
  const int lane = int(threadIdx.x % 32), segment = lane & ~7;
  const auto check = [&](bool right) { atomicAdd(errors, !right); };
  const double x = lane + 0.25;
  check(__shfl_sync(~0u, x, 5) == 5.25);
  check(__shfl_sync(~0u, x, 11, 8) == segment + 3.25);
  check(__shfl_up_sync(~0u, x, 3u, 8) == (lane - segment >= 3 ? x - 3 : x));
  check(__shfl_down_sync(~0u, x, 3u, 8) == (lane - segment < 5 ? x + 3 : x));
  check(__shfl_xor_sync(~0u, lane, 8, 8) == (lane & 8 ? lane ^ 8 : lane));  // a lower segment may be read
  check(__shfl_sync(~0u, -1ll * lane, 31) == -31ll);
  check(__shfl_xor_sync(~0u, float(lane), 31) == float(31 - lane));
  check(__ballot_sync(~0u, lane % 3 == 0) == 0x49249249u);
  check(__any_sync(~0u, lane == 7) && !__any_sync(~0u, 0) && __all_sync(~0u, 2) && !__all_sync(~0u, lane));
  unsigned expected = 0;
  for (int i = 0; i < 32; ++i) expected |= unsigned(i % 5 == lane % 5) << i;
  check(__match_any_sync(~0u, unsigned(lane % 5)) == expected);
  check(__match_any_sync(~0u, (unsigned long long)(lane % 5) << 40) == expected);
  check(__match_any_sync(~0u, -(lane % 5)) == expected);
  if (lane % 2) {  // half of the warp; the other half is at another collective
    check(__shfl_sync(0xaaaaaaaau, lane, 9) == 9);
  } else {
    check(__ballot_sync(0x55555555u, 1) == 0x55555555u);
  }
  check(__syncthreads_count(lane < 3) == 6 && __syncthreads_or(threadIdx.x == 60) && !__syncthreads_and(lane));
  check(__popc(255u) == 8 && __ffs(8) == 4 && __clz(1) == 31 && __clz(0) == 32 && __brev(1u) == 0x80000000u);
  check(__uint_as_float(__float_as_uint(1.5f)) == 1.5f && __int_as_float(__float_as_int(-2.0f)) == -2.0f);
}

__global__ void index_kernel(unsigned* seen) {
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  atomicAdd(seen + block * 30 + thread, 1u);
}

// -------------------------------------------------------------------------------------------- a wait that nobody ends

__global__ void waiting_kernel(unsigned* arrived) {
  while (__ldcg(arrived) == 0) __nanosleep(20);
}

// ----------------------------------------------------------------------------------------------------------- mistakes

__global__ void some_exit(int) {
  if (threadIdx.x < 7) return;
  __syncthreads();
}
__global__ void two_barriers(int) {
  if (threadIdx.x < 7)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void mixed_barriers(int) { threadIdx.x < 32 ? (void)__syncthreads_or(1) : __syncthreads(); }
__global__ void exited_lane(int) {
  if (threadIdx.x % 32 == 9) return;
  __syncwarp();
}
__global__ void lane_at_barrier(int) {
  if (threadIdx.x == 9) __syncthreads();
  __shfl_sync(~0u, 1.0f, 0);
  if (threadIdx.x != 9) __syncthreads();
}
__global__ void masks_disagree(int) { __any_sync(threadIdx.x % 32 < 16 ? ~0u : 0xffff8000u, 1); }
__global__ void not_in_mask(int) { __ballot_sync(1u, 1); }
__global__ void inactive_source(int) {
  if (threadIdx.x < 16) __shfl_sync(0xffffu, 1, 20);
}
__global__ void misaligned(const float* p) { __ldcs(reinterpret_cast<const float4*>(p + 1)); }
__global__ void beyond(unsigned bytes) { reinterpret_cast<float*>(shared_memory())[bytes / 4 + 1] = 1.0f; }
__global__ void trap(int) { __trap(); }
__global__ void nothing(int) {}

// Runs in a child, which must abort and say `message`.
template <class Action>
void expect_abort(const char* message, Action action) {
  int ends[2];
  EXPECT(pipe(ends) == 0);
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    action();
    _exit(0);
  }
  close(ends[1]);
  std::string said;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) said.append(buffer, size_t(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  const bool caught = status != 0 && said.find(message) != std::string::npos;
  if (!caught || std::getenv("VERBOSE")) std::printf("--- expected: %s\n%s", message, said.c_str());
  EXPECT(caught);
}

__global__ void poison_kernel(int* clean) {
  const unsigned char* s = shared_memory();
  *clean += !std::isnan(reinterpret_cast<const float*>(s)[0]) + !std::isnan(reinterpret_cast<const double*>(s)[1]);
  shared_memory()[0] = 0;  // the next block must not see it
}

__global__ void barriers_kernel(unsigned* x) {
  for (int i = 0; i < 100; ++i) __syncthreads();
  if (threadIdx.x == 0) ++*x;
}
__global__ void shuffles_kernel(unsigned* x) {
  unsigned v = threadIdx.x;
  for (int i = 0; i < 100; ++i) v = __shfl_xor_sync(~0u, v, 1);
  if (threadIdx.x == 0) *x += 1 + v;
}

template <class Kernel>
void time_one(const char* name, Kernel kernel) {
  unsigned x = 0;
  launch(kernel, 64, 256, 0, &x);  // touches the stacks
  const auto begin = std::chrono::steady_clock::now();
  launch(kernel, 64, 256, 0, &x);
  const double ns = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count();
  EXPECT(x == 128);
  std::printf("%s: 64 blocks x 256 threads x 100: %.1f ms, %.1f ns a switch\n", name, ns / 1e6,
              ns / (64 * 256 * 100.0));
}

int main() {
  EXPECT(wrong_sums<Omit::nothing>(20) == 0);
  EXPECT(wrong_sums<Omit::barrier_of_sum>(20) > 0);
  EXPECT(wrong_sums<Omit::barrier_of_ticket>(20) > 0);
  EXPECT(wrong_sums<Omit::warp_sync>(20) > 0);
  EXPECT(wrong_parts(-1, 20) == 0);
  EXPECT(wrong_parts(2, 20) > 0);

  for (int s = 0; s < 20; ++s) {
    seed(s);
    int errors = 0, clean = 0;
    unsigned seen[2 * 3 * 2 * 30] = {};
    EXPECT(launch(lanes_kernel, 3, 64, 0, &errors) == cudaSuccess && errors == 0);
    EXPECT(launch(index_kernel, dim3(2, 3, 2), dim3(5, 3, 2), 0, seen) == cudaSuccess);
    for (unsigned n : seen) EXPECT(n == 1);
    EXPECT(launch(poison_kernel, 8, 1, 16, &clean) == cudaSuccess && clean == 0);
  }

  EXPECT(cudaFuncSetAttribute(beyond, cudaFuncAttributeMaxDynamicSharedMemorySize, 232449) == cudaErrorInvalidValue);
  EXPECT(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 100000) == cudaSuccess);
  EXPECT(launch(nothing, 1, 32, 100000, 0) == cudaSuccess);
  expect_abort("allowed are 49152", [] { _exit(launch(trap, 1, 32, 49153, 0) == cudaErrorInvalidValue); });

  expect_abort("was lowered", [] {
    for (const int bytes : {100000, 99999})
      cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  });

  const auto expect_report = [](const char* message, auto kernel, auto argument) {
    expect_abort(message, [=] { launch(kernel, 2, 64, 256, argument); });
  };
  expect_report("divergent __syncthreads: 57 threads wait at a barrier, 7 have exited", some_exit, 0);
  expect_report("threads 0-6 exited", some_exit, 0);
  expect_report("kernel some_exit", some_exit, 0);
  expect_report("divergent bar.sync: 32 threads wait at barrier 3 for more", half_a_part, 0);
  expect_report("id 16, 64 threads", part_of_no_warp, 0);
  expect_report("wait at different barriers", two_barriers, 0);
  expect_report("wait at different barriers", mixed_barriers, 0);
  expect_report("lane that has exited", exited_lane, 0);
  expect_report("names lane 9, which is at __syncthreads", lane_at_barrier, 0);
  expect_report("disagree on the mask", masks_disagree, 0);
  expect_report("does not name the calling lane", not_in_mask, 0);
  expect_report("reads lane 20, which is not in the mask", inactive_source, 0);
  alignas(16) static float numbers[8];
  expect_report("misaligned access at selftest.cu", misaligned, numbers);
#if defined(__SANITIZE_ADDRESS__)
  expect_report("heap-buffer-overflow", beyond, 256u);
#else
  expect_report("past the end of shared memory", beyond, 256u);
#endif
  expect_report("__trap() at selftest.cu", trap, 0);
  expect_abort("impossible grid", [] { launch(nothing, 0, 32, 0, 0); });
  expect_abort("impossible block", [] { launch(nothing, 1, 1025, 0, 0); });
  expect_abort("a spin-wait", [] {
    setenv("SEGFUSE_SHIM_PATIENCE", "100000", 1);
    unsigned arrived = 0;
    launch(waiting_kernel, 1, 64, 0, &arrived);
  });

  time_one("__syncthreads", barriers_kernel);
  time_one("__shfl_xor_sync", shuffles_kernel);
  std::printf(failures ? "%d failures\n" : "all passed\n", failures);
  return failures != 0;
}
