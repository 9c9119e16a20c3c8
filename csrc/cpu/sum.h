// A sum that keeps its digits: a lane takes at most kAddsPerFlush additions, then it is added to a double. A sum in
// plain float32 is off by 2.6e-4 on 2^31 equal predictions; random data would hide it.
#pragma once

#include "source.h"
#include "vec.h"

namespace segfuse {
namespace {

constexpr int64_t kAddsPerFlush = 64;

template <class Real>
struct Sum {
  Reg<Real> lanes = Reg<Real>::set(Real(0));
  double total = 0;

  template <int K>
  INLINE void add(const Vec<Real, K>& v) {
    lanes = lanes + v.fold();
  }
  void flush() {
    total += sum_lanes(lanes);
    lanes = Reg<Real>::set(Real(0));
  }
};

// A sum over many classes that keeps its digits, within a vector: blocks of 32 classes, then the blocks. For loops that
// do more than this sum.
template <class V>
struct ClassTotal {
  V blocks = V(0), block = V(0);
  int in_block = 0;

  void add(const V& v) {
    block = block + v;
    if (++in_block == 32) {
      blocks = blocks + block;
      block = V(0);
      in_block = 0;
    }
  }
  V total() const { return blocks + block; }
};

// The sum of term(c) over the classes, in the same blocks.
template <class Term>
INLINE auto sum_classes(int64_t classes, const Term& term) {
  using V = decltype(term(0));
  V total = V(0);
  for (int64_t c = 0; c < classes;) {
    V block = V(0);
    for (const int64_t end = smaller(classes, c + 32); c < end; ++c) block = block + term(c);
    total = total + block;
  }
  return total;
}

}  // namespace
}  // namespace segfuse
