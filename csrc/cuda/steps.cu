#include <algorithm>
#include <limits>
#include <mutex>
#include <set>
#include <stdexcept>

#include "policy.h"
#include "steps.h"

namespace segfuse {
namespace {

// A kernel may have more than 48 KB of shared memory once it is told so. Once per device, and all that a block can
// have: if each call set the size that it needs, one thread could lower it between another's setting and launch.
void allow_shared_memory(const Kernel& kernel) {
  static std::mutex mutex;
  static std::set<std::pair<int, const Kernel*>> allowed;
  int device = 0, most = 0;
  check(cudaGetDevice(&device), "device");
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed.count({device, &kernel})) return;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "device attribute");
  check(cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, most), kernel.name);
  allowed.insert({device, &kernel});
}

void launch(Step step, const Job& job, int64_t blocks, cudaStream_t stream) {
  if (blocks == 0) return;
  if (blocks > std::numeric_limits<int32_t>::max())
    throw std::invalid_argument("logits: " + std::to_string(job.layout.units) +
                                " rows of pixels are too many for a GPU");
  const Kernel& kernel = *kernel_for(step, job);
  const int64_t shared_bytes = kernel.shared_bytes + tile_bytes(kernel, job);
  if (shared_bytes > 48 * 1024) allow_shared_memory(kernel);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(unsigned(kernel.threads));
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel.function, job), kernel.name);
  if (step == Step::rescale) {  // if there is anything to multiply by
    const int64_t bytes = Trace::output_bytes(job.plan, job.problem);
    return trace().event(kernel.name, "cuda", bytes, bytes);
  }
  const bool reads = step != Step::head && step != Step::add;
  trace().pass(kernel.name, "cuda", job.plan, job.problem, reads, reads && step != Step::statistics);
}

void add_chunks(const Job& job, cudaStream_t stream) {
  if (job.cut.per_unit == 1) return;  // the chunks' sums are the units'; those of no chunks are to be 0
  const int64_t sums = job.layout.units * job.layout.unit_sums();
  launch(Step::add, job, job.cut.per_unit > kFewChunks ? sums : (sums + kWarps - 1) / kWarps, stream);
}

// Of kGather and kFinish.
void run_head(Job& job, int parts, cudaStream_t stream) {
  const bool one_output = OutputMap{job.plan, job.problem, nullptr}.count() == 1;
  const int first = parts & kGather ? kScore : 0, middle = parts & kFinish ? kPool | (one_output ? kReduce : 0) : 0;
  const auto go = [&](int phases, int blocks) {
    job.head_phases = phases;
    launch(Step::head, job, blocks, stream);
  };
  if (job.score_blocks == 1) {
    job.block_totals = job.vector;
    return go(first | (parts & kFinish ? kPool | kReduce | kSlopes : 0), 1);
  }
  if (first) go(first, job.score_blocks);
  if (first || middle) go((first ? kTotal : 0) | middle, 1);
  if (!(parts & kFinish)) return;
  if (!one_output) go(kReduce, job.score_blocks);
  go(kSlopes, job.score_blocks);
}

void set_head(Job& job, const Outputs& outputs, double* workspace, double* vector) {
  job.head_workspace = workspace;
  job.score_blocks = head_blocks(job.problem);
  job.block_totals =
      workspace + head_workspace_size(job.plan, job.problem) - job.score_blocks * Head::totals_size(job.plan);
  job.vector = vector;
  job.loss = outputs.loss;
  job.terms = outputs.terms;
  job.slopes = outputs.slopes;
}

// A few blocks per processor, which take turns: mostly there is nothing to do.
int64_t rescale_blocks(const Problem& p) {
  int device = 0, processors = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "device attribute");
  const int64_t elements = p.samples * p.classes * p.pixels, per_block = 64 * kThreads / size_of(p.output.dtype);
  return std::min<int64_t>((elements + per_block - 1) / per_block, 4 * processors);
}

}  // namespace

Trace& trace() {
  static Trace instance;
  return instance;
}

int64_t partial_size(const Plan& plan, const Problem& problem) {
  const Layout layout(plan, problem);
  const Cut cut = cut_of(layout.units, layout.unit_sums(), problem.pixels);
  return cut.per_unit > 1 ? cut.count * layout.unit_sums() : 0;
}

int64_t head_workspace_size(const Plan& plan, const Problem& problem) {
  return Head::workspace_size(plan, problem, OutputMap{plan, problem, nullptr}.count()) +
         head_blocks(problem) * Head::totals_size(plan);
}

int64_t vector_size(const Plan& plan, const Problem& problem) { return Head::vector_size(plan, problem); }

int64_t workspace_size(const Plan& plan, const Problem& problem) {
  const Layout layout(plan, problem);
  return partial_size(plan, problem) + layout.units * layout.unit_sums() + head_workspace_size(plan, problem) +
         vector_size(plan, problem);
}

bool forward(const Plan& plan, const Problem& problem, const Constants& constants, const Outputs& outputs,
             double* workspace, Scheme wanted, cudaStream_t stream) {
  Job job = make_job(plan, problem, constants);
  job.sums = workspace;
  double* const behind = job.sums + job.layout.units * job.layout.unit_sums();
  job.partial = job.cut.per_unit > 1 ? behind : job.sums;
  double* const head_workspace = behind + partial_size(plan, problem);
  set_head(job, outputs, head_workspace, head_workspace + head_workspace_size(plan, problem));
  if (plan.unreduced()) job.loss = nullptr;
  const Scheme scheme = scheme_for(job, wanted);
  if (scheme == Scheme::gradient_in_forward) job.foreseen = foreseen_scale(job);
  launch(scheme == Scheme::two_pass ? Step::statistics : Step::both, job, job.cut.count, stream);
  add_chunks(job, stream);
  run_head(job, kGather | kFinish, stream);
  if (plan.unreduced()) launch(Step::values, job, job.cut.count, stream);
  return scheme != Scheme::two_pass;
}

void statistics(const Plan& plan, const Problem& problem, const Constants& constants, double* sums, double* partial,
                cudaStream_t stream) {
  Job job = make_job(plan, problem, constants);
  job.sums = sums;
  job.partial = job.cut.per_unit > 1 ? partial : sums;
  launch(Step::statistics, job, job.cut.count, stream);
  add_chunks(job, stream);
}

void head(const Plan& plan, const Problem& problem, const Constants& constants, const Outputs& outputs, double* sums,
          double* workspace, double* vector, int parts, cudaStream_t stream) {
  Job job{};
  job.plan = settled(plan, problem);
  job.problem = problem;
  job.constants = constants;
  job.layout = Layout(plan, problem);
  job.sums = sums;
  set_head(job, outputs, workspace, vector);
  run_head(job, parts, stream);
}

void backward(const Plan& plan, const Problem& problem, const Constants& constants, const void* slopes,
              const void* upstream, bool ahead, cudaStream_t stream) {
  Job job = make_job(plan, problem, constants);
  job.cut = cut_of(job.layout.units, 0, problem.pixels);  // it makes no sums, whose memory would limit the chunks
  job.slopes = const_cast<void*>(slopes);
  job.upstream = upstream;
  if (ahead)
    launch(Step::rescale, job, rescale_blocks(problem), stream);
  else
    launch(Step::gradient, job, job.cut.count, stream);
}

void warmup() {
  load_words_kernel();
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
