#include "threads.h"

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

namespace segfuse {
namespace {

// torch_parallel_for is declared in torch/csrc/stable/c/shim.h. It is looked up in the library that the process has
// already loaded: nothing is linked.
using TorchParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, void (*)(int64_t, int64_t, void*),
                                     void* context);

TorchParallelFor find_torch_pool() {
  void* library = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY);
  return library ? reinterpret_cast<TorchParallelFor>(dlsym(library, "torch_parallel_for")) : nullptr;
}

TorchParallelFor torch_pool() {
  static const TorchParallelFor found = find_torch_pool();
  return found;
}

std::atomic<bool> own_pool_forced{false};

// A worker that is free takes the next part. There is one caller at a time. A forked child has none of its parent's
// workers, so a pool belongs to one process id.
class Pool {
 public:
  explicit Pool(int workers) : owner_(getpid()) {
    for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { work(); });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& t : threads_) t.join();
  }
  bool of_this_process() const { return owner_ == getpid(); }
  int workers() const { return int(threads_.size()); }

  void run(int64_t parts, const std::function<void(int64_t)>& f) {
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = &f;
    parts_ = parts;
    next_ = 0;
    active_ = int(threads_.size());
    ++generation_;
    lock.unlock();
    wake_.notify_all();
    take();
    lock.lock();
    done_.wait(lock, [this] { return active_ == 0; });
    job_ = nullptr;
  }

 private:
  void take() {
    for (int64_t i; (i = next_.fetch_add(1)) < parts_;) (*job_)(i);
  }
  void work() {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
      if (stop_) return;
      seen = generation_;
      lock.unlock();
      take();
      lock.lock();
      if (--active_ == 0) done_.notify_all();
    }
  }

  pid_t owner_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int64_t)>* job_ = nullptr;
  std::atomic<int64_t> next_{0};
  int64_t parts_ = 0;
  int active_ = 0;
  uint64_t generation_ = 0;
  bool stop_ = false;
};

void run_on_own_pool(int64_t parts, int threads, const std::function<void(int64_t)>& f) {
  // Not destroyed at exit: workers may outlive static destruction, and a forked child must not join its parent's
  // workers.
  static std::mutex* busy = new std::mutex;
  static Pool* pool = nullptr;
  std::unique_lock<std::mutex> lock(*busy, std::try_to_lock);
  if (!lock.owns_lock() || threads < 2 || parts < 2) {  // nested or concurrent calls use their own thread
    for (int64_t i = 0; i < parts; ++i) f(i);
    return;
  }
  if (pool && !pool->of_this_process()) pool = nullptr;  // its threads stayed in the parent
  if (pool && pool->workers() != threads - 1) {
    delete pool;
    pool = nullptr;
  }
  if (!pool) pool = new Pool(threads - 1);
  pool->run(parts, f);
}

}  // namespace

void force_own_pool(bool on) { own_pool_forced = on; }

const char* thread_pool_name() { return torch_pool() && !own_pool_forced ? "torch" : "own"; }

void parallel_for(int64_t n, int64_t grain, int threads, const std::function<void(int64_t, int64_t)>& f) {
  if (n <= 0) return;
  std::exception_ptr error;
  std::mutex error_mutex;
  const std::function<void(int64_t, int64_t)> guarded = [&](int64_t begin, int64_t end) {
    try {
      f(begin, end);
    } catch (...) {
      std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  };
  if (n <= grain) {
    guarded(0, n);
  } else if (torch_pool() && !own_pool_forced) {
    const auto call = [](int64_t begin, int64_t end, void* context) {
      (*static_cast<const std::function<void(int64_t, int64_t)>*>(context))(begin, end);
    };
    const int32_t status = torch_pool()(0, n, grain, call, const_cast<void*>(static_cast<const void*>(&guarded)));
    if (status != 0) throw std::runtime_error("segfuse: torch_parallel_for failed");
  } else {
    const int64_t parts = (n + grain - 1) / grain;
    run_on_own_pool(parts, threads, [&](int64_t i) { guarded(i * grain, n < (i + 1) * grain ? n : (i + 1) * grain); });
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace segfuse
