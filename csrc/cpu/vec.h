// The vector with which losses.h, link.h and pixel.h run on a CPU; vec_math.h has the elementary functions. It has four
// registers: with one, each operation waits for the one before (1.2 to 1.9 times slower, measured on AVX2 and AVX-512).
#pragma once

#include "../math.h"

#if defined(SEGFUSE_AVX512)
#include "reg_avx512.h"
#else
#include "reg_vector.h"
#endif

namespace segfuse {
namespace {

constexpr int kRegisters = 4;
// The softmax engine keeps four values of a pixel during its loop over the classes. Machines with more than 16
// registers hold four registers of each, others two.
constexpr int kSoftmaxRegisters = kMachineRegisters > 16 ? 4 : 2;
// It sums over pixels for so many classes at a time: each takes three registers, beside those that the classes share.
constexpr int kClassBlock = kMachineRegisters > 16 ? 4 : 2;

// K registers, or their masks, as halves of halves. The compiler would leave an array in memory; it does so with local
// constants of this type (GCC 12: "a store to a read-only decl").
template <class R, int K>
struct Registers {
  Registers<R, K / 2> low, high;
};
template <class R>
struct Registers<R, 1> {
  R r;
};

// Applies f to each register.
template <class F, class R, class... More>
INLINE auto each(const F& f, const Registers<R, 1>& a, const Registers<More, 1>&... more) {
  return Registers<decltype(f(a.r, more.r...)), 1>{f(a.r, more.r...)};
}
template <class R, int K>
INLINE Registers<R, 2 * K> side_by_side(const Registers<R, K>& low, const Registers<R, K>& high) {
  return {low, high};
}
template <class F, class R, int K, class... More>
INLINE auto each(const F& f, const Registers<R, K>& a, const Registers<More, K>&... more) {
  return side_by_side(each(f, a.low, more.low...), each(f, a.high, more.high...));
}

template <class T, int K = kRegisters>
struct Vec {
  using Register = Reg<T>;
  using Mask = Registers<typename Register::Mask, K>;
  static constexpr int lanes = K * Register::lanes;
  Registers<Register, K> r;

  Vec() = default;
  INLINE Vec(const Registers<Register, K>& registers) : r(registers) {}
  INLINE explicit Vec(double x) : r(same<K>(Register::set(T(x)))) {}
  INLINE static Vec same(const Register& x) { return same<K>(x); }
  // In memory the registers lie side by side, or `step` elements apart.
  INLINE static Vec load(const T* p, int64_t step = Register::lanes) { return loaded<K>(p, step); }
  INLINE void store(T* p, int64_t step = Register::lanes) const { stored(r, p, step); }
  INLINE Register fold() const { return folded(r); }
  INLINE static Vec gather(const T* table, const Vec& index) {
    return each([table](Register i) INLINE_LAMBDA { return Register::gather(table, i); }, index.r);
  }
  // gather for a table with n entries and room for table_size(n): a short table is read into registers as a whole.
  static constexpr int64_t table_size(int64_t n) { return n < Register::table ? Register::table : n; }
  INLINE static Vec lookup(const T* table, const Vec& index, int64_t n) {
    if constexpr (Register::table > 0) {
      if (n <= Register::table)
        return each([table](Register i) INLINE_LAMBDA { return Register::lookup(table, i); }, index.r);
    }
    return gather(table, index);
  }

