// Which kernels a call runs, over which chunks, by which scheme. All decisions stand in policy.cu.
#pragma once

#include <vector>

#include "kernels.h"
#include "steps.h"

namespace segfuse {

const std::vector<KernelTable>& kernel_tables();

// Throws what CUDA reports.
void check(cudaError_t status, const char* what);

Chunks chunks_of(int64_t domains, int64_t domain_sums, int64_t pixels);

// The blocks of the head's phases that go over all rows: by their number alone. 1: all phases in one launch.
int head_blocks(const Sizes& sizes);

// All of a job but the addresses of its outputs.
Job make_job(const Call& call);

// The kernel for a step: the most special one that there is. Null: none, which only Step::fused may meet.
const Kernel* kernel_for(Step step, const Job& job);

void load_words_kernel();  // words.cu

// The scheme of a call that has been given its gradient (job.problem.output); throws if the wanted one cannot be.
Scheme scheme_for(const Job& job, Scheme wanted);

// The factor of the mean if every pixel counts: what the head would find.
double assumed_scale(const Job& job);

}  // namespace segfuse
