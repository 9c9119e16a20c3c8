// The three steps on a GPU: statistics, head, gradient, on the caller's stream. Nothing here allocates or waits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <vector>

#include "../problem.h"
#include "../trace.h"

namespace segfuse {

Trace& trace();

using Executor = cudaStream_t;

// The steps that csrc/binding.h calls. Every address is on the current device.
MemorySizes memory_sizes(const Plan& plan, const Sizes& sizes);

void statistics(const Call& call, const Buffers& buffers, Executor stream);
void head(const Call& call, const Buffers& buffers, int halves, Executor stream);

// problem.output: the values of an unreduced loss, or the gradient if one is wanted. True if it wrote the gradient.
bool forward(const Call& call, const Buffers& buffers, Executor stream);

// upstream: the gradient of the loss, in the loss's type (null if problem.has_upstream). prefilled: problem.output
// holds what the forward has written there.
void backward(const Call& call, const Buffers& buffers, const void* upstream, bool prefilled, Executor stream);

// Up to so many rows the head is one launch of one block.
constexpr int64_t kFewRows = 2048;

// Copies words from the host into device memory, as arguments of a kernel: the host does not wait, a graph can record
// it, and the host's memory is free again on return.
void write_words(uint64_t* to, const uint64_t* from, int64_t count, cudaStream_t stream);

// Why no kernel will ever run on the current device: no code for it, or an old driver. "" if kernels can run. Throws
// errors that pass, such as the failure of another library's kernel.
std::string unusable();

// Loads every kernel onto the current device: a first launch inside a graph's capture would be an error.
void warmup();

std::vector<std::string> kernel_names();

}  // namespace segfuse
