// What a step read and wrote, for the tests and the benches. One trace per native module.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "problem.h"

namespace segfuse {

struct TraceEvent {
  std::string kernel, instruction_set;
  int64_t bytes_read, bytes_written;
};

class Trace {
 public:
  void start() {
    std::lock_guard<std::mutex> lock(mutex_);
    events_.clear();
    on_ = true;
  }
  std::vector<TraceEvent> stop() {
    std::lock_guard<std::mutex> lock(mutex_);
    on_ = false;
    return std::move(events_);
  }
  void event(const char* kernel, const char* instruction_set, int64_t read, int64_t written) {
    if (!on_) return;
    std::lock_guard<std::mutex> lock(mutex_);
    events_.push_back({kernel, instruction_set, read, written});
  }
  // Notes a pass over the pixels. reads: every input is read once; writes: problem.output is written.
  void pass(const char* kernel, const char* instruction_set, const Plan& plan, const Problem& p, bool reads,
            bool writes) {
    if (!on_) return;
    const int64_t inputs = bytes(p, p.logits, true) + bytes(p, p.target, !p.label_map) +
                           (p.has_weight ? bytes(p, p.weight, !plan.multiclass) : 0);
    event(kernel, instruction_set, reads ? inputs : 0, writes ? output_bytes(plan, p) : 0);
  }
  static int64_t output_bytes(const Plan& plan, const Problem& p) {
    return bytes(p, p.output, !plan.multiclass || p.output.class_stride);
  }

 private:
  static int64_t bytes(const Problem& p, const View& v, bool per_class) {
    return v.data ? p.samples * p.pixels * (per_class ? p.classes : 1) * size_of(v.dtype) : 0;
  }
  std::mutex mutex_;
  std::atomic<bool> on_{false};
  std::vector<TraceEvent> events_;
};

}  // namespace segfuse
