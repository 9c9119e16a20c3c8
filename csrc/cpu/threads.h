// Loops over chunks on torch's own thread pool.
#pragma once

#include <cstdint>
#include <functional>

namespace segfuse {

// Calls f(begin, end) for parts of [0, n) of at least `grain`, in any order, on any thread; rethrows what f throws. The
// pool is torch's if torch exports it (2.10 and newer), so torch.set_num_threads applies; else it is a pool of our own
// with `threads` threads.
void parallel_for(int64_t n, int64_t grain, int threads, const std::function<void(int64_t, int64_t)>& f);

// "torch" or "own".
const char* thread_pool_name();

// For the tests: use the own pool although torch exports one.
void force_own_pool(bool on);

}  // namespace segfuse
