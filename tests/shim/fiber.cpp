// The scheduler. It runs the threads of a grid as fibers, in random order between synchronisation points.
#include "fiber.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <numeric>
#include <vector>

#include "cuda_runtime.h"
#include "grid.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace segfuse_shim {
namespace {

std::mutex one_launch;
std::map<const void*, int> dynamic_limits;
std::vector<unsigned char*> stacks;

void (*body)(const void*);
const void* body_argument;
uint64_t random_state;
long long clock_ticks;
std::vector<Warp*> runnable;
Warp* last_warp;
Block* finished;
Context launcher;

#if SEGFUSE_SHIM_ASAN
constexpr size_t canary_bytes = 0;  // ASan watches the bytes behind shared memory
#else
constexpr size_t canary_bytes = 256;
#endif

uint32_t draw() {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return uint32_t((random_state * 0x2545f4914f6cdd1dull) >> 32);
}
size_t draw_below(size_t n) { return size_t((uint64_t(draw()) * n) >> 32); }

// -------------------------------------------------------------------------------------------------------- scheduling

void enable(Warp& warp, unsigned lanes) {
  if (!warp.ready) {
    warp.place = runnable.size();
    runnable.push_back(&warp);
  }
  warp.ready |= lanes;
}

Thread* take(bool other_warp = false) {
  Warp* warp = last_warp;
  if (!run.warp_by_warp || other_warp || !warp || !warp->ready) warp = runnable[draw_below(runnable.size())];
  const unsigned shift = draw() & 31u;
  const unsigned turned = warp->ready >> shift | warp->ready << (-shift & 31u);
  const unsigned lane = (unsigned(__builtin_ctz(turned)) + shift) & 31u;
  warp->ready &= ~(1u << lane);
  if (!warp->ready) {
    runnable[warp->place] = runnable.back();
    runnable[warp->place]->place = warp->place;
    runnable.pop_back();
  }
  last_warp = warp;
  return &warp->threads[lane];
}

SEGFUSE_SHIM_PLAIN void resume(Context& from, Thread* next, bool dying = false) {
  ++clock_ticks;
  if (&next->context == &from) return;
  run.current = next;
  threadIdx = next->index;
  blockIdx = next->block->index;
  from.leave_for(next->context, dying);
}

// The current thread has noted what it waits for. Returns when the thread is released and drawn.
void wait() {
  Thread* self = run.current;
  if (self->block->busy == 0) report_stuck(*self->block);
  resume(self->context, take());
  self->op = Op::none;
}

void work() noexcept { body(body_argument); }

bool leave_block() {  // returns whether other threads of the block remain
  Thread* self = run.current;
  Block& block = *self->block;
  block.warps[self->warp].exited |= 1u << self->lane;
  run.spins = 0;
  --block.busy;
  if (++block.exited == block.threads.size()) {
    finished = &block;
    run.current = nullptr;
    return false;
  }
  if (!block.busy) report_stuck(block);
  return true;
}

SEGFUSE_SHIM_PLAIN void entry() {
  Context::arrive();
  Context& own = run.current->context;
  work();
  if (leave_block()) {
    resume(own, take(), true);
  } else {
    own.leave_for(launcher, true);
  }
  std::abort();
}

void start(Block& block, uint64_t number, unsigned first_stack) {
  const unsigned size = unsigned(block.threads.size());
  block.index = {unsigned(number % gridDim.x), unsigned(number / gridDim.x % gridDim.y),
                 unsigned(number / gridDim.x / gridDim.y)};
  block.busy = size;
  block.arrived = block.exited = block.votes = 0;
  block.op = Op::none;
  block.mixed = false;
  std::memset(block.shared, 0xff, run.shared_bytes + canary_bytes);
  for (unsigned i = 0; i < size; ++i) {
    Thread& t = block.threads[i];
    t.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    t.warp = i / 32;
    t.lane = i % 32;
    t.block = &block;
    t.op = Op::none;
    t.context.start(stacks[first_stack + i], i, entry);
  }
  for (unsigned w = 0; w < block.warps.size(); ++w) {
    Warp& warp = block.warps[w];
    const unsigned count = std::min(32u, size - 32 * w);
    warp.threads = &block.threads[32 * w];
    warp.lanes = ~0u >> (32 - count);
    warp.ready = warp.waiting = warp.exited = 0;
    enable(warp, warp.lanes);
  }
}

void end(Block& block) {
  for (size_t i = 0; i < canary_bytes; ++i)
    if (block.shared[run.shared_bytes + i] != 0xff)
      give_up(text("write %zu bytes past the end of shared memory (%zu bytes) in block (%u, %u, %u)", i,
                   run.shared_bytes, block.index.x, block.index.y, block.index.z));
}

void seed_launch() {
  static uint64_t count = 0;
  static bool first = true;
  const uint64_t wanted = from_environment("SEGFUSE_SHIM_SEED", 0);
  if (first || wanted != run.seed) count = 0;
  first = false;
  run.seed = wanted;
  run.number = count++;
  // splitmix64: neighbouring seeds and launches draw unrelated orders.
  uint64_t z = run.seed * 0x9e3779b97f4a7c15ull + run.number * 0xbf58476d1ce4e5b9ull + 0x94d049bb133111ebull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  random_state = (z ^ (z >> 31)) | 1u;
}

}  // namespace

