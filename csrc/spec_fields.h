// A plan from Python. Each struct of problem.h is filled, field by field, from the frozen dataclass of
// python/segfuse/_core/spec.py that has fields of the same names. A field that only one side knows is an error.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "problem.h"

namespace py = pybind11;

namespace segfuse {
namespace {

// The names of an enumeration, in the order of its values.
template <class Enum>
struct Names;
#define SEGFUSE_NAME(name, ...) #name,
#define SEGFUSE_NAMES(Enum, LIST)                              \
  template <>                                                  \
  struct Names<Enum> {                                         \
    static constexpr const char* all[] = {LIST(SEGFUSE_NAME)}; \
  };
SEGFUSE_NAMES(PointwiseKind, SEGFUSE_POINTWISE)
SEGFUSE_NAMES(RegionKind, SEGFUSE_REGION)
SEGFUSE_NAMES(ShapeKind, SEGFUSE_SHAPE)
SEGFUSE_NAMES(Mode, SEGFUSE_MODES)
SEGFUSE_NAMES(Reduction, SEGFUSE_REDUCTIONS)
SEGFUSE_NAMES(Absent, SEGFUSE_ABSENTS)
SEGFUSE_NAMES(Statistics, SEGFUSE_STATISTICS)
SEGFUSE_NAMES(ClassFactor, SEGFUSE_CLASS_FACTORS)
SEGFUSE_NAMES(Balance, SEGFUSE_BALANCES)
SEGFUSE_NAMES(Scheme, SEGFUSE_SCHEMES)
#undef SEGFUSE_NAMES
#undef SEGFUSE_NAME

template <class Enum>
py::tuple names() {
  return py::tuple(py::cast(std::vector<std::string>(std::begin(Names<Enum>::all), std::end(Names<Enum>::all))));
}

template <class Enum>
Enum named(const std::string& name, const char* what) {
  int i = 0;
  for (const char* known : Names<Enum>::all) {
    if (name == known) return Enum(i);
    ++i;
  }
  throw std::invalid_argument(std::string(what) + ": unknown name '" + name + "'");
}

class Fields {
 public:
  explicit Fields(const py::handle& dataclass)
      : name_(py::str(py::type::of(dataclass).attr("__name__"))),
        left_(py::cast<py::dict>(dataclass.attr("__dict__")).attr("copy")()) {}

  template <class T>
  T take(const char* field) const {
    if (!left_.contains(field)) throw std::invalid_argument(name_ + " has no field '" + field + "'");
    const py::object value = left_.attr("pop")(field);
    if constexpr (std::is_enum_v<T>)
      return named<T>(py::cast<std::string>(value), field);
    else
      return py::cast<T>(value);
  }
  template <class T>
  void operator()(const char* field, T& value) const {
    value = take<T>(field);
  }
  // To be called when all fields of the struct are read: throws if any field is left.
  void finish() const {
    for (const auto& item : left_)
      throw std::invalid_argument(name_ + " has a field that no kernel knows: '" + py::cast<std::string>(item.first) +
                                  "'");
  }

 private:
  std::string name_;
  py::dict left_;
};

PointwiseTerm pointwise_term(const Fields& read) {
  PointwiseTerm p{};
  read("kind", p.kind);
  const auto parameters = read.take<std::vector<double>>("parameters");
  if (parameters.size() > size_t(kParameters)) throw std::invalid_argument("parameters: too many");
  std::copy(parameters.begin(), parameters.end(), p.parameter);
  read("balance", p.balance);
  read("balance_value", p.balance_value);
  read("class_values", p.class_values);
  read("weight_in_denominator", p.weight_in_denominator);
  read("has_smoothing", p.has_smoothing);
  read("every_class", p.every_class);
  return p;
}

// Also appends the scored classes of the term to `classes`.
RegionTerm region_term(const Fields& read, std::vector<int64_t>& classes) {
  RegionTerm r{};
  read("kind", r.kind);
  read("shape", r.shape);
  read("shape_parameter", r.shape_parameter);
  read("statistics", r.statistics);
  read("absent", r.absent);
  read("pool_batch", r.pool_batch);
  read("pool_classes", r.pool_classes);
  read("generalized", r.generalized);
  read("factor", r.factor);
  read("smooth_numerator", r.smooth_numerator);
  read("smooth_denominator", r.smooth_denominator);
  read("eps", r.eps);
  read("alpha", r.alpha);
  read("beta", r.beta);
  read("adaptive", r.adaptive);
  read("omega", r.omega);
  read("threshold", r.threshold);
  read("epsilon", r.epsilon);
  read("class_values", r.class_values);
  const auto scored = read.take<std::vector<int64_t>>("classes");
  r.first_class = int(classes.size());
  r.class_count = int(scored.size());
  classes.insert(classes.end(), scored.begin(), scored.end());
  return r;
}

// A plan, and the lists of classes that its terms point into.
struct NativePlan {
  Plan plan{};
  Mode mode;
  std::vector<int64_t> classes;  // Constants::classes

  explicit NativePlan(const py::object& spec) {
    Fields read(spec);
    read("mode", mode);
    plan.multiclass = mode == Mode::multiclass;
    plan.link = !read.take<bool>("from_logits") ? LinkKind::identity
                : plan.multiclass               ? LinkKind::softmax
                                                : LinkKind::sigmoid;
    read("reduction", plan.reduction);
    const auto ignore_index = read.take<std::optional<int64_t>>("ignore_index");
    plan.has_ignore = ignore_index.has_value();
    plan.ignore_index = ignore_index.value_or(0);
    plan.ignore_value = double(plan.ignore_index);
    const auto terms = read.take<py::tuple>("terms");
    read.finish();
    int regions = 0;
    for (const py::handle& term : terms) regions += is_region(Fields(term));
    check_count("region", regions, kMaxRegions);
    check_count("pointwise", int(terms.size()) - regions, kMaxPointwise);
    for (const py::handle& term : terms) add(Fields(term));
  }

 private:
  // Also removes the field `family`.
  static bool is_region(const Fields& read) {
    const auto family = read.take<std::string>("family");
    if (family != "region" && family != "pointwise")
      throw std::invalid_argument("family: unknown name '" + family + "'");
    return family == "region";
  }
  static void check_count(const char* family, int count, int most) {
    if (count > most)
      throw std::invalid_argument("a compound holds at most " + std::to_string(most) + " " + family + " losses, got " +
                                  std::to_string(count));
  }
  void add(const Fields& read) {
    const bool region = is_region(read);
    const auto coefficient = read.take<double>("coefficient");
    int& count = region ? plan.region_count : plan.pointwise_count;
    if (region)
      plan.regions[count] = region_term(read, classes);
    else
      plan.pointwise[count] = pointwise_term(read);
    read.finish();
    plan.terms[plan.term_count++] = {region, count++, coefficient};
  }
};

}  // namespace
}  // namespace segfuse
