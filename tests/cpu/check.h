// Checks for a small program: a check that fails is printed, and main returns `failed`.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>

inline int failed = 0;

inline void check(bool ok, const std::string& what) {
  if (ok) return;
  std::printf("failed: %s\n", what.c_str());
  failed = 1;
}
// The tolerance is relative to the larger of 1 and the expected value.
inline void check_near(double found, double expected, double tolerance, const std::string& what) {
  const double error = std::fabs(found - expected), scale = std::fmax(1, std::fabs(expected));
  check(error <= tolerance * scale, what + ": " + std::to_string(found) + ", expected " + std::to_string(expected));
}
#define CHECK(...) check(__VA_ARGS__, #__VA_ARGS__)
