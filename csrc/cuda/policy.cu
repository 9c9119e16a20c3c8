#include <algorithm>
#include <stdexcept>

#include "dense.h"
#include "policy.h"

namespace segfuse {

const std::vector<KernelTable>& kernel_tables() {
  static const std::vector<KernelTable> all{head_kernels(), sigmoid_kernels(),         label_map_kernels(),
                                            tile_kernels(), softmax_general_kernels(), rescale_kernels()};
  return all;
}

namespace {

const Kernel* find(const Key& key) {
  for (const KernelTable& table : kernel_tables())
    for (size_t i = 0; i < table.count; ++i)
      if (table.begin[i].key == key) return &table.begin[i];
  return nullptr;
}

// Whether positions are neighbours in memory, and groups of `group` of them can be loaded at once.
bool is_array(const View& v, int64_t group) {
  const int64_t size = size_of(v.dtype), aligned = group * size < 16 ? group * size : 16;
  const auto whole = [&](int64_t bytes) { return bytes % aligned == 0; };
  return v.dims == 1 && v.stride[0] == 1 && whole(int64_t(reinterpret_cast<uintptr_t>(v.data))) &&
         whole(v.sample_stride * size) && whole(v.class_stride * size);
}

// Whether the dense engines can read and write everything.
bool all_arrays(const Problem& p, Step step) {
  const int64_t group = 16 / size_of(p.logits.dtype);
  const Dtype t = p.target.dtype;
  const bool soft = !p.label_map && (t == Dtype::f16 || t == Dtype::bf16 || t == Dtype::f32);
  return p.pixels % group == 0 && (is_dense_label(t) || soft) && is_array(p.logits, group) &&
         is_array(p.target, group) &&
         (!p.has_weight || (is_dense_weight(p.weight.dtype) && is_array(p.weight, group))) &&
         (!p.has_upstream || is_array(p.upstream, group)) && (step == Step::statistics || is_array(p.output, group));
}

PointwiseSet pointwise_of(const Plan& plan) {
  if (plan.pointwise_count == 0) return PointwiseSet::none;
  if (plan.pointwise_count > 1) return PointwiseSet::any;
  switch (plan.pointwise[0].kind) {
    case PointwiseKind::bce_with_logits:
      return PointwiseSet::bce;
    case PointwiseKind::cross_entropy:
      return PointwiseSet::cross_entropy;
    case PointwiseKind::focal_square:
      return plan.sums_labels() ? PointwiseSet::any : PointwiseSet::focal_square;
    default:
      return PointwiseSet::any;
  }
}

// Shared memory of a tile: what two blocks of an sm_80, or one of an sm_86 or sm_120, can have; less if the device has
// less.
int64_t tile_memory() {
  int device = 0, most = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "device attribute");
  return most < 81920 ? most : 81920;
}

// Whether the gradient can be written before the mean is known: it then lacks one factor, the same in all pixels.
bool has_one_factor(const Plan& plan, const Problem& p) {
  for (int k = 0; k < plan.pointwise_count; ++k)
    if (plan.pointwise[k].balance == Balance::balanced || plan.pointwise[k].weight_in_denominator) return false;
  const bool one = plan.reduction == Reduction::mean || plan.reduction == Reduction::sum;
  return plan.region_count == 0 && one && p.logits.dtype != Dtype::f16 && p.samples * p.pixels > 0;
}

// Whether every pixel is likely to count, so that the gradient will not have to be multiplied.
bool is_likely(const Job& job) {
  const bool soft_ignore = job.plan.has_ignore && !job.problem.has_labels();
  // -100 is the default of cross-entropy: it says nothing about the labels.
  return !job.problem.has_weight && !soft_ignore && (!job.can_ignore || job.plan.ignore_index == -100);
}

// Errors of kernels that were launched before the call. They stay until the process ends.
bool is_fault(cudaError_t status) {
  switch (status) {
    case cudaErrorECCUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
      return true;
    default:
      return false;
  }
}

// Errors that last as long as the process: no code for the device, or no driver that takes the code.
bool is_lasting(cudaError_t status) {
  switch (status) {
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorNoDevice:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilationDisabled:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
      return true;
    default:
      return false;
  }
}

}  // namespace

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  const std::string error = cudaGetErrorString(status);
  if (is_fault(status))
    throw std::runtime_error("segfuse: a kernel that ran before on this device failed, of whatever library: " + error +
                             ". CUDA_LAUNCH_BLOCKING=1 shows which");
  cudaGetLastError();  // clears the error: the next caller must not see it
  throw std::runtime_error(std::string("segfuse: ") + what + ": " + error);
}

std::string unusable() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel_tables().front().begin->function);
  if (!is_lasting(status)) {
    check(status, "device");
    return "";
  }
  cudaGetLastError();
  std::string reason = cudaGetErrorString(status);
  if (status == cudaErrorNoKernelImageForDevice)
    reason += " (this build holds no code for the device; python -m segfuse lists its architectures)";
  return reason;
}

