#include <stdexcept>

#include "policy.h"
#include "steps.h"

namespace segfuse {
namespace {

constexpr double kNeverTheWeight = -1;  // no sum of weights is: nothing has been written ahead

void launch(Step step, const Kernel& kernel, const Job& job, int64_t blocks, int64_t shared_bytes, bool cooperative,
            cudaStream_t stream) {
  if (shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)),
          kernel.name);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(unsigned(kernel.threads));
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cooperative ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel.function, job), kernel.name);
  const bool reads = step != Step::head, writes = step != Step::head && step != Step::statistics;
  trace().pass(kernel.name, "cuda", job.plan, job.problem, reads, writes);
}

void launch(Step step, const Job& job, int64_t blocks, cudaStream_t stream) {
  if (blocks == 0) return;
  const Kernel& kernel = *kernel_for(step, job);
  const int64_t shared_bytes = kernel.key.engine == Engine::tile
                                   ? tile_bytes(job.plan, job.problem, job.tile_pixels, step == Step::statistics)
                                   : kernel.shared_bytes;
  launch(step, kernel, job, blocks, shared_bytes, false, stream);
}

// As many blocks as are resident at once, for they wait for one another.
void launch_serial(Job& job, cudaStream_t stream) {
  const Kernel& kernel = *kernel_for(Step::serial, job);
  const int64_t shared_bytes = serial_bytes(job, kernel);
  int device = 0, processors = 0, resident = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "device attribute");
  if (shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)),
          kernel.name);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel.function, kernel.threads, size_t(shared_bytes)),
        kernel.name);
  int64_t blocks = int64_t(processors) * resident;
  if (blocks == 0) throw std::runtime_error("segfuse: sample_serial needs more shared memory than the device has");
  job.serial_groups = serial_groups(job, blocks);
  blocks -= blocks % job.serial_groups;
  launch(Step::serial, kernel, job, blocks, shared_bytes, true, stream);
}

}  // namespace

Trace& trace() {
  static Trace instance;
  return instance;
}

int64_t partial_size(const Plan& plan, const Problem& problem) {
  const Layout layout(plan, problem);
  return cut_of(layout, problem.pixels).count * layout.unit_sums();
}

int64_t head_workspace_size(const Plan& plan, const Problem& problem) {
  return Head::workspace_size(plan, problem, OutputMap{plan, problem, nullptr}.count());
}

int64_t vector_size(const Plan& plan, const Problem& problem) { return Head::vector_size(plan, problem); }

int64_t workspace_size(const Plan& plan, const Problem& problem) {
  const Layout layout(plan, problem);
  return partial_size(plan, problem) + layout.units * layout.unit_sums() + head_workspace_size(plan, problem) +
         vector_size(plan, problem) + problem.samples;
}

bool forward(const Plan& plan, const Problem& problem, const Constants& constants, const Outputs& outputs,
             double* workspace, Scheme wanted, cudaStream_t stream) {
  Job job = make_job(plan, problem, constants);
  job.partial = workspace;
  job.sums = job.partial + partial_size(plan, problem);
  job.head_workspace = job.sums + job.layout.units * job.layout.unit_sums();
  job.vector = job.head_workspace + head_workspace_size(plan, problem);
  job.head_parts = kAdd | kGather | kFinish;
  job.loss = plan.unreduced() ? nullptr : outputs.loss;
  job.terms = outputs.terms;
  job.slopes = outputs.slopes;
  const Scheme scheme = scheme_for(job, wanted);
  job.ahead = outputs.ahead;
  if (scheme == Scheme::two_pass)
    job.assumed_weight = kNeverTheWeight;
  else if (plan.point_count && plan.reduction != Reduction::sum)
    job.assumed_weight = double(problem.samples * (plan.joint ? 1 : problem.classes) * problem.pixels);
  if (scheme == Scheme::sample_serial) {
    job.arrived = reinterpret_cast<unsigned*>(workspace + workspace_size(plan, problem) - problem.samples);
    check(cudaMemsetAsync(job.arrived, 0, size_t(problem.samples) * sizeof(unsigned), stream), "arrived");
    launch_serial(job, stream);
  } else {
    launch(scheme == Scheme::two_pass ? Step::statistics : Step::both, job, job.cut.count, stream);
  }
  launch(Step::head, job, 1, stream);
  if (plan.unreduced()) launch(Step::values, job, job.cut.count, stream);
  return scheme != Scheme::two_pass;
}

void statistics(const Plan& plan, const Problem& problem, const Constants& constants, double* sums, double* partial,
                cudaStream_t stream) {
  Job job = make_job(plan, problem, constants);
  job.partial = partial;
  job.sums = sums;
  job.head_parts = kAdd;
  launch(Step::statistics, job, job.cut.count, stream);
  launch(Step::head, job, 1, stream);
}

void head(const Plan& plan, const Problem& problem, const Constants& constants, const Outputs& outputs, double* sums,
          double* workspace, double* vector, int parts, cudaStream_t stream) {
  Job job{};
  job.plan = settled(plan, problem);
  job.problem = problem;
  job.constants = constants;
  job.layout = Layout(plan, problem);
  job.sums = sums;
  job.head_workspace = workspace;
  job.vector = vector;
  job.head_parts = parts;
  job.loss = outputs.loss;
  job.terms = outputs.terms;
  job.slopes = outputs.slopes;
  job.ahead = outputs.ahead;
  job.assumed_weight = kNeverTheWeight;
  launch(Step::head, job, 1, stream);
}

void backward(const Plan& plan, const Problem& problem, const Constants& constants, const void* slopes,
              const void* upstream, const float* ahead, cudaStream_t stream) {
  Job job = make_job(plan, problem, constants);
  job.slopes = const_cast<void*>(slopes);
  job.upstream = upstream;
  job.ahead = const_cast<float*>(ahead);
  launch(Step::gradient, job, job.cut.count, stream);
}

std::string unusable() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, head_kernels().begin->function);
  if (status == cudaSuccess) return "";
  cudaGetLastError();
  return cudaGetErrorString(status);
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
