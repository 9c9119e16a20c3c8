// The CPU kernels without Python, for a machine that has no Python: `driver CALLS RESULTS` runs the calls of a file.
//
// A call is a line of text, then arrays. The line of a loss: its name here, dtype codes (csrc/dtype.h) of logits and
// target, samples, classes, pixels, the classes of the target (0: it has none). The arrays: logits, target and the
// upstream gradient. The results: loss, terms and gradient. The line of an elementary function: "elementary", its
// number, the dtype code, the count. The array: its arguments. The result: its values.
#include <cstdio>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cpu/steps.h"

namespace segfuse {
namespace {

struct Shape {
  bool region, pointwise;
  LinkKind link;
  Reduction reduction;
  PointwiseKind kind;
  double parameter;
  Statistics statistics;
};

// The losses of test_neon.py, by the names that it uses.
Shape shape_of(const std::string& name) {
  constexpr auto product = Statistics::product, squared = Statistics::squared;
  constexpr auto mean = Reduction::mean, none = Reduction::none;
  if (name == "dice_bce") return {true, true, LinkKind::sigmoid, mean, PointwiseKind::bce_with_logits, 0, product};
  if (name == "bce") return {false, true, LinkKind::sigmoid, mean, PointwiseKind::bce_with_logits, 0, product};
  if (name == "focal") return {false, true, LinkKind::sigmoid, none, PointwiseKind::focal, 2.5, product};
  if (name == "dice_ce") return {true, true, LinkKind::softmax, mean, PointwiseKind::cross_entropy, 0, product};
  if (name == "ce") return {false, true, LinkKind::softmax, mean, PointwiseKind::cross_entropy, 0, product};
  if (name == "squared") return {true, true, LinkKind::softmax, mean, PointwiseKind::cross_entropy, 0, squared};
  if (name == "dice_of_probabilities") return {true, false, LinkKind::identity, mean, {}, 0, product};
  throw std::invalid_argument("no loss '" + name + "'");
}

Plan plan_of(const std::string& name) {
  const Shape shape = shape_of(name);
  Plan plan{};
  plan.link = shape.link;
  plan.multiclass = shape.link == LinkKind::softmax;
  plan.reduction = shape.reduction;
  plan.has_ignore = plan.multiclass;
  plan.ignore_index = -100, plan.ignore_value = -100;
  if (shape.region) {
    RegionTerm& term = plan.regions[plan.region_count++] = RegionTerm{};
    term.kind = RegionKind::dice, term.statistics = shape.statistics;
    term.smooth_numerator = term.smooth_denominator = 1e-5;
    term.alpha = term.beta = 0.5;
    term.class_values = -1;
    plan.terms[plan.term_count++] = {true, 0, 1.0};
  }
  if (shape.pointwise) {
    PointwiseTerm& term = plan.pointwise[plan.pointwise_count++] = PointwiseTerm{};
    term.kind = shape.kind, term.parameter[0] = shape.parameter;
    term.balance_value = 1;
    term.class_values = -1;
    plan.terms[plan.term_count++] = {false, 0, 1.0};
  }
  return plan;
}

// A contiguous view. classes: 0 without a class axis.
View view(void* data, Dtype dtype, int64_t classes, int64_t pixels) {
  View v;
  v.data = data, v.dtype = dtype;
  v.class_stride = classes > 1 ? pixels : 0;
  v.sample_stride = (classes ? classes : 1) * pixels;
  v.dims = 1, v.size[0] = pixels, v.stride[0] = 1;
  return v;
}

std::vector<char> read(std::istream& in, int64_t bytes) {
  std::vector<char> data(static_cast<size_t>(bytes));
  if (!in.read(data.data(), bytes)) throw std::runtime_error("the file of calls ends early");
  return data;
}
void write(std::ostream& out, const std::vector<char>& data) { out.write(data.data(), std::streamsize(data.size())); }

void run_elementary(std::istream& line, std::istream& in, std::ostream& out) {
  int function, dtype;
  int64_t count;
  line >> function >> dtype >> count;
  std::vector<char> x = read(in, count * size_of(Dtype(dtype))), y(x.size());
  if (Dtype(dtype) == Dtype::f32)
    kernels().elementary32(function, 2.5f, reinterpret_cast<float*>(x.data()), reinterpret_cast<float*>(y.data()),
                           count);
  else
    kernels().elementary64(function, 2.5, reinterpret_cast<double*>(x.data()), reinterpret_cast<double*>(y.data()),
                           count);
  write(out, y);
}

void run_loss(const std::string& name, std::istream& line, std::istream& in, std::ostream& out) {
  const Plan plan = plan_of(name);
  Problem p{};
  int dtype, target_dtype;
  int64_t target_classes;
  line >> dtype >> target_dtype >> p.samples >> p.classes >> p.pixels >> target_classes;
  const int64_t elements = p.samples * p.classes * p.pixels;
  const int64_t labels = p.samples * (target_classes ? target_classes : 1) * p.pixels;
  p.wide = Dtype(dtype) == Dtype::f64;
  const Dtype real = p.wide ? Dtype::f64 : Dtype::f32;
  const int64_t size = size_of(real), values = plan.unreduced() ? elements : 1;
  std::vector<char> logits = read(in, elements * size_of(Dtype(dtype)));
  std::vector<char> target = read(in, labels * size_of(Dtype(target_dtype)));
  std::vector<char> upstream = read(in, values * size);
  p.hard_target = !is_floating(Dtype(target_dtype));
  p.label_map = plan.multiclass && !target_classes;
  p.logits = view(logits.data(), Dtype(dtype), p.classes, p.pixels);
  p.target = view(target.data(), Dtype(target_dtype), target_classes, p.pixels);

  const Layout layout(plan, p);
  std::vector<char> loss(size_t(values * size)), gradient(logits.size());
  std::vector<char> slopes(size_t(layout.slopes() * size));
  double status = 0;  // room for a float too
  std::vector<char> terms(size_t(plan.term_count) * sizeof(double));
  const Constants constants{};
  p.output = plan.unreduced() ? view(loss.data(), real, p.classes, p.pixels)
                              : view(gradient.data(), Dtype(dtype), p.classes, p.pixels);
  Buffers buffers{};
  buffers.loss = loss.data(), buffers.terms = reinterpret_cast<double*>(terms.data());
  buffers.slopes = slopes.data(), buffers.status = &status;
  const Call call{plan, p, constants};
  const bool prefilled = forward(call, buffers, 1) && !plan.unreduced();
  p.output = view(gradient.data(), Dtype(dtype), p.classes, p.pixels);
  if (plan.unreduced()) p.upstream = view(upstream.data(), real, p.classes, p.pixels), p.has_upstream = true;
  backward(call, buffers, p.has_upstream ? nullptr : upstream.data(), prefilled, 1);
  write(out, loss);
  if (!plan.unreduced()) write(out, terms);
  write(out, gradient);
}

void run_all(std::istream& in, std::ostream& out) {
  for (std::string text; std::getline(in, text);) {
    std::istringstream line(text);
    std::string name;
    line >> name;
    if (name == "elementary")
      run_elementary(line, in, out);
    else
      run_loss(name, line, in, out);
  }
}

}  // namespace
}  // namespace segfuse

int main(int count, char** arguments) {
  if (count != 3) return std::fprintf(stderr, "usage: driver CALLS RESULTS\n"), 2;
  std::ifstream in(arguments[1], std::ios::binary);
  std::ofstream out(arguments[2], std::ios::binary);
  try {
    segfuse::run_all(in, out);
  } catch (const std::exception& e) {
    return std::fprintf(stderr, "%s\n", e.what()), 1;
  }
  return out.flush() ? 0 : 1;
}
