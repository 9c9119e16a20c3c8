// Fiber shim: runs the CUDA sources on a CPU. A C++17 compiler finds this header instead of CUDA's:
//     g++ -std=c++17 -I tests/shim -fno-strict-aliasing -Wno-unknown-pragmas -x c++ source.cu tests/shim/*.cpp -ldl
//
// Every CUDA thread is a fiber with its own stack. cudaLaunchKernelEx runs the whole grid before it returns: blocks in
// shuffled order (one at a time; in one launch of four, a few at once), threads in random order. A thread runs until a
// synchronisation point, and only such a point synchronises: the lanes of a warp are never in lockstep.
//
// Errors that are reported and abort(): a barrier that not all threads of the block, or of its part, reach at the same
// line; a warp collective whose mask names a lane that has exited or waits elsewhere, or lanes that disagree on the
// mask; a shuffle from a lane outside the mask; misaligned __ldg, __ldcs, __ldcg, __stcs, __stcg and atomics;
// impossible grids and blocks; a spin-wait that nobody ends. Too much dynamic shared memory is an error code, as in
// CUDA. Shared memory is filled with 0xFF before every block: that is NaN in every floating type, and -1 as an index,
// so reading too early shows. ASan and UBSan see every access: shared memory is a heap block of exactly the size asked
// for.
//
// Stricter than CUDA: a limit of dynamic shared memory may not be lowered; exited threads do not count as arrived at a
// barrier; a mask may name only lanes that the block has; __activemask() is the caller's own bit; a spin-wait must call
// __ldcg, __nanosleep or an atomic, else it hangs. A crash without a report is a wild address, or a stack over 64 KiB
// (guard page).
//
// Not seen: the memory model (a fence orders nothing here), races that no drawn order exposes or that happen between
// two synchronisation points, accuracy of approximate instructions, occupancy, registers, speed.
//
// Environment: SEGFUSE_SHIM_SEED (0; every launch draws a new order from it), SEGFUSE_SHIM_SMS (3 multiprocessors),
// SEGFUSE_SHIM_PATIENCE (2^26: a spin-wait is called endless after so many scheduling points in which no thread ends),
// SEGFUSE_SHIM_FAULT (0; else the number of an error that the device reports, without doing what is asked).
#pragma once

#include <tuple>
#include <utility>

#include "device.h"

#define SEGFUSE_SHIM 1
#define CUDART_VERSION 13000

enum cudaError {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInitializationError = 3,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorECCUncorrectable = 214,
  cudaErrorJitCompilerNotFound = 221,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorJitCompilationDisabled = 223,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorLaunchTimeout = 702,
  cudaErrorAssert = 710,
  cudaErrorHardwareStackError = 714,
  cudaErrorIllegalInstruction = 715,
  cudaErrorMisalignedAddress = 716,
  cudaErrorInvalidAddressSpace = 717,
  cudaErrorInvalidPc = 718,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801,
  cudaErrorSystemDriverMismatch = 803,
  cudaErrorCompatNotSupportedOnDevice = 804,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorUnknown = 999
};
typedef enum cudaError cudaError_t;
typedef struct CUstream_st* cudaStream_t;

enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone = 0,
  cudaStreamCaptureStatusActive = 1,
  cudaStreamCaptureStatusInvalidated = 2
};

enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrMaxBlocksPerMultiprocessor = 106,
  cudaDevAttrReservedSharedMemoryPerBlock = 111
};

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9
};

struct cudaFuncAttributes {
  size_t sharedSizeBytes;
  size_t constSizeBytes;
  size_t localSizeBytes;
  int maxThreadsPerBlock;
  int numRegs;
  int ptxVersion;
  int binaryVersion;
  int cacheModeCA;
  int maxDynamicSharedSizeBytes;
  int preferredShmemCarveout;
};

typedef enum cudaLaunchAttributeID {
  cudaLaunchAttributeIgnore = 0,
  cudaLaunchAttributeClusterDimension = 4,
  cudaLaunchAttributeProgrammaticStreamSerialization = 6,
  cudaLaunchAttributePriority = 8,
  cudaLaunchAttributePreferredSharedMemoryCarveout = 14
} cudaLaunchAttributeID;

