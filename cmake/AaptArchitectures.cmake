# SPDX-License-Identifier: Apache-2.0
# The GPUs that kernels are compiled for. Functions only: tests call them without a compiler.
#
# Architectures are written as CMake writes them: 90-real is machine code for compute capability 9.0, which newer GPUs
# of the same major version run too; 90-virtual is PTX, which the driver compiles for any GPU from 9.0 on; 90 is both.

# Sets <result> to the architectures of the portable kernels for an nvcc of <version>: machine code for Ampere, Hopper
# and the RTX of Blackwell, where this nvcc knows it, and PTX for every other GPU from Ampere on. Ada runs the machine
# code of Ampere: its own differs in the choice of a few instructions, not in their number.
function(aapt_default_architectures result version)
  set(architectures 80-real 90-real)
  if(version VERSION_GREATER_EQUAL 12.8)
    list(APPEND architectures 120-real)
  endif()
  set(${result} ${architectures} 80-virtual PARENT_SCOPE)
endfunction()

# Sets <result> to the user's architectures with 90 written as 90-real and 90-virtual. Stops unless each of them is
# among the numbers <known>, those that nvcc compiles for, and not older than 80.
function(aapt_expand_architectures result architectures known)
  list(FILTER known INCLUDE REGEX "^([89][0-9]|[0-9][0-9][0-9]+)$")
  list(JOIN known ", " known_text)
  set(expanded "")
  foreach(architecture IN LISTS architectures)
    if(NOT architecture MATCHES "^([0-9]+)(-real|-virtual)?$" OR NOT CMAKE_MATCH_1 IN_LIST known)
      message(FATAL_ERROR "CMAKE_CUDA_ARCHITECTURES: expected some of ${known_text} with semicolons between them, each "
        "with -real or -virtual behind it or neither, got '${architecture}'. Kernels for 90a come with 90-real.")
    endif()
    if(CMAKE_MATCH_2)
      list(APPEND expanded "${architecture}")
    else()
      list(APPEND expanded "${architecture}-real" "${architecture}-virtual")
    endif()
  endforeach()
  list(REMOVE_DUPLICATES expanded)
  set(${result} ${expanded} PARENT_SCOPE)
endfunction()