 private:
  template <int N>
  INLINE static Registers<Register, N> same(const Register& x) {
    if constexpr (N == 1)
      return {x};
    else
      return {same<N / 2>(x), same<N / 2>(x)};
  }
  template <int N>
  INLINE static Registers<Register, N> loaded(const T* p, int64_t step) {
    if constexpr (N == 1)
      return {Register::load(p)};
    else
      return {loaded<N / 2>(p, step), loaded<N / 2>(p + N / 2 * step, step)};
  }
  template <int N>
  INLINE static void stored(const Registers<Register, N>& a, T* p, int64_t step) {
    if constexpr (N == 1) {
      a.r.store(p);
    } else {
      stored(a.low, p, step);
      stored(a.high, p + N / 2 * step, step);
    }
  }
  template <int N>
  INLINE static Register folded(const Registers<Register, N>& a) {
    if constexpr (N == 1)
      return a.r;
    else
      return folded(a.low) + folded(a.high);
  }
};

template <class M>
INLINE bool any(const Registers<M, 1>& mask) {
  return is_any(mask.r);
}
template <class M, int K>
INLINE bool any(const Registers<M, K>& mask) {
  return any(mask.low) || any(mask.high);
}

template <class T>
INLINE Reg<T> operator-(Reg<T> a) {
  return Reg<T>::set(T(-0.0)) - a;
}

#define SEGFUSE_BINARY(name, expression)                                                \
  template <class T, int K>                                                             \
  INLINE Vec<T, K> name(const Vec<T, K>& a, const Vec<T, K>& b) {                       \
    return each([](Reg<T> x, Reg<T> y) INLINE_LAMBDA { return expression; }, a.r, b.r); \
  }
SEGFUSE_BINARY(operator+, x + y)
SEGFUSE_BINARY(operator-, x - y)
SEGFUSE_BINARY(operator*, x* y)
SEGFUSE_BINARY(operator/, x / y)
// If either operand is NaN, the result is the second one: so write max(constant, x).
SEGFUSE_BINARY(min, min(x, y))
SEGFUSE_BINARY(max, max(x, y))
#undef SEGFUSE_BINARY
#define SEGFUSE_UNARY(name)                                           \
  template <class T, int K>                                           \
  INLINE Vec<T, K> name(const Vec<T, K>& a) {                         \
    return each([](Reg<T> x) INLINE_LAMBDA { return name(x); }, a.r); \
  }
SEGFUSE_UNARY(operator-)
SEGFUSE_UNARY(abs)
SEGFUSE_UNARY(minus_abs)
SEGFUSE_UNARY(round)
#undef SEGFUSE_UNARY
#define SEGFUSE_TERNARY(name)                                                                             \
  template <class T, int K>                                                                               \
  INLINE Vec<T, K> name(const Vec<T, K>& a, const Vec<T, K>& b, const Vec<T, K>& c) {                     \
    return each([](Reg<T> x, Reg<T> y, Reg<T> z) INLINE_LAMBDA { return name(x, y, z); }, a.r, b.r, c.r); \
  }
SEGFUSE_TERNARY(fma)
SEGFUSE_TERNARY(product_minus)
#undef SEGFUSE_TERNARY
#define SEGFUSE_COMPARE(op, name)                                                       \
  template <class T, int K>                                                             \
  INLINE typename Vec<T, K>::Mask operator op(const Vec<T, K>& a, const Vec<T, K>& b) { \
    return each([](Reg<T> x, Reg<T> y) INLINE_LAMBDA { return name(x, y); }, a.r, b.r); \
  }
SEGFUSE_COMPARE(<, less)
SEGFUSE_COMPARE(>=, greater_equal)
SEGFUSE_COMPARE(==, equal)
SEGFUSE_COMPARE(!=, not_equal)
#undef SEGFUSE_COMPARE
template <class T, int K>
INLINE typename Vec<T, K>::Mask operator>(const Vec<T, K>& a, const Vec<T, K>& b) {
  return b < a;
}
template <class T, int K>
INLINE typename Vec<T, K>::Mask sign_bit(const Vec<T, K>& a) {
  return each([](Reg<T> x) INLINE_LAMBDA { return sign_bit(x); }, a.r);
}
template <class T, int K>
INLINE Vec<T, K> select(const typename Vec<T, K>::Mask& m, const Vec<T, K>& a, const Vec<T, K>& b) {
  using M = typename Reg<T>::Mask;
  return each([](M mask, Reg<T> x, Reg<T> y) INLINE_LAMBDA { return select(mask, x, y); }, m, a.r, b.r);
}
// a + (m ? b : 0).
template <class T, int K>
INLINE Vec<T, K> add_where(const typename Vec<T, K>::Mask& m, const Vec<T, K>& a, const Vec<T, K>& b) {
  using M = typename Reg<T>::Mask;
  return each([](M mask, Reg<T> x, Reg<T> y) INLINE_LAMBDA { return add_where(mask, x, y); }, m, a.r, b.r);
}

// The sum of the lanes in double, in the order of the lanes.
template <class T>
INLINE double sum_lanes(const Reg<T>& a) {
  alignas(64) T lane[Reg<T>::lanes];
  a.store(lane);
  double total = 0;
  for (int i = 0; i < Reg<T>::lanes; ++i) total += double(lane[i]);
  return total;
}

}  // namespace
}  // namespace segfuse
