// Memory of one chunk, aligned to 64 bytes; freed at the end of the chunk.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace segfuse {
namespace {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    for (int i = 0; i < used_; ++i) std::free(block_[i]);
  }
  template <class T>
  T* get(int64_t n) {
    const size_t bytes = (size_t(n) * sizeof(T) + 63) / 64 * 64;
    void* p = std::aligned_alloc(64, bytes ? bytes : 64);
    if (!p) throw std::bad_alloc();
    return static_cast<T*>(block_[used_++] = p);
  }

 private:
  void* block_[14];
  int used_ = 0;
};

}  // namespace
}  // namespace segfuse
