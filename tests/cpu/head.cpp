// The head of one problem, in double. Standard input is words:
//   samples 2 classes 2 multiclass 0 one_label 0 reduction mean
//   pointwise kind focal balance alpha balance_value 0.3 coefficient 2
//   region kind dice pool_batch 1 coefficient 1
//   values 2 0.2 1.5  scored 1 1  sums 24 ...
// `pointwise` or `region` is followed by the fields of PointwiseTerm or RegionTerm that are not 0. A list begins with
// its length. The answer has three lines: the loss, the terms, the slopes. The program fails if a grid of blocks, or
// ranks with a sample each, give something else. `kinds` asks for the names of the region losses and of the shapes.
#include "csrc/head.h"

#include <cstdlib>
#include <iostream>
#include <limits>
#include <string>
#include <vector>

#include "check.h"

namespace segfuse {
namespace {

using Numbers = std::vector<double>;

constexpr const char* kReductions[] = {"mean", "sum", "none", "sample"};
constexpr const char* kStatistics[] = {"product", "squared", "soft_label", "squared_error"};
constexpr const char* kAbsents[] = {"score", "zero", "skip"};
constexpr const char* kFactors[] = {"none", "simple", "square"};
constexpr const char* kBalances[] = {"none", "positive", "negative", "alpha", "balanced", "class_weight"};
#define SEGFUSE_NAME(name, type) #name,
constexpr const char* kPoints[] = {SEGFUSE_POINTWISE(SEGFUSE_NAME)};
constexpr const char* kRegions[] = {SEGFUSE_REGION(SEGFUSE_NAME)};
constexpr const char* kShapes[] = {SEGFUSE_SHAPE(SEGFUSE_NAME)};

[[noreturn]] void refuse(const std::string& word) {
  std::cerr << "not understood: " << word << "\n";
  std::exit(2);
}

template <class T>
void read(T& value) {
  if (!(std::cin >> value)) refuse("a number");
}
template <class Enum, size_t N>
void read(Enum& value, const char* const (&names)[N]) {
  std::string word;
  std::cin >> word;
  for (size_t i = 0; i < N; ++i)
    if (word == names[i]) return void(value = Enum(i));
  refuse(word);
}
template <class T>
void read(std::vector<T>& list) {
  size_t count;
  read(count);
  list.resize(count);
  for (T& value : list) read(value);
}

struct Input {
  Plan plan{};
  Sizes sizes{};
  Numbers class_values, sums;
  std::vector<int64_t> scored;

  Constants constants() const { return {class_values.data(), nullptr, scored.data()}; }

  bool pointwise_field(const std::string& word, PointwiseTerm& term) {
    if (word == "kind") return read(term.kind, kPoints), true;
    if (word == "balance") return read(term.balance, kBalances), true;
    if (word == "balance_value") return read(term.balance_value), true;
    if (word == "class_values") return read(term.class_values), true;
    if (word == "every_class") return read(term.every_class), true;
    return false;
  }
  bool region_field(const std::string& word, RegionTerm& term) {
    if (word == "kind") return read(term.kind, kRegions), true;
    if (word == "shape") return read(term.shape, kShapes), true;
    if (word == "statistics") return read(term.statistics, kStatistics), true;
    if (word == "absent") return read(term.absent, kAbsents), true;
    if (word == "factor") return read(term.factor, kFactors), true;
#define SEGFUSE_FIELD(name) \
  if (word == #name) return read(term.name), true;
    SEGFUSE_FIELD(pool_batch)
    SEGFUSE_FIELD(pool_classes)
    SEGFUSE_FIELD(generalized)
    SEGFUSE_FIELD(smooth_numerator)
    SEGFUSE_FIELD(smooth_denominator)
    SEGFUSE_FIELD(eps)
    SEGFUSE_FIELD(alpha)
    SEGFUSE_FIELD(beta)
    SEGFUSE_FIELD(shape_parameter)
    SEGFUSE_FIELD(adaptive)
    SEGFUSE_FIELD(omega)
    SEGFUSE_FIELD(threshold)
    SEGFUSE_FIELD(epsilon)
    SEGFUSE_FIELD(class_values)
    SEGFUSE_FIELD(class_count)
#undef SEGFUSE_FIELD
    return false;
  }
  bool field(const std::string& word) {
    if (word == "samples") return read(sizes.samples), true;
    if (word == "classes") return read(sizes.classes), true;
    if (word == "multiclass") return read(plan.multiclass), true;
    if (word == "one_label") return read(plan.one_label), true;
    if (word == "reduction") return read(plan.reduction, kReductions), true;
    if (word == "values") return read(class_values), true;
    if (word == "scored") return read(scored), true;
    if (word == "sums") return read(sums), true;
    if (plan.term_count == 0) return false;
    Term& term = plan.terms[plan.term_count - 1];
    if (word == "coefficient") return read(term.coefficient), true;
    return term.is_region ? region_field(word, plan.regions[term.index])
                          : pointwise_field(word, plan.pointwise[term.index]);
  }
  Input() {
    for (std::string word; std::cin >> word;) {
      if (word == "kinds") {
        for (const char* name : kRegions) std::cout << name << " ";
        std::cout << "\n";
        for (const char* name : kShapes) std::cout << name << " ";
        std::exit(0);
      }
      if (word == "pointwise" || word == "region") {
        const bool is_region = word == "region";
        const int index = is_region ? plan.region_count++ : plan.pointwise_count++;
        (is_region ? plan.regions[index].class_values : plan.pointwise[index].class_values) = -1;
        plan.terms[plan.term_count++] = {is_region, index, 1};
      } else if (!field(word)) {
        refuse(word);
      }
    }
    const Layout layout(plan, sizes);
    if (int64_t(sums.size()) != layout.domains * layout.domain_sums()) refuse("the number of sums");
  }
};

struct Output {
  Numbers loss, terms, slopes, workspace, vector;

