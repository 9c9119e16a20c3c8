#include "steps.h"

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <stdexcept>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "../head.h"
#include "denormals.h"
#include "threads.h"

namespace segfuse {
namespace {

// ------------------------------------------------------------------------------------------------------------- chunks

Chunks chunks_of(const Layout& layout, const Problem& p) {
  const int64_t rows = layout.rows_per_domain, sums = layout.domain_sums();
  // A chunk is whole vectors, so that only the end of a domain has to be copied. It is small enough to give two threads
  // work in 256 x 256 binary pixels.
  int64_t size = rows == 1 ? 32768 : std::max<int64_t>(1024, (262144 / rows + 1023) / 1024 * 1024);
  // The partial sums of all chunks together stay below half a megabyte (a chunk is at most a domain).
  while (size < p.pixels && layout.domains * ((p.pixels + size - 1) / size) * sums > 65536) size *= 2;
  const int64_t per_domain = p.pixels ? (p.pixels + size - 1) / size : 0;
  // Chunks of equal size: a short last one would leave a thread idle.
  if (per_domain > 1) size = ((p.pixels + per_domain - 1) / per_domain + 63) / 64 * 64;
  return {p.pixels, size, per_domain, layout.domains * per_domain};
}

// Class factors of multiclass pointwise terms, in the type of the computation.
struct ClassScales {
  std::vector<double> wide[kMaxPointwise];
  std::vector<float> narrow[kMaxPointwise];
};

Job make_job(const Plan& plan, const Problem& problem, const double* class_values, ClassScales& scales) {
  Job job{};
  job.problem = &problem;
  job.plan = resolve(plan, problem);
  job.layout = Layout(plan, problem);
  for (int k = 0; k < plan.pointwise_count; ++k) {
    if (!plan.multiclass || plan.pointwise[k].class_values < 0) continue;
    const double* row = class_values + plan.pointwise[k].class_values * problem.classes;
    if (problem.wide) {
      scales.wide[k].assign(row, row + problem.classes);
      job.class_scale[k] = scales.wide[k].data();
    } else {
      scales.narrow[k].assign(row, row + problem.classes);
      job.class_scale[k] = scales.narrow[k].data();
    }
  }
  return job;
}

// A call, cut into chunks. Steps that read slopes set them in the job.
struct Work {
  const Plan& plan;
  const Problem& problem;
  ClassScales scales;
  Job job;
  const Chunks chunks;

