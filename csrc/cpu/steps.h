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

struct Outputs {
  void* loss;     // float32, or float64 if problem.wide; problem.output for an unreduced pointwise loss
  double* terms;  // one value per term and loss element
  void* slopes;   // units * unit_slopes, and one more
  double* sums;   // units * unit_sums, or null
};

// An integer label that is neither in range nor ignored.
class LabelError : public std::exception {
 public:
  explicit LabelError(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

void forward(const Plan& plan, const Problem& problem, const Constants& constants, int threads, const Outputs& outputs);

// upstream: the gradient of the loss, in the loss's type (null if problem.has_upstream).
void backward(const Plan& plan, const Problem& problem, const Constants& constants, const void* slopes,
              const void* upstream, int threads);

}  // namespace segfuse