typedef union cudaLaunchAttributeValue {
  char pad[64];
  struct {
    unsigned x, y, z;
  } clusterDim;
  int programmaticStreamSerializationAllowed;
  int priority;
  unsigned sharedMemCarveout;
} cudaLaunchAttributeValue;

typedef struct cudaLaunchAttribute_st {
  cudaLaunchAttributeID id;
  char pad[8 - sizeof(cudaLaunchAttributeID)];
  cudaLaunchAttributeValue val;
} cudaLaunchAttribute;

typedef struct cudaLaunchConfig_st {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
} cudaLaunchConfig_t;

// ----------------------------------------------------------------------------------------------------------- errors

namespace segfuse_shim {
inline thread_local cudaError_t last_error = cudaSuccess;
inline cudaError_t keep(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}
}  // namespace segfuse_shim

inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define SEGFUSE_SHIM_NAME(name) \
  case name:                    \
    return #name;
    SEGFUSE_SHIM_NAME(cudaSuccess)
    SEGFUSE_SHIM_NAME(cudaErrorInvalidValue)
    SEGFUSE_SHIM_NAME(cudaErrorInvalidConfiguration)
    SEGFUSE_SHIM_NAME(cudaErrorInvalidDevice)
    SEGFUSE_SHIM_NAME(cudaErrorMemoryAllocation)
    SEGFUSE_SHIM_NAME(cudaErrorInsufficientDriver)
    SEGFUSE_SHIM_NAME(cudaErrorNoKernelImageForDevice)
    SEGFUSE_SHIM_NAME(cudaErrorIllegalAddress)
    SEGFUSE_SHIM_NAME(cudaErrorLaunchOutOfResources)
    SEGFUSE_SHIM_NAME(cudaErrorNotSupported)
#undef SEGFUSE_SHIM_NAME
    default:
      return "cudaErrorUnknown";
  }
}
inline const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
inline cudaError_t cudaPeekAtLastError() { return segfuse_shim::last_error; }
inline cudaError_t cudaGetLastError() { return std::exchange(segfuse_shim::last_error, cudaSuccess); }

// ----------------------------------------------------------------------------------------------------------- device

inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  return segfuse_shim::keep(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return segfuse_shim::keep(cudaErrorInvalidDevice);
  switch (attribute) {  // an H200, except for the number of multiprocessors
    case cudaDevAttrMaxThreadsPerBlock:
      return *value = 1024, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return *value = 48 << 10, cudaSuccess;
    case cudaDevAttrWarpSize:
      return *value = warpSize, cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      return *value = segfuse_shim::multiprocessors(), cudaSuccess;
    case cudaDevAttrL2CacheSize:
      return *value = 60 << 20, cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return *value = 2048, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = 9, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = 0, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return *value = 233472, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = 232448, cudaSuccess;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return *value = 32, cudaSuccess;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return *value = 1024, cudaSuccess;
  }
  return segfuse_shim::keep(cudaErrorInvalidValue);
}

// ----------------------------------------------------------------------------------------------------------- kernels

inline cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || value > 232448) return segfuse_shim::keep(cudaErrorInvalidValue);
    segfuse_shim::set_dynamic_shared_limit(function, value);
  }
  return cudaSuccess;
}
template <class T>
cudaError_t cudaFuncSetAttribute(T* function, cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(function), attribute, value);
}

inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  if (const int error = segfuse_shim::fault()) return segfuse_shim::keep(cudaError_t(error));
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 64;
  attributes->ptxVersion = attributes->binaryVersion = 90;
  attributes->maxDynamicSharedSizeBytes = segfuse_shim::dynamic_shared_limit(function);
  return cudaSuccess;
}
template <class T>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, T* function) {
  return cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(function));
}

template <class... Expected, class... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...), Actual&&... arguments) {
  if (const int error = segfuse_shim::fault()) return segfuse_shim::keep(cudaError_t(error));
  const std::tuple<Expected...> held(std::forward<Actual>(arguments)...);  // every thread copies from here
  const auto call = [&] { std::apply(kernel, held); };
  return segfuse_shim::keep(cudaError_t(segfuse_shim::launch(
      *config, reinterpret_cast<const void*>(kernel),
      [](const void* closure) { (*static_cast<decltype(call)*>(closure))(); }, &call)));
}

// ----------------------------------------------------------------------------------------------------------- streams

inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t = nullptr) {
  if (bytes) std::memset(address, value, bytes);
  return cudaSuccess;
}
