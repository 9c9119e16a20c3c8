#include <algorithm>
#include <limits>
#include <mutex>
#include <set>
#include <stdexcept>

#include "policy.h"
#include "steps.h"

namespace segfuse {
namespace {

// Lets a kernel have more than 48 KB of shared memory. It is done once per device, for all that a block can have: if
// each call set the size that it needs, one host thread could lower it between another's setting and launch.
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
    throw std::invalid_argument("logits: " + std::to_string(job.layout.domains) +
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
  if (step == Step::rescale) {  // these bytes only if there is a factor to multiply by
    const int64_t bytes = Trace::output_bytes(job.plan, job.problem);
    return trace().event(kernel.name, "cuda", bytes, bytes);
  }
  const bool reads = step != Step::head && step != Step::add;
  trace().pass(kernel.name, "cuda", job.plan, job.problem, reads, reads && step != Step::statistics);
}

void add_chunks(const Job& job, cudaStream_t stream) {
  if (job.chunks.per_domain == 1) return;  // chunk sums are domain sums (no chunk: they become 0 below)
  const int64_t sums = job.layout.sums();
  launch(Step::add, job, job.chunks.per_domain > kFewChunks ? sums : (sums + kWarps - 1) / kWarps, stream);
}

// halves: of kGather and kFinish.
void run_head(Job& job, int halves, cudaStream_t stream) {
  const bool one_output = OutputMap{job.plan, job.problem, nullptr}.count() == 1;
  const int first = halves & kGather ? kScore : 0, middle = halves & kFinish ? kPool | (one_output ? kReduce : 0) : 0;
  const auto go = [&](int phases, int blocks) {
    job.head_phases = phases;
    launch(Step::head, job, blocks, stream);
  };
  if (job.score_blocks == 1) {
    job.block_totals = job.vector;
    return go(first | (halves & kFinish ? kPool | kReduce | kSlopes : 0), 1);
  }
  if (first) go(first, job.score_blocks);
  if (first || middle) go((first ? kTotal : 0) | middle, 1);
  if (!(halves & kFinish)) return;
  if (!one_output) go(kReduce, job.score_blocks);
  go(kSlopes, job.score_blocks);
}

int64_t partial_size(const Plan& plan, const Sizes& sizes) {
  const Layout layout(plan, sizes);
  const Chunks chunks = chunks_of(layout.domains, layout.domain_sums(), sizes.pixels);
  return chunks.per_domain > 1 ? chunks.count * layout.domain_sums() : 0;
}

int64_t head_workspace_size(const Plan& plan, const Sizes& sizes) {
  return Head::workspace_size(plan, sizes, OutputMap{plan, sizes, nullptr}.count()) +
         head_blocks(sizes) * Head::totals_size(plan);
}

void set_head(Job& job, const Buffers& buffers) {
  job.sums = buffers.sums;
  job.head_workspace = buffers.workspace;
  job.score_blocks = head_blocks(job.problem);
  job.block_totals =
      buffers.workspace + head_workspace_size(job.plan, job.problem) - job.score_blocks * Head::totals_size(job.plan);
  job.vector = buffers.vector;
  job.loss = buffers.loss;
  job.terms = buffers.terms;
  job.slopes = buffers.slopes;
  job.status = buffers.status;
}

// The sums of all domains, from the sums of their chunks.
void run_statistics(Step step, Job& job, double* partial, cudaStream_t stream) {
  job.partial = job.chunks.per_domain > 1 ? partial : job.sums;
  launch(step, job, job.chunks.count, stream);
  add_chunks(job, stream);
}

// A few blocks per multiprocessor. Each block multiplies several parts of the gradient. Mostly the factor is 1, and the
// blocks do nothing.
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

MemorySizes memory_sizes(const Plan& plan, const Sizes& sizes) {
  MemorySizes m{};
  m.sums = Layout(plan, sizes).sums();
  m.partial = partial_size(plan, sizes);
  m.head_workspace = head_workspace_size(plan, sizes);
  m.vector = Head::vector_size(plan, sizes);
  m.workspace = m.sums + m.partial + m.head_workspace + m.vector;
  return m;
}

bool forward(const Call& call, const Buffers& outputs, Executor stream) {
  const MemorySizes sizes = memory_sizes(call.plan, call.problem);
  Buffers buffers = outputs;
  buffers.sums = outputs.workspace;
  buffers.partial = buffers.sums + sizes.sums;
  buffers.workspace = buffers.partial + sizes.partial;
  buffers.vector = buffers.workspace + sizes.head_workspace;
  Job job = make_job(call);
  set_head(job, buffers);
  if (call.plan.unreduced()) job.loss = nullptr;
  const Scheme scheme = scheme_for(job, call.scheme);
  if (scheme == Scheme::gradient_in_forward) job.assumed = assumed_scale(job);
  run_statistics(scheme == Scheme::two_pass ? Step::statistics : Step::fused, job, buffers.partial, stream);
  run_head(job, kGather | kFinish, stream);
  if (call.plan.unreduced()) launch(Step::values, job, job.chunks.count, stream);
  return scheme != Scheme::two_pass;
}

void statistics(const Call& call, const Buffers& buffers, Executor stream) {
  Job job = make_job(call);
  job.sums = buffers.sums;
  run_statistics(Step::statistics, job, buffers.partial, stream);
}

void head(const Call& call, const Buffers& buffers, int halves, Executor stream) {
  Job job{};
  job.plan = resolve(call.plan, call.problem);
  job.problem = call.problem;
  job.constants = call.constants;
  job.layout = Layout(call.plan, call.problem);
  set_head(job, buffers);
  run_head(job, halves, stream);
}

void backward(const Call& call, const Buffers& buffers, const void* upstream, bool prefilled, Executor stream) {
  Job job = make_job(call);
  job.chunks =
      chunks_of(job.layout.domains, 0, call.problem.pixels);  // it makes no sums, whose memory would limit the chunks
  job.slopes = buffers.slopes;
  job.status = buffers.status;
  job.upstream = upstream;
  if (prefilled)
    launch(Step::rescale, job, rescale_blocks(call.problem), stream);
  else
    launch(Step::gradient, job, job.chunks.count, stream);
}

void warmup() {
  load_words_kernel();
  for (const KernelTable& table : kernel_tables())
    for (size_t i = 0; i < table.count; ++i) {
      cudaFuncAttributes attributes;
      check(cudaFuncGetAttributes(&attributes, table.begin[i].function), table.begin[i].name);
    }
}

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const KernelTable& table : kernel_tables())
    for (size_t i = 0; i < table.count; ++i) names.push_back(table.begin[i].name);
  return names;
}

}  // namespace segfuse
