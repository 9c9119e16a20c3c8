// Pointwise losses of one pixel in double, without an engine. A line of standard input is
//   link loss every_class parameter parameter parameter parameter classes z ... t ...
// and its answer is the loss and the gradient in each z. The answer to `losses` is the names of all losses.
#include "csrc/pixel.h"

#include <iostream>
#include <limits>
#include <string>
#include <vector>

namespace segfuse {
namespace {

using Numbers = std::vector<double>;

struct Question {
  std::string loss;
  bool every_class;  // for a softmax: each class is an element of its own, a function of its p
  double parameter[kParameters];
  Numbers z, t;
};

template <class T>
Parts<T> loss_of(const Question& call, const Pixel<T>& x, double t) {
#define SEGFUSE_CASE(name, type) \
  if (call.loss == #name) return type<double>(call.parameter)(x, t);
  SEGFUSE_POINTWISE(SEGFUSE_CASE)
#undef SEGFUSE_CASE
  std::cerr << "there is no loss " << call.loss << "\n";
  std::exit(2);
}

// Classes that do not share a pixel: the sum of both parts, for each class.
template <class Link>
Numbers alone(const Question& call) {
  Numbers out{0};
  for (size_t c = 0; c < call.z.size(); ++c) {
    const Pixel<double> x = Link::pixel(call.z[c]);
    const Parts<double> value = loss_of(call, x, call.t[c]);
    const Parts<Dual<double>> slopes = loss_of(call, Link::seed(x), call.t[c]);
    out[0] += value.positive + value.negative;
    out.push_back(slopes.positive.d[0] + slopes.negative.d[0]);
  }
  return out;
}

// Classes that share a softmax: the positive part of each class, and the pull-back.
Numbers softmax(const Question& call) {
  const size_t classes = call.z.size();
  size_t peak = 0;
  for (size_t c = 1; c < classes; ++c)
    if (call.z[c] > call.z[peak]) peak = c;
  Normaliser<double> n{call.z[peak], double(peak), 0, 0, 0};
  for (size_t c = 0; c < classes; ++c)
    if (c != peak) n.rest += exp_nonpositive(call.z[c] - n.peak);
  n.finish();
  Numbers out{0}, slope(classes, 0), own(classes, 0);
  std::vector<Pixel<double>> x;
  for (size_t c = 0; c < classes; ++c) {
    x.push_back(Softmax::pixel(n, exp_nonpositive(call.z[c] - n.peak), call.z[c] - n.peak, c == peak));
    out[0] += loss_of(call, x[c], call.t[c]).positive;
    const Pixel<Dual<double>> seeded = call.every_class ? Identity::seed(x[c]) : Softmax::seed(x[c]);
    (call.every_class ? slope : own)[c] = loss_of(call, seeded, call.t[c]).positive.d[0];
  }
  for (size_t k = 0; k < classes; ++k) {
    double mean = 0, others = 0;
    for (size_t c = 0; c < classes; ++c) {
      mean += x[c].p * (slope[c] - slope[peak]);
      if (c != k) others += own[c];
    }
    out.push_back(softmax_pull_back(x[k].p, x[k].q, slope[k] - slope[peak], mean, own[k], others));
  }
  return out;
}

}  // namespace
}  // namespace segfuse

int main() {
  using namespace segfuse;
  std::cout.precision(std::numeric_limits<double>::max_digits10);
  for (std::string link; std::cin >> link;) {
    if (link == "losses") {
#define SEGFUSE_CASE(name, type) std::cout << #name " ";
      SEGFUSE_POINTWISE(SEGFUSE_CASE)
#undef SEGFUSE_CASE
      std::cout << "\n";
      continue;
    }
    Question call;
    size_t classes;
    std::cin >> call.loss >> call.every_class;
    for (double& parameter : call.parameter) std::cin >> parameter;
    std::cin >> classes;
    call.z.resize(classes);
    call.t.resize(classes);
    for (Numbers* numbers : {&call.z, &call.t})
      for (double& number : *numbers) std::cin >> number;
    if (!std::cin) return 2;
    const Numbers answer = link == "sigmoid"    ? alone<Sigmoid>(call)
                           : link == "identity" ? alone<Identity>(call)
                                                : softmax(call);
    for (double number : answer) std::cout << number << " ";
    std::cout << "\n";
  }
}
