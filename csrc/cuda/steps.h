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
  void* slopes;   // units * unit_slopes
};

// Doubles of device memory that `forward` needs beside its outputs. Of the problem, only the sizes are read.
int64_t workspace_size(const Plan& plan, const Problem& problem);

// Every address is one of the current device's, but those of `constants` where none is used.
void forward(const Plan& plan, const Problem& problem, const Constants& constants, const Outputs& outputs,
             double* workspace, cudaStream_t stream);

// upstream: the gradient of the loss, in the loss's type (null if problem.has_upstream).
void backward(const Plan& plan, const Problem& problem, const Constants& constants, const void* slopes,
              const void* upstream, cudaStream_t stream);

// Loads every kernel onto the current device: a first launch inside a graph's capture would be an error.
void warmup();

std::vector<std::string> kernel_names();

}  // namespace segfuse
