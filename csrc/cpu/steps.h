// The three steps on the CPU: statistics, head, gradient, over chunks of fixed size.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "../problem.h"
#include "../trace.h"
#include "kernels.h"

namespace segfuse {

Trace& trace();

// The kernels in use: of this machine's best instruction set, or of the one asked for. Throws if the machine lacks it.
const Kernels& kernels();
void use_instruction_set(const std::string& name);  // "" for the best
std::vector<std::string> instruction_sets();

// A label that is neither in range nor ignored, or a probability outside [0, 1].
class ValueOutOfRange : public std::exception {
 public:
  explicit ValueOutOfRange(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

using Executor = int;  // the number of threads

// The steps that csrc/binding.h calls. memory_sizes says what they need in Buffers; `forward` allocates its own sums
// and workspace.
MemorySizes memory_sizes(const Plan& plan, const Sizes& sizes);

void statistics(const Call& call, const Buffers& buffers, Executor threads);
void head(const Call& call, const Buffers& buffers, int halves, Executor threads);

// True if something is written to problem.output for `backward`, in dense float32; the loss must be reduced, and there
// must be an output. For a mean or a sum of a single pointwise loss it is a provisional gradient (Step::fused), and the
// status is the factor that it still lacks. Else it is powers or probabilities (Step::cache), which the gradient need
// not compute again.
bool forward(const Call& call, const Buffers& buffers, Executor threads);

// upstream: the gradient of the loss, in the loss's type (null if problem.has_upstream). prefilled: problem.output
// holds what the forward has written; it is overwritten.
void backward(const Call& call, const Buffers& buffers, const void* upstream, bool prefilled, Executor threads);

}  // namespace segfuse
