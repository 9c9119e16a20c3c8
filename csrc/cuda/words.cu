// Copies a few words from the host to the device: class weights, coefficients, lists of classes. An ordinary copy from
// pageable memory would make the host wait for the stream, and a graph cannot record it.
#include <algorithm>

#include "policy.h"
#include "steps.h"

namespace segfuse {
namespace {

constexpr int kWords = 480;  // of a launch: its arguments have 4 KB

struct Words {
  uint64_t* to;
  int64_t count;
  uint64_t word[kWords];
};

__global__ void __launch_bounds__(kWords) write_kernel(const __grid_constant__ Words words) {
  if (int64_t(threadIdx.x) < words.count) words.to[threadIdx.x] = words.word[threadIdx.x];
}

}  // namespace

void load_words_kernel() {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, write_kernel), "write_words");
}

void write_words(uint64_t* to, const uint64_t* from, int64_t count, cudaStream_t stream) {
  for (int64_t first = 0; first < count; first += kWords) {
    Words words{to + first, std::min<int64_t>(kWords, count - first), {}};
    std::copy(from + first, from + first + words.count, words.word);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(1);
    config.blockDim = dim3(kWords);
    config.stream = stream;
    check(cudaLaunchKernelEx(&config, write_kernel, words), "write_words");
  }
}

}  // namespace segfuse
