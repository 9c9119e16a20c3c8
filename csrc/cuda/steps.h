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

struct Outputs {
  void* loss;     // float32, or float64 if problem.wide; null where problem.output takes it
  double* terms;  // one value per term and loss element
  void* slopes;   // units * unit_slopes, and one more (job.h)
};

// How the gradient comes about: in a second pass over the inputs, or, of a mean or a sum of one pointwise loss, in the
// first. The latter leaves nothing to the backward unless the upstream gradient is not 1 or pixels did not count: then
// it multiplies. (float16 would underflow before it.)
enum class Scheme : int { automatic, two_pass, gradient_in_forward };

// Doubles of device memory: that `forward` needs beside its outputs, that `statistics` does, and that `head` keeps
// between its halves and hands out in between (head.h). Of the problem, only the sizes are read.
int64_t workspace_size(const Plan& plan, const Problem& problem);
int64_t partial_size(const Plan& plan, const Problem& problem);
int64_t head_workspace_size(const Plan& plan, const Problem& problem);
int64_t vector_size(const Plan& plan, const Problem& problem);

// Every address is one of the current device's. problem.output: that of an unreduced loss, or the gradient if one is
// wanted; true if it has been written.
bool forward(const Plan& plan, const Problem& problem, const Constants& constants, const Outputs& outputs,
             double* workspace, Scheme wanted, cudaStream_t stream);

// Up to so many rows the head is one launch of one block.
constexpr int64_t kFewRows = 2048;

// The halves of the head.
constexpr int kGather = 1, kFinish = 2;

// The steps of a forward one by one. sums: units * unit_sums; parts: of kGather and kFinish.
void statistics(const Plan& plan, const Problem& problem, const Constants& constants, double* sums, double* partial,
                cudaStream_t stream);
void head(const Plan& plan, const Problem& problem, const Constants& constants, const Outputs& outputs, double* sums,
          double* workspace, double* vector, int parts, cudaStream_t stream);

// upstream: the gradient of the loss, in the loss's type (null if problem.has_upstream). ahead: problem.output holds
// what the forward has written there.
void backward(const Plan& plan, const Problem& problem, const Constants& constants, const void* slopes,
              const void* upstream, bool ahead, cudaStream_t stream);

// Copies words from the host into device memory, as arguments of a kernel: nobody waits, a graph may be recorded, and
// the host's memory is free again on return.
void write_words(uint64_t* to, const uint64_t* from, int64_t count, cudaStream_t stream);

// Why no kernel will ever run on the current device ("" if they can): no code for it, an old driver. Throws what
// passes, such as the failure of another library's kernel.
std::string unusable();

// Loads every kernel onto the current device: a first launch inside a graph's capture would be an error.
void warmup();

std::vector<std::string> kernel_names();

}  // namespace segfuse