// --------------------------------------------------------------------------------------------------- called by threads

unsigned char* shared_memory() { return run.current->block->shared; }
unsigned own_lane_bit() { return 1u << run.current->lane; }
long long ticks() { return ++clock_ticks; }

void pause(bool sleep) {
  if (!run.current) return;
  Thread* self = run.current;
  if (++run.spins > run.patience)
    give_up(
        text("no thread came to its end in %llu scheduling points: a spin-wait that nobody ends, or on another block",
             (unsigned long long)run.patience),
        self->block);
  const uint32_t dice = draw();
  if (!sleep && dice & 3u) return;
  enable(self->block->warps[self->warp], 1u << self->lane);
  resume(self->context, take((dice >> 2 & 3u) == 0));
}

int barrier(Op op, int predicate, Site site) {
  Thread* self = run.current;
  Block& block = *self->block;
  self->op = op;
  self->site = site;
  block.votes += predicate != 0;
  --block.busy;
  if (block.arrived++ == 0) {
    block.op = op;
    block.site = site;
  } else if (block.op != op || !same(block.site, site)) {
    block.mixed = true;
  }
  const unsigned size = unsigned(block.threads.size());
  if (block.arrived == size && !block.mixed) {
    block.verdict = op == Op::sync_or ? block.votes != 0 : op == Op::sync_and ? block.votes == size : int(block.votes);
    block.arrived = block.votes = 0;
    block.busy = size;
    for (Warp& warp : block.warps) enable(warp, warp.lanes);
  }
  wait();
  return block.verdict;  // valid until all threads have come to the next barrier
}

void part_barrier(int id, unsigned threads, Site site) {
  Thread* self = run.current;
  Block& block = *self->block;
  if (id < 1 || id > 15 || !threads || threads % 32 || threads > block.threads.size())
    give_up(text("bar.sync at %s: id %d, %u threads", text(site).c_str(), id, threads), &block);
  self->op = Op::sync_part;
  self->site = site;
  std::vector<Thread*>& waiting = block.part[id];
  waiting.push_back(self);
  --block.busy;
  if (waiting.size() == threads) {
    block.busy += threads;
    for (Thread* t : waiting) enable(block.warps[t->warp], 1u << t->lane);
    waiting.clear();
  }
  wait();
}

