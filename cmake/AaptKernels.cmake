# SPDX-License-Identifier: Apache-2.0
# Compilation of kernels: by nvcc, or as C++ for the emulation. The sources are the same.

option(AAPT_STRICT "Spills, local memory and serialised wgmma are errors: for tests and continuous integration" OFF)
set(AAPT_COMPILE_STRICTLY "${CMAKE_CURRENT_LIST_DIR}/compile_strictly.sh")
option(AAPT_BOUNDED_WAITS "Waits of loading warps for a barrier end after four seconds with an error: for debugging" OFF)

# aapt_kernels(<name> ARCHITECTURES <arch>... SOURCES <file>... [CUTLASS] [TARGET <target>])
# Compiles the sources for these architectures only and links them into <target>, by default _C. CUTLASS: the sources
# include its headers.
function(aapt_kernels name)
  cmake_parse_arguments(PARSE_ARGV 1 kernels "CUTLASS" "TARGET" "ARCHITECTURES;SOURCES")
  if(NOT kernels_TARGET)
    set(kernels_TARGET _C)
  endif()
  add_library(${name} OBJECT ${kernels_SOURCES})
  target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}/csrc")
  if(kernels_CUTLASS)
    include(AaptCutlass)
    target_link_libraries(${name} PRIVATE aapt_cutlass)
  endif()
  if(AAPT_EMULATE)
    aapt_compile_emulated(${name} ${kernels_SOURCES})
  else()
    aapt_compile_cuda(${name} ${kernels_ARCHITECTURES})
  endif()
  target_link_libraries(${kernels_TARGET} PRIVATE ${name})
endfunction()

function(aapt_compile_cuda name)
  set_target_properties(${name} PROPERTIES
    CUDA_ARCHITECTURES "${ARGN}"
    CUDA_RUNTIME_LIBRARY Static
    CUDA_STANDARD 17)
  if(AAPT_BOUNDED_WAITS)
    target_compile_definitions(${name} PRIVATE AAPT_BOUNDED_WAITS)
  endif()
  if(AAPT_STRICT)
    target_compile_options(${name} PRIVATE
      "-Xptxas=--warn-on-spills,--warn-on-local-memory-usage,--warning-as-error")
    set(launcher sh "${AAPT_COMPILE_STRICTLY}" ${CMAKE_CUDA_COMPILER_LAUNCHER})
    set_target_properties(${name} PROPERTIES CUDA_COMPILER_LAUNCHER "${launcher}")
  endif()
  get_property(known GLOBAL PROPERTY AAPT_ARCHITECTURES)
  list(APPEND known ${ARGN})
  list(REMOVE_DUPLICATES known)
  set_property(GLOBAL PROPERTY AAPT_ARCHITECTURES "${known}")
endfunction()

# Without contraction of a * b + c, so that a kernel gives the same numbers on every machine.
function(aapt_compile_emulated name)
  set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX)
  target_compile_definitions(${name} PRIVATE AAPT_EMULATE)
  target_compile_options(${name} PRIVATE -x c++ -O2 -ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas -Wno-psabi)
endfunction()

# The machine on which emulated kernels run, for a module of its own.
function(aapt_link_emulation target)
  target_compile_definitions(${target} PRIVATE AAPT_EMULATE)
  target_compile_options(${target} PRIVATE -ffp-contract=off)
  target_sources(${target} PRIVATE
    csrc/emulate/aligned.cpp
    csrc/emulate/binding.cpp
    csrc/emulate/fiber.cpp
    csrc/emulate/machine.cpp
    csrc/emulate/shared_memory.cpp
    csrc/emulate/tensor_map.cpp
    csrc/emulate/tile_copy.cpp
    csrc/emulate/trace.cpp
    csrc/emulate/wgmma.cpp)
endfunction()