  Output(const Plan& plan, const Sizes& sizes, const Constants& constants)
      : loss(OutputMap{plan, sizes, constants.classes}.count()),
        terms(plan.term_count * loss.size()),
        slopes(Layout(plan, sizes).domains * Layout(plan, sizes).domain_slopes()),
        workspace(Head::workspace_size(plan, sizes, loss.size())),
        vector(Head::vector_size(plan, sizes)) {}
};

void check_same(const Numbers& found, const Numbers& expected, const std::string& what) {
  check(found.size() == expected.size(), what + ": as many");
  for (size_t i = 0; i < found.size(); ++i)
    check_near(found[i], expected[i], 1e-13, what + ", number " + std::to_string(i));
}

Output of_one_thread(const Input& in) {
  const Constants constants = in.constants();
  Output out(in.plan, in.sizes, constants);
  const Head head(in.plan, in.sizes, constants, in.sums.data(), out.workspace.data(), out.vector.data());
  head.gather(Alone());
  head.finish(Alone(), out.loss.data(), out.terms.data(), out.slopes.data());
  return out;
}

// A block of one thread.
struct Block : Alone {
  int64_t index, count;
  Block(int64_t i, int64_t n) : index(i), count(n) {}
  int64_t rank() const { return index; }
  int64_t size() const { return count; }
  int64_t group() const { return index; }
  int64_t groups() const { return count; }
  template <class Function>
  double sum(int64_t n, const Function& f) const {
    double total = 0;
    for (int64_t i = index; i < n; i += count) total += f(i);
    return total;
  }
};

void check_blocks(const Input& in, const Output& expected) {
  constexpr int64_t kBlocks = 3;
  const Constants constants = in.constants();
  Output out(in.plan, in.sizes, constants);
  const Head head(in.plan, in.sizes, constants, in.sums.data(), out.workspace.data(), out.vector.data());
  const int64_t size = Head::totals_size(in.plan);
  Numbers totals(kBlocks * size);
  for (int64_t b = 0; b < kBlocks; ++b) head.score(Block(b, kBlocks), totals.data() + b * size);
  head.total(Alone(), totals.data(), kBlocks);
  head.pool(Alone());
  for (int64_t b = 0; b < kBlocks; ++b) head.reduce(Block(b, kBlocks), out.loss.data(), out.terms.data());
  for (int64_t b = 0; b < kBlocks; ++b) head.write_slopes(Block(b, kBlocks), out.slopes.data());
  check_same(out.loss, expected.loss, "the loss of a grid");
  check_same(out.terms, expected.terms, "the terms of a grid");
  check_same(out.slopes, expected.slopes, "the slopes of a grid");
}

void check_ranks(const Input& in, const Output& expected) {
  const Constants constants = in.constants();
  const Sizes one{1, in.sizes.classes, in.sizes.pixels};
  std::vector<Output> ranks(in.sizes.samples, Output(in.plan, one, constants));
  const auto head_of = [&](size_t n) {
    return Head(in.plan, one, constants, in.sums.data() + n * in.sums.size() / ranks.size(), ranks[n].workspace.data(),
                ranks[n].vector.data());
  };
  Numbers vector(ranks[0].vector.size()), slopes;
  for (size_t n = 0; n < ranks.size(); ++n) {
    head_of(n).gather(Alone());
    for (size_t i = 0; i < vector.size(); ++i) vector[i] += ranks[n].vector[i];
  }
  for (size_t n = 0; n < ranks.size(); ++n) {
    ranks[n].vector = vector;
    head_of(n).finish(Alone(), ranks[n].loss.data(), ranks[n].terms.data(), ranks[n].slopes.data());
    check_same(ranks[n].loss, expected.loss, "the loss of a rank");
    slopes.insert(slopes.end(), ranks[n].slopes.begin(), ranks[n].slopes.end());
  }
  check_same(slopes, expected.slopes, "the slopes of the ranks");
}

}  // namespace
}  // namespace segfuse

int main() {
  using namespace segfuse;
  const Input in;
  const Output out = of_one_thread(in);
  check_blocks(in, out);
  if (in.plan.reduction == Reduction::mean || in.plan.reduction == Reduction::sum) check_ranks(in, out);
  std::cout.precision(std::numeric_limits<double>::max_digits10);
  for (const Numbers* numbers : {&out.loss, &out.terms, &out.slopes}) {
    for (double number : *numbers) std::cout << number << " ";
    std::cout << "\n";
  }
  return failed;
}
