// A sum that keeps its digits: at most kAddsPerFlush additions in a lane, then on in double. Plain float32 is off by
// 2.6e-4 on 2^31 equal predictions; random data would hide it.
#pragma once

#include "vec.h"

namespace segfuse {
namespace {

constexpr int64_t kAddsPerFlush = 64;

template <class Real>
struct Sum {
  Reg<Real> lanes = Reg<Real>::set(Real(0));
  double total = 0;

  void add(const Vec<Real>& v) { lanes = lanes + v.fold(); }
  void flush() {
    total += sum_lanes(lanes);
    lanes = Reg<Real>::set(Real(0));
  }
};

// The same within a vector, over many classes: blocks of 32, then the blocks.
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

}  // namespace
}  // namespace segfuse
