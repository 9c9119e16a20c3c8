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

}  // namespace
}  // namespace segfuse
