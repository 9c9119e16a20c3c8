// Dual numbers, links, region slopes and the gradient of a pixel with one label against central differences of the
// values, and the slopes at kinks.
#include <algorithm>
#include <array>

#include "check.h"
#include "csrc/pixel.h"

namespace segfuse {
namespace {

using D = Dual<double, 2>;
constexpr double kStep = 1e-6, kClose = 1e-8, kNaN = __builtin_nan(""), kInfinity = __builtin_inf();

template <class Function>
double slope_of(const Function& f, double x, double step = kStep) {
  return (f(x + step) - f(x - step)) / (2 * step);
}

// The same expression on plain numbers and on dual numbers.
struct Rule {
  const char* name;
  double (*plain)(double, double);
  D (*dual)(D, D);
};
#define RULE(expression)                                                         \
  Rule {                                                                         \
    #expression, [](double a, [[maybe_unused]] double b) { return expression; }, \
        [](D a, [[maybe_unused]] D b) { return expression; }                     \
  }
const Rule kRules[] = {
    RULE(a + b),
    RULE(a - b),
    RULE(a * b),
    RULE(a / b),
    RULE(-a),
    RULE(a + 2.5),
    RULE(-2.5 * a),
    RULE(log1p(a)),
    RULE(power(a, 0.3)),
    RULE(power(a, 2.7)),
    RULE(square(a)),
    RULE(integer_power(a, 1)),
    RULE(integer_power(a, 11)),
    RULE(positive_part(a - b)),
    RULE(at_most(0.5, a)),
    RULE(abs(a - b)),
    RULE(select(value_of(a) > 0.5, square(a), b)),
    RULE(shifted(a, -1.5)),
    RULE(scaled(a, -1.5)),
    RULE(masked_product(-1.5, a)),
    RULE((a * b + 2.5 * a) / (square(b) + log1p(a * b))),
};

void rules() {
  for (const Rule& rule : kRules)
    for (double a : {0.3, 0.7, 0.95})
      for (double b : {0.2, 0.6, 1.4}) {
        const D found = rule.dual({a, {1, 0}}, {b, {0, 1}});
        check(found.v == rule.plain(a, b), std::string("value of ") + rule.name);
        const double in_a = slope_of([&](double x) { return rule.plain(x, b); }, a);
        const double in_b = slope_of([&](double x) { return rule.plain(a, x); }, b);
        check_near(found.d[0], in_a, kClose, std::string("slope in a of ") + rule.name);
        check_near(found.d[1], in_b, kClose, std::string("slope in b of ") + rule.name);
      }
  for (int n = 1; n <= 40; ++n)
    check_near(integer_power(0.9, n), std::pow(0.9, n), 1e-14, "0.9 to the power of " + std::to_string(n));
}

void kinks() {
  const Dual<double> zero{0, {3}}, half{0.5, {3}}, wrong{kNaN, {3}}, endless{kInfinity, {kNaN}};
  CHECK(positive_part(zero).d[0] == 0);
  CHECK(at_most(0.5, half).d[0] == 3);
  CHECK(abs(zero).d[0] == 0);
  CHECK(std::isnan(abs(wrong).d[0]));
  CHECK(masked_product(0.0, endless).v == 0 && masked_product(0.0, endless).d[0] == 0);
  for (double exponent : {0.0, 0.5, 1.0, 2.0}) {
    const Dual<double> found = power(zero, exponent);
    check(found.v == (exponent == 0) && found.d[0] == 0, "0 to the power of " + std::to_string(exponent));
  }
}

// The slopes, in the input, that a link gives to p, q and their logarithms.
template <class Link>
void link(const char* name, double z, double step) {
  const Pixel<Dual<double>> seeded = Link::seed(Link::pixel(z));
  const auto field = [&](const char* what, const Dual<double>& found, double Pixel<double>::* member) {
    const double expected = slope_of([&](double x) { return Link::pixel(x).*member; }, z, step);
    check_near(found.d[0], expected, kClose, std::string(name) + ", " + what + " at " + std::to_string(z));
  };
  field("z", seeded.z, &Pixel<double>::z);
  field("p", seeded.p, &Pixel<double>::p);
  field("q", seeded.q, &Pixel<double>::q);
  field("-log p", seeded.minus_log_p, &Pixel<double>::minus_log_p);
  field("-log q", seeded.minus_log_q, &Pixel<double>::minus_log_q);
}

void links() {
  for (double z : {-30.0, -2.5, -0.1, 0.4, 3.0, 25.0}) link<Sigmoid>("sigmoid", z, kStep);
  for (double p : {0.05, 0.5, 0.9}) link<Identity>("identity", p, kStep);
  for (double z : {-700.0, -40.0, 40.0, 700.0}) {  // both tails keep all their digits
    const Pixel<double> x = Sigmoid::pixel(z);
    const double tail = std::exp(-std::fabs(z));
    check_near((z < 0 ? x.p : x.q) / tail, 1, 1e-15, "the small probability of " + std::to_string(z));
    check_near((z < 0 ? x.minus_log_q : x.minus_log_p) / tail, 1, 1e-15, "the small logarithm of " + std::to_string(z));
  }
  // The label's class beside one other class, in float. Its power and the other's are powers of two of the distances to
  // the peak; a distance is z times the float next to log2(e).
  for (float distance = -28; distance <= 28; distance += 0.375f) {
    const float peak = max(0.0f, distance), own = distance - peak;
    float inverse;
    const Pixel<float> x = Softmax::of_label<float>(std::exp2(own), std::exp2(-peak), own, inverse);
    const double z = distance / double(Base2<float>::log2_e);
    const Pixel<double> exact = Sigmoid::pixel(z);
    const std::string what = "the label's class, logit " + std::to_string(z);
    check_near(x.p / exact.p, 1, 2e-7, what + ": p");
    check_near(x.q / exact.q, 1, 2e-7, what + ": q");
    check_near(x.minus_log_p / exact.minus_log_p, 1, 2e-7, what + ": -log p");
  }
}

// region_slope is the derivative of the sums, each sum times its slope.
void region_slopes() {
  const RowSlopes<double> s{0.7, -0.4, 1.3, 0.6, -2.1, 0.9};
  for (double t : {0.0, 0.3, 1.0})
    for (double p : {0.1, 0.45, 0.92}) {
      const auto weighed = [&](double x) {
        double sum[12] = {};
        region_sums<true>(1.0, x, 1 - x, t, true, [&](int i, double v) { sum[i] += v; });
        return s.at_positive * sum[kTp] + s.at_negative * sum[kFp] + s.squared_at_positive * sum[kPositiveSquares] +
               s.squared_at_negative * sum[kNegativeSquares] + s.above * sum[kOver] - s.below * sum[kUnder];
      };
      const std::string what = "the region slope at p = " + std::to_string(p) + ", t = " + std::to_string(t);
      check_near(region_slope<true>(s, p, 1 - p, t), slope_of(weighed, p), kClose, what);
    }
}

// The gradient of a pixel with one label is the derivative of w (Σ s_c p_c + factor focal(p_y)); in float, as GPUs do.
void label_gradients() {
  constexpr int kClasses = 4, y = 2;
  const float s[kClasses] = {0.7f, -1.3f, 0.4f, 2.1f}, w = 1.7f, factor = 0.6f, gamma[kParameters] = {2.5f};
  const Focal<float> loss(gamma);
  const auto value = [&](const double* z, bool regions) {
    double e[kClasses], sum = 0, total = 0;
    for (int c = 0; c < kClasses; ++c) sum += e[c] = std::exp(z[c]);
    for (int c = 0; regions && c < kClasses; ++c) total += double(s[c]) * e[c] / sum;
    const double p = e[y] / sum;
    return double(w) * (total - double(factor) * std::pow(1 - p, 2.5) * std::log(p));
  };
  for (const auto& logits : {std::array<double, kClasses>{0.25, -2, 1.125, 0.75}, {3, -1, -4, 0.5}, {-2, 1, 6, 0}})
    for (bool regions : {false, true}) {
      const Exponents<float, float> exponent(float(*std::max_element(logits.begin(), logits.end())));
      float e[kClasses], rest = 0, sum = 0, inverse;
      for (int c = 0; c < kClasses; ++c) rest += e[c] = c == y ? 0 : std::exp2(exponent.of(float(logits[c])));
      const float log2_label = exponent.of(float(logits[y]));
      const Pixel<float> x = Softmax::of_label<float>(std::exp2(log2_label), rest, log2_label, inverse);
      LabelSlope<float> slope(x);
      slope.add(loss, factor);
      const float reference = s[1];  // any will do where no class has nearly everything
      for (int c = 0; c < kClasses; ++c) sum += e[c] * (s[c] - reference);
      const PointwiseGradient<float> alone(w, x, inverse, slope.sum);
      const RegionGradient<float> both(w, x, inverse, slope.sum, s[y], reference, sum);
      for (int c = 0; c < kClasses; ++c) {
        const float found =
            regions ? (c == y ? both.at_label : both.of(e[c], s[c])) : (c == y ? alone.at_label : alone.of(e[c]));
        const auto at = [&](double z) {
          auto moved = logits;
          moved[c] = z;
          return value(moved.data(), regions);
        };
        const std::string what = std::string(regions ? "with" : "without") + " regions, class " + std::to_string(c);
        check_near(double(found), slope_of(at, logits[c], 1e-5), 2e-6, what);
      }
    }
}

}  // namespace
}  // namespace segfuse

int main() {
  segfuse::rules();
  segfuse::kinks();
  segfuse::links();
  segfuse::region_slopes();
  segfuse::label_gradients();
  return failed;
}
