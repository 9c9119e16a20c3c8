# The code that a CUDA toolkit is asked for. Sets `generations`, nvcc's options, and `architectures`, the names as CMake
# writes them.
#
# A GPU is never asked for: machine code for every generation (7.2 runs that of 7.0, 8.6 and 8.9 that of 8.0, 10.3 that
# of 10.0, 12.1 that of 12.0), and PTX for those to come. Machine codes of several generations come from one translation
# to PTX, which is the longer half of the work. CUDA 13 has dropped 7.0; 12.8 is the first with 10.0 and 12.0.
function(segfuse_architectures toolkit)
  if(toolkit VERSION_LESS 12.4)
    message(FATAL_ERROR "segfuse: nvcc is of CUDA ${toolkit}, 12.4 or newer is wanted; SEGFUSE_CUDA=OFF builds the CPU kernels only")
  elseif(toolkit VERSION_LESS 13)
    set(codes 70 75)
    # nvcc 12.8 and 12.9 announce that the next major release drops 7.0.
    set(generations "-gencode=arch=compute_70,code=[sm_70,sm_75]" -Wno-deprecated-gpu-targets)
  else()
    set(codes 75)
    set(generations "-gencode=arch=compute_75,code=sm_75")
  endif()
  set(from_80 80 90)
  if(toolkit VERSION_GREATER_EQUAL 12.8)
    list(APPEND from_80 100 120)
  endif()
  list(TRANSFORM from_80 PREPEND "sm_" OUTPUT_VARIABLE machines)
  list(JOIN machines "," machines)
  list(APPEND generations "-gencode=arch=compute_80,code=[${machines},compute_80]")
  list(APPEND codes ${from_80} 80-virtual)
  list(JOIN codes "," architectures)
  set(generations "${generations}" PARENT_SCOPE)
  set(architectures "${architectures}" PARENT_SCOPE)
endfunction()