  explicit Work(const Call& call)
      : plan(call.plan),
        problem(call.problem),
        job(make_job(plan, problem, call.constants.class_values, scales)),
        chunks(chunks_of(job.layout, problem)) {}
};

std::string shown(double number, int digits = 9) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*g", digits, number);
  return text;
}

std::string message_of(const ValueReport& bad, const Plan& plan, const Problem& problem) {
  const bool is_label = bad.kind < ValueKind::soft_label;
  const bool is_target = bad.kind != ValueKind::probability;
  const bool is_fraction = bad.kind == ValueKind::float_label && bad.number != std::floor(bad.number);
  const double rounded = std::round(bad.number);  // of a fraction near a whole number more digits are shown
  const int digits = is_fraction && std::fabs(bad.number - rounded) < 1e-6 ? 17 : 9;
  const std::string value = bad.kind == ValueKind::label            ? std::to_string(bad.label)
                            : bad.kind == ValueKind::unsigned_label ? std::to_string(uint64_t(bad.label))
                                                                    : shown(bad.number, digits);
  const std::string range =
      is_label ? "[0, " + std::to_string(problem.label_map ? problem.classes : 2) + ")" : "[0, 1]";
  const std::string noun = is_label ? "label" : "value";
  const std::string wrong = is_fraction ? " is not a whole number; " : " is outside " + range + "; ";
  std::string message = (is_target ? "target: " : "logits: ") + noun + " " + value + wrong + std::to_string(bad.count) +
                        " such " + noun + "(s), the first in sample " + std::to_string(bad.sample);
  if (!problem.label_map || !is_target) message += ", channel " + std::to_string(bad.channel);
  message += " at flat position " + std::to_string(bad.position);
  if (!is_target) return message + "; from_logits=False takes probabilities: of logits leave it out";
  const bool takes_ignore_index = problem.label_map || !plan.multiclass;
  if (takes_ignore_index && (value == "255" || value == "-100"))
    message += "; did you mean ignore_index=" + value + "?";
  if (!problem.label_map && value == "255") message += " Or is the mask 0/255: divide it by 255.";
  return message;
}

const char* name_of(Step step) {
  constexpr const char* names[] = {"statistics", "values", "gradient", "fused", "cache", "from_cache"};
  return names[int(step)];
}

void run(const Work& work, Step step, int threads, double* sums = nullptr) {
  const Problem& problem = work.problem;
  const Chunks& chunks = work.chunks;
  const ChunkFunction f = kernels().find(work.job, step);
  const int64_t n_sums = work.job.layout.domain_sums();
  std::mutex report_mutex;
  ValueReport report;
  const int64_t values =
      std::max<int64_t>(1, std::min(chunks.size, chunks.pixels) * (work.plan.multiclass ? problem.classes : 1));
  parallel_for(chunks.count, std::max<int64_t>(1, 32768 / values), threads, [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    ValueReport bad;
    for (int64_t i = begin; i < end; ++i) f(work.job, chunks.at(i), sums ? sums + i * n_sums : nullptr, bad);
    if (!bad.count) return;
    std::lock_guard<std::mutex> lock(report_mutex);
    report.add(bad);
  });
  trace().pass(name_of(step), kernels().name, work.plan, problem, true, step != Step::statistics);
  if (report.count) throw ValueOutOfRange(message_of(report, work.plan, problem));
}

template <class Real>
void finish(const Head& head, const Call& call, const Buffers& buffers) {
  Real* loss = call.plan.unreduced() ? nullptr : static_cast<Real*>(buffers.loss);
  head.finish(Alone(), loss, buffers.terms, static_cast<Real*>(buffers.slopes));
  *static_cast<Real*>(buffers.status) = 0;
}

template <class Real>
std::vector<Real> scaled_slopes(const Call& call, const Layout& layout, const Real* slopes, const Real* upstream) {
  const Plan& plan = call.plan;
  const Problem& p = call.problem;
  std::vector<Real> out(slopes, slopes + layout.slopes());
  if (!upstream) return out;
  const OutputMap map{plan, p, call.constants.classes};
  for (int64_t u = 0; u < layout.domains; ++u) {
    const int64_t n = plan.multiclass ? u : u / p.classes, c = plan.multiclass ? 0 : u % p.classes;
    Real* row = out.data() + u * layout.domain_slopes();
    for (int k = 0; k < 2 * layout.pointwise_count; ++k) row[k] *= upstream[map.of(n, c)];
    for (int64_t r = 0; r < layout.rows_per_domain; ++r)
      for (int s = 0; s < layout.region_slopes; ++s)
        row[2 * layout.pointwise_count + r * layout.region_slopes + s] *= upstream[map.of(n, c + r)];
  }
  return out;
}

}  // namespace

Trace& trace() {
  static Trace instance;
  return instance;
}

MemorySizes memory_sizes(const Plan& plan, const Sizes& sizes) {
  const int64_t outputs = OutputMap{plan, sizes, nullptr}.count();
  return {Layout(plan, sizes).sums(), 0, 0, Head::workspace_size(plan, sizes, outputs), Head::vector_size(plan, sizes)};
}

namespace {

void add_up(const Work& work, Step step, int threads, double* sums) {
  const int64_t n_sums = work.job.layout.domain_sums(), count = work.chunks.count;
  std::vector<double> partial(size_t(count * n_sums));
  run(work, step, threads, partial.data());
  std::fill(sums, sums + work.job.layout.sums(), 0.0);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t s = 0; s < n_sums; ++s)
      sums[i / work.chunks.per_domain * n_sums + s] += partial[size_t(i * n_sums + s)];
}

// The step of a forward that has a place for the gradient. It is `fused` if the slopes of all domains have one factor
// in common, and only this factor depends on the pixels.
Step first_step(const Work& work) {
  const Plan& plan = work.plan;
  // In a narrower type the gradient would be rounded twice.
  if (plan.unreduced() || work.problem.logits.dtype != Dtype::f32) return Step::statistics;
  const bool reduced = plan.reduction == Reduction::mean || plan.reduction == Reduction::sum;
  const bool lone = plan.pointwise_count == 1 && !plan.region_count && !plan.sums_labels();
  const Step step = reduced && lone ? Step::fused : Step::cache;
  return kernels().find(work.job, step) ? step : Step::statistics;
}

// Memory that a forward gives to the head.
struct HeadMemory {
  std::vector<double> sums, workspace, vector;

  explicit HeadMemory(const MemorySizes& sizes)
      : sums(size_t(sizes.sums)), workspace(size_t(sizes.head_workspace)), vector(size_t(sizes.vector)) {}

  Buffers with(const Buffers& outputs) {
    Buffers all = outputs;
    all.sums = sums.data(), all.workspace = workspace.data(), all.vector = vector.data();
    return all;
  }
};

