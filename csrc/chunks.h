// Domains (problem.h) are cut into chunks of pixels: a task on a CPU, a block on a GPU. The sizes alone decide how
// (cpu/steps.cpp, cuda/policy.cu), so the number of threads or processors never changes a sum.
#pragma once

#include <cstdint>

#include "hd.h"

namespace segfuse {

// Positions [first, first + count) of one domain.
struct Chunk {
  int64_t domain, first, count;
};

struct Chunks {
  int64_t pixels, size;       // of a domain, of a chunk
  int64_t per_domain, count;  // chunks of a domain, of all domains

  HD Chunk at(int64_t i) const {
    const int64_t domain = i / per_domain, first = (i - domain * per_domain) * size;
    return {domain, first, pixels - first < size ? pixels - first : size};
  }
};

}  // namespace segfuse
