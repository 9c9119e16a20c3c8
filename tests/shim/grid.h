// What the scheduler (fiber.cpp) and its reports (report.cpp) know of a grid.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

#include "context.h"
#include "device.h"

namespace segfuse_shim {

struct Block;

struct Thread {
  Context context;
  uint3 index;
  unsigned warp, lane;
  Block* block;
  Op op;  // what it waits at; none while it is ready
  Site site;
  unsigned mask;
};

struct Warp {
  Thread* threads;
  unsigned lanes, ready, waiting, exited;  // bit sets; waiting: at a collective
  size_t place;                            // in `runnable`, while ready is not empty
  // Of the first lane that waits. mixed: another lane waits for something else.
  Op op;
  Site site;
  unsigned mask;
  bool mixed;
  // By lane. It is not in the threads: a collective reads all lanes, and would wait for 32 lines of the cache.
  uint64_t value[32];  // operand of a collective, then its result
  int argument[32], width[32];
};

struct Block {
  uint3 index;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  unsigned char* shared;
  unsigned busy, arrived, exited;  // threads neither waiting nor gone; at a barrier; gone
  Op op;                           // of the first thread at the barrier
  Site site;
  bool mixed;  // not all threads are at that barrier
  unsigned votes;
  int verdict;
  std::vector<Thread*> part[16];  // at the barrier of a part, by its id
};

struct Run {  // the launch under way
  const void* kernel;
  size_t shared_bytes;
  bool warp_by_warp;
  uint64_t seed, number;     // SEGFUSE_SHIM_SEED, launches since it was set
  uint64_t patience, spins;  // scheduling points since a thread last came to its end
  Thread* current;
};
inline Run run;

inline uint64_t from_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text && *text ? std::strtoull(text, nullptr, 0) : otherwise;
}

inline bool same(Site a, Site b) { return a.line == b.line && (a.file == b.file || !std::strcmp(a.file, b.file)); }

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string text(Site site);
const char* name(Op op);
std::string name_of(const void* function);

// Prints what happened, in which launch and where, and the states of the block's threads if a block is given; aborts.
[[noreturn]] void give_up(const std::string& what, const Block* block = nullptr);
// No thread of the block can run, and not all have exited. Names the culprit.
[[noreturn]] void report_stuck(const Block& block);

// Completes a collective that every lane of the mask has reached: replaces the operands by the results.
void exchange(Warp& warp, unsigned mask, Op op, Site site);

}  // namespace segfuse_shim