// Chunks are larger if there are many of them: what a block does beside its pixels costs as much as 1,000 pixels. The
// partial sums of all chunks together stay below half a megabyte, or below 0.9 MB less the other memory of the domains
// (sums, slopes, the head) if that is more. A chunk is at most a domain. domain_sums: 0 if the kernel makes no sums.
Chunks chunks_of(int64_t domains, int64_t domain_sums, int64_t pixels) {
  constexpr int64_t kSmallest = 4096, kLargest = 16384, kMany = 1024;
  constexpr int64_t kStep = 256, kFewestPartials = 65536, kPartials = 114688;
  const int64_t sums = domains * domain_sums;
  Chunks chunks{pixels, kSmallest, 0, 0};
  const auto per_domain = [&] { return (chunks.pixels + chunks.size - 1) / chunks.size; };
  while (chunks.size < kLargest && domains * per_domain() >= kMany) chunks.size *= 2;
  const int64_t partials = std::max(kFewestPartials, kPartials - 3 * sums);
  const int64_t most = sums ? std::max<int64_t>(partials / sums, 1) : per_domain();
  if (per_domain() > most) chunks.size = ((chunks.pixels + most - 1) / most + kStep - 1) / kStep * kStep;
  chunks.per_domain = per_domain();
  chunks.count = domains * chunks.per_domain;
  return chunks;
}

int head_blocks(const Sizes& sizes) {
  constexpr int64_t kRowsPerBlock = 512, kMostBlocks = 256;
  const int64_t rows = sizes.samples * sizes.classes;
  return rows <= kFewRows ? 1 : int(std::min((rows + kRowsPerBlock - 1) / kRowsPerBlock, kMostBlocks));
}

const Kernel* kernel_for(Step step, const Job& job) {
  const Plan& plan = job.plan;
  const Problem& p = job.problem;
  const Dtype real = p.wide ? Dtype::f64 : Dtype::f32;
  if (step == Step::add) return find({step, Engine::head, Dtype::f64, LinkKind::sigmoid, PointwiseSet::any, true, 0});
  if (step == Step::head) return find({step, Engine::head, real, LinkKind::sigmoid, PointwiseSet::any, true, 0});
  if (step == Step::rescale)
    return find({step, Engine::rescale, p.logits.dtype, LinkKind::sigmoid, PointwiseSet::any, true, 0});
  const PointwiseSet set = pointwise_of(plan);
  if (plan.fits_label_map(p.label_map) && !p.wide &&
      (set == PointwiseSet::none || set == PointwiseSet::cross_entropy) && all_arrays(p, step))
    if (const Kernel* k = find(
            {step, Engine::label_map, p.logits.dtype, plan.link, PointwiseSet::cross_entropy, false, int(p.classes)}))
      return k;
  if (job.tile.pixels && step != Step::values) {
    const Engine engine = tile_engine(job, step);
    return find({step, engine, p.logits.dtype, plan.link,
                 job.tile.plain ? PointwiseSet::cross_entropy : PointwiseSet::any, false, tile_slots(job, engine)});
  }
  if (step == Step::fused && plan.multiclass) return nullptr;
  if (plan.multiclass) return find({step, Engine::softmax_general, real, plan.link, PointwiseSet::any, true, 0});
  if (plan.link == LinkKind::sigmoid && !p.wide && all_arrays(p, step))
    for (const PointwiseSet terms : {set, PointwiseSet::any})
      for (const bool extra : {plan.sums_extra(), true})
        if (const Kernel* k = find({step, Engine::sigmoid, p.logits.dtype, plan.link, terms, extra, 0})) return k;
  if (step == Step::fused) return nullptr;
  return find({step, Engine::strided_sigmoid, real, plan.link, PointwiseSet::any, true, 0});
}

Scheme scheme_for(const Job& job, Scheme wanted) {
  if (job.plan.unreduced() && wanted == Scheme::gradient_in_forward)
    throw std::invalid_argument("scheme: a loss per element has its gradient in a pass of its own (two_pass)");
  if (wanted == Scheme::two_pass || !job.problem.output.data || job.plan.unreduced()) return Scheme::two_pass;
  const bool can_assume = has_one_factor(job.plan, job.problem) && kernel_for(Step::fused, job);
  if (wanted == Scheme::gradient_in_forward && !can_assume)
    throw std::invalid_argument(
        "scheme: gradient_in_forward is for a mean or a sum of BCE in planes, or of one pointwise loss of class "
        "indices, in float32 and bfloat16");
  return can_assume && (wanted == Scheme::gradient_in_forward || is_likely(job)) ? Scheme::gradient_in_forward
                                                                                 : Scheme::two_pass;
}

double assumed_scale(const Job& job) {
  const Problem& p = job.problem;
  const int64_t pixels = p.samples * p.pixels * (job.plan.multiclass ? 1 : p.classes);
  return job.plan.reduction == Reduction::mean ? 1 / double(pixels) : 1;
}

Job make_job(const Call& call) {
  const Plan& plan = call.plan;
  const Problem& problem = call.problem;
  Job job{};
  job.plan = resolve(plan, problem);
  job.problem = problem;
  job.constants = call.constants;
  job.layout = Layout(plan, problem);
  job.chunks = chunks_of(job.layout.domains, job.layout.domain_sums(), problem.pixels);
  job.can_ignore = plan.has_ignore && problem.has_labels() && holds(problem.target.dtype, plan.ignore_index);
  if (plan.fits_label_map(problem.label_map) && !problem.wide && problem.pixels <= INT32_MAX)
    choose_tile(job, tile_memory());
  return job;
}

}  // namespace segfuse
