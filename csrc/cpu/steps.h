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
  void* loss;                   // float32, or float64 if problem.wide; problem.output for an unreduced pointwise loss
  double* terms;                // one value per term and loss element
  void* slopes;                 // units * unit_slopes, and one more
  double* sums = nullptr;       // units * unit_sums
  double* workspace = nullptr;  // workspace_size
  double* vector = nullptr;     // vector_size
};

// A label that is neither in range nor ignored, or a probability outside [0, 1].
class ValueOutOfRange : public std::exception {
 public:
  explicit ValueOutOfRange(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// Doubles of memory that the head keeps between its halves, and that it hands out in between (head.h).
int64_t workspace_size(const Plan& plan, const Problem& problem);
int64_t vector_size(const Plan& plan, const Problem& problem);
constexpr int kGather = 1, kFinish = 2;

// The steps of a forward; it brings the memory in between by itself.
void statistics(const Plan& plan, const Problem& problem, const Constants& constants, int threads, double* sums);
void head(const Plan& plan, const Problem& problem, const Constants& constants, const Outputs& outputs, int parts);

// True if problem.output, where there is one and the loss is reduced, is written for `backward`, in dense float32.
// A lone pointwise loss, a mean or a sum, has one factor for all its pixels, so that the one read does for the loss and
// for the gradient: that of foreseen slopes is there, and behind the true slopes what it is still to be multiplied by.
// Else the powers or probabilities are there (Step::keep), which the gradient needs not compute again.
bool forward(const Plan& plan, const Problem& problem, const Constants& constants, int threads, Outputs outputs);

// upstream: the gradient of the loss, in the loss's type (null if problem.has_upstream). ahead: problem.output is what
// the forward has written, which is used up.
void backward(const Plan& plan, const Problem& problem, const Constants& constants, const void* slopes,
              const void* upstream, bool ahead, int threads);

}  // namespace segfuse
