// Which kernels a call runs, over which chunks, by which scheme. policy.cu decides all of it.
#pragma once

#include <vector>

#include "kernels.h"
#include "steps.h"

namespace segfuse {

const std::vector<KernelTable>& kernel_tables();

// Throws if CUDA reports an error.
void check(cudaError_t status, const char* what);

Chunks chunks_of(int64_t domains, int64_t domain_sums, int64_t pixels);

// How many blocks run the head's phases that go over all rows: by the number of rows alone. 1: all phases in one
// launch.
int head_blocks(const Sizes& sizes);

// A job without the addresses of its outputs.
Job make_job(const Call& call);

// The kernel for a step: the most special one that can run the job. Null if there is none: only for Step::fused.
const Kernel* kernel_for(Step step, const Job& job);

void load_words_kernel();  // words.cu

// The scheme of a call that has its place for the gradient (job.problem.output). Throws if the wanted one is
// impossible.
Scheme scheme_for(const Job& job, Scheme wanted);

// The factor of the mean that the head would find if every pixel counted.
double assumed_scale(const Job& job);

}  // namespace segfuse