uint64_t collective(Op op, unsigned mask, uint64_t value, int argument, int width, Site site) {
  Thread* self = run.current;
  Block& block = *self->block;
  Warp& warp = block.warps[self->warp];
  const auto complain = [&](const char* what) {
    give_up(text("%s at %s: mask 0x%08x %s", name(op), text(site).c_str(), mask, what), &block);
  };
  if (!(mask >> self->lane & 1u)) complain("does not name the calling lane");
  if (mask & ~warp.lanes) complain("names lanes that the block does not have");
  if (mask & warp.exited) complain("names a lane that has exited");
  if (width < 1 || width > 32 || (width & (width - 1))) complain("with a width that is not a power of two up to 32");
  self->op = op;
  self->site = site;
  self->mask = mask;
  warp.value[self->lane] = value;
  warp.argument[self->lane] = argument;
  warp.width[self->lane] = width;
  if (!warp.waiting) {
    warp.op = op;
    warp.site = site;
    warp.mask = mask;
    warp.mixed = false;
  } else if (warp.op != op || warp.mask != mask || !same(warp.site, site)) {
    warp.mixed = true;
  }
  warp.waiting |= 1u << self->lane;
  --block.busy;
  if (!(mask & ~warp.waiting)) {
    bool agreed = true;
    for (unsigned i = 0; warp.mixed && i < 32; ++i) {
      const Thread& t = warp.threads[i];
      if (mask >> i & 1u) agreed = agreed && t.op == op && t.mask == mask && same(t.site, site);
    }
    if (agreed) {
      exchange(warp, mask, op, site);
      warp.waiting &= ~mask;
      block.busy += unsigned(__builtin_popcount(mask));
      enable(warp, mask);
    }
  }
  wait();
  return warp.value[self->lane];
}

// ------------------------------------------------------------------------------------------- called by the host

int fault() { return int(from_environment("SEGFUSE_SHIM_FAULT", 0)); }
int multiprocessors() { return int(from_environment("SEGFUSE_SHIM_SMS", 3)); }

int dynamic_shared_limit(const void* function) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const auto found = dynamic_limits.find(function);
  return found == dynamic_limits.end() ? 48 << 10 : found->second;
}
void set_dynamic_shared_limit(const void* function, int bytes) {
  const std::lock_guard<std::mutex> lock(one_launch);
  int& limit = dynamic_limits.try_emplace(function, 48 << 10).first->second;
  if (bytes < limit) give_up("a limit of dynamic shared memory was lowered: another thread may be about to launch");
  limit = bytes;
}

int launch(const cudaLaunchConfig_t& config, const void* function, void (*call)(const void*), const void* argument) {
  const int limit = dynamic_shared_limit(function);
  const std::lock_guard<std::mutex> lock(one_launch);
  run.kernel = function;
  body = call;
  body_argument = argument;
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  run.shared_bytes = config.dynamicSmemBytes;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension) return cudaErrorNotSupported;
  }
  seed_launch();
  const uint64_t size = uint64_t(blockDim.x) * blockDim.y * blockDim.z;
  const uint64_t blocks = uint64_t(gridDim.x) * gridDim.y * gridDim.z;
  if (!blocks || gridDim.x > 0x7fffffffu || gridDim.y > 65535 || gridDim.z > 65535)
    give_up("impossible grid: a dimension is zero or too large");
  if (!size || size > 1024 || blockDim.z > 64) give_up("impossible block: no threads, over 1024, or z over 64");
  if (run.shared_bytes > size_t(limit)) {
    std::fprintf(stderr, "segfuse shim: %zu bytes of dynamic shared memory, allowed are %d: kernel %s\n",
                 run.shared_bytes, limit, name_of(function).c_str());
    return cudaErrorInvalidValue;
  }

  run.patience = from_environment("SEGFUSE_SHIM_PATIENCE", 1 << 26);
  run.spins = 0;
  run.warp_by_warp = draw() % 3 == 0;
  const size_t together = std::min<size_t>(blocks, draw() % 4 ? 1 : 2 + draw() % 3);
  while (stacks.size() < together * size) stacks.push_back(new_stack());
  std::vector<uint64_t> order(blocks);
  std::iota(order.begin(), order.end(), uint64_t(0));
  for (size_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[draw_below(i)]);

  std::vector<Block> resident(together);
  runnable.clear();
  last_warp = nullptr;
  size_t started = 0;
  for (; started < together; ++started) {
    Block& block = resident[started];
    block.threads.resize(size);
    block.warps.resize((size + 31) / 32);
    block.shared = static_cast<unsigned char*>(std::malloc(run.shared_bytes + canary_bytes));
    start(block, order[started], unsigned(started * size));
  }
  for (size_t done = 0; done < blocks; ++done) {
    resume(launcher, take());  // until a block comes to its end
    Block& block = *finished;
    end(block);
    if (started < blocks) start(block, order[started++], unsigned(size_t(&block - resident.data()) * size));
  }
  for (Block& block : resident) std::free(block.shared);
  return cudaSuccess;
}

}  // namespace segfuse_shim
