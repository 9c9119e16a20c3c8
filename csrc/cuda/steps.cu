#include "policy.h"
#include "steps.h"

namespace segfuse {
namespace {

void launch(Step step, const Job& job, int64_t blocks, cudaStream_t stream) {
  if (blocks == 0) return;
  const Kernel& kernel = *kernel_for(step, job);
  const int64_t shared_bytes = kernel.key.engine == Engine::tile
                                   ? tile_bytes(job.plan, job.problem, job.tile_pixels, step == Step::statistics)
                                   : kernel.shared_bytes;
  if (shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)),
          kernel.name);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(unsigned(kernel.threads));
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel.function, job), kernel.name);
  const bool reads = step != Step::head, writes = step != Step::head && step != Step::statistics;
  trace().pass(kernel.name, "cuda", job.plan, job.problem, reads, writes);
}

}  // namespace

Trace& trace() {
  static Trace instance;
  return instance;
}

int64_t workspace_size(const Plan& plan, const Problem& problem) {
  const Layout layout(plan, problem);
  return (make_job(plan, problem, {}).cut.count + layout.units) * layout.unit_sums() +
         Head::workspace_size(plan, problem, OutputMap{plan, problem, nullptr}.count());
}

bool forward(const Plan& plan, const Problem& problem, const Constants& constants, const Outputs& outputs,
             double* workspace, Scheme wanted, cudaStream_t stream) {
  Job job = make_job(plan, problem, constants);
  job.partial = workspace;
  job.sums = job.partial + job.cut.count * job.layout.unit_sums();
  job.head_workspace = job.sums + job.layout.units * job.layout.unit_sums();
  job.loss = plan.unreduced() ? nullptr : outputs.loss;
  job.terms = outputs.terms;
  job.slopes = outputs.slopes;
  const bool foresees = scheme_for(job, wanted) == Scheme::gradient_in_forward;
  if (foresees) {
    const int64_t count = problem.samples * (plan.joint ? 1 : problem.classes) * problem.pixels;
    job.assumed_scale = plan.reduction == Reduction::mean ? 1 / double(count) : 1;
    job.correction = outputs.correction;
  }
  launch(foresees ? Step::both : Step::statistics, job, job.cut.count, stream);
  launch(Step::head, job, 1, stream);
  if (plan.unreduced()) launch(Step::values, job, job.cut.count, stream);
  return foresees;
}

void backward(const Plan& plan, const Problem& problem, const Constants& constants, const void* slopes,
              const void* upstream, cudaStream_t stream) {
  Job job = make_job(plan, problem, constants);
  job.slopes = const_cast<void*>(slopes);
  job.upstream = upstream;
  launch(Step::gradient, job, job.cut.count, stream);
}

void rescale(void* gradient, Dtype dtype, int64_t count, const float* correction, const float* upstream,
             cudaStream_t stream) {
  Job job{};
  job.problem.samples = job.problem.classes = 1;
  job.problem.pixels = count;
  job.problem.output.data = gradient;
  job.problem.output.dtype = dtype;
  job.correction = const_cast<float*>(correction);
  job.upstream = upstream;
  // Few blocks: most calls find a factor of 1 and leave.
  const int64_t blocks = (count + 65535) / 65536;
  launch(Step::rescale, job, blocks < 1024 ? blocks : 1024, stream);
}

void warmup() {
  for (const KernelTable& table : tables())
    for (size_t i = 0; i < table.count; ++i) {
      cudaFuncAttributes attributes;
      check(cudaFuncGetAttributes(&attributes, table.begin[i].function), table.begin[i].name);
    }
}

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const KernelTable& table : tables())
    for (size_t i = 0; i < table.count; ++i) names.push_back(table.begin[i].name);
  return names;
}

}  // namespace segfuse