// The slopes that the head would write if every pixel had the weight 1.
std::vector<float> assumed_slopes(const Call& call) {
  const Layout layout(call.plan, call.problem);
  HeadMemory memory(memory_sizes(call.plan, call.problem));
  std::vector<double> terms(size_t(call.plan.term_count));
  std::vector<float> slopes(size_t(layout.slopes()));
  for (int64_t u = 0; u < layout.domains; ++u) {
    double* sums = memory.sums.data() + u * layout.domain_sums();
    sums[0] = double(call.problem.pixels);
    if (call.plan.multiclass) sums[2] = double(call.problem.pixels);
  }
  float loss, status;
  Buffers outputs{};
  outputs.loss = &loss, outputs.terms = terms.data(), outputs.slopes = slopes.data(), outputs.status = &status;
  head(call, memory.with(outputs), kGather | kFinish, 1);
  return slopes;
}

// Asks for large pages, where Linux lets programs choose. The allocator gives a large gradient back to the system (from
// 32 MB on always), and the first touch of its 4 KB pages took a third of the forward. Only whole large pages are asked
// for, so no more memory is used.
void prefer_large_pages(const Problem& p) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = uintptr_t(1) << 21, least = 2 * page;
  const uintptr_t size = uintptr_t(p.samples * p.classes * p.pixels * size_of(p.output.dtype));
  if (size < least) return;
  const uintptr_t first = reinterpret_cast<uintptr_t>(p.output.data);
  const uintptr_t begin = (first + page - 1) / page * page, end = (first + size) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)p;
#endif
}

// gradient *= factor. Assumes dense float32; strides are ignored.
void multiply(const Problem& p, float factor, int threads) {
  float* data = static_cast<float*>(p.output.data);
  parallel_for(p.samples * p.classes * p.pixels, 1 << 16, threads, [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    for (int64_t i = begin; i < end; ++i) data[i] *= factor;
  });
}

}  // namespace

void statistics(const Call& call, const Buffers& buffers, Executor threads) {
  add_up(Work(call), Step::statistics, threads, buffers.sums);
}

void head(const Call& call, const Buffers& buffers, int halves, Executor) {
  const Plan read = resolve(call.plan, call.problem);
  const Call resolved_call{read, call.problem, call.constants};
  const Head head(read, call.problem, call.constants, buffers.sums, buffers.workspace, buffers.vector);
  if (halves & kGather) head.gather(Alone());
  if (!(halves & kFinish)) return;
  if (call.problem.wide)
    finish<double>(head, resolved_call, buffers);
  else
    finish<float>(head, resolved_call, buffers);
}

bool forward(const Call& call, const Buffers& outputs, Executor threads) {
  const Problem& problem = call.problem;
  Work work(call);
  HeadMemory memory(memory_sizes(call.plan, problem));
  const Buffers buffers = memory.with(outputs);
  Step step = problem.output.data && call.scheme != Scheme::two_pass ? first_step(work) : Step::statistics;
  std::vector<float> assumed;
  if (step == Step::fused) assumed = assumed_slopes(call);
  const auto slope = std::find_if(assumed.begin(), assumed.end(), [](float s) { return s != 0; });
  if (step == Step::fused && slope == assumed.end()) step = Step::statistics;
  if (step != Step::statistics) prefer_large_pages(problem);
  work.job.slopes = assumed.data();
  add_up(work, step, threads, buffers.sums);
  head(call, buffers, kGather | kFinish, threads);
  if (call.plan.unreduced()) {
    work.job.slopes = buffers.slopes;
    run(work, Step::values, threads);
  }
  if (step == Step::fused)
    *static_cast<float*>(buffers.status) = static_cast<const float*>(buffers.slopes)[slope - assumed.begin()] / *slope;
  return step != Step::statistics;
}

void backward(const Call& call, const Buffers& buffers, const void* upstream, bool prefilled, Executor threads) {
  const Problem& problem = call.problem;
  Work work(call);
  const Step first = prefilled ? first_step(work) : Step::statistics;
  if (first == Step::fused) {
    const float factor = *static_cast<const float*>(buffers.status) * *static_cast<const float*>(upstream);
    if (factor == 1) return;
    // A factor that is not finite would turn ignored pixels, which are 0, into NaN.
    if (factor - factor == 0) return multiply(problem, factor, threads);
  }
  if (!prefilled) prefer_large_pages(problem);
  const auto go = [&](auto real) {
    using Real = decltype(real);
    const auto scaled = scaled_slopes(call, work.job.layout, static_cast<const Real*>(buffers.slopes),
                                      static_cast<const Real*>(upstream));
    work.job.slopes = scaled.data();
    for (const Real slope : scaled) work.job.has_infinite_slopes |= !(slope - slope == 0);
    run(work, first == Step::cache && !work.job.has_infinite_slopes ? Step::from_cache : Step::gradient, threads);
  };
  if (problem.wide)
    go(double());
  else
    go(float());
}

}  // namespace segfuse
