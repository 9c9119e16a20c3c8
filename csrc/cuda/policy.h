// Which kernels a call runs, over which chunks, by which scheme. All decisions stand in policy.cu.
#pragma once

#include <vector>

#include "kernels.h"
#include "steps.h"

namespace segfuse {

const std::vector<KernelTable>& tables();

// Throws what CUDA reports.
void check(cudaError_t status, const char* what);

Cut cut_of(const Layout& layout, int64_t pixels);

// All of a job but the addresses of its outputs.
Job make_job(const Plan& plan, const Problem& problem, const Constants& constants);

// The kernel for a step: the most special one that there is. Null: none, which only Step::both and Step::serial may
// meet.
const Kernel* kernel_for(Step step, const Job& job);

// The scheme of a call that has been given its gradient (job.problem.output); throws if the wanted one cannot be.
Scheme scheme_for(const Job& job, Scheme wanted);

// Of Step::serial: its shared memory, and how many samples are in work at once.
int64_t serial_bytes(const Job& job, const Kernel& kernel);
int serial_groups(const Job& job, int64_t blocks);

}  // namespace segfuse
