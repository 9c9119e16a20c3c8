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

// Kernels of this machine's best instruction set, or of the one asked for; throws if it is not there.
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

// The steps of csrc/binding.h. What they want in Buffers they say here; `forward` makes its own sums and workspace.
MemorySizes memory_sizes(const Plan& plan, const Sizes& sizes);

void statistics(const Call& call, const Buffers& buffers, Executor threads);
void head(const Call& call, const Buffers& buffers, int halves, Executor threads);

// True if problem.output, where there is one and the loss is reduced, is written for `backward`, in dense float32. Of a
// single pointwise loss, a mean or a sum, one pass writes the loss and a provisional gradient; the status is the factor
// that it still lacks. Else the powers or probabilities are there (Step::cache), which the gradient needs not compute
// again.
bool forward(const Call& call, const Buffers& buffers, Executor threads);

// upstream: the gradient of the loss, in the loss's type (null if problem.has_upstream). prefilled: problem.output is
// what the forward has written, which is used up.
void backward(const Call& call, const Buffers& buffers, const void* upstream, bool prefilled, Executor threads);

}  // namespace segfuse
