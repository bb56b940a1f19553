# SPDX-License-Identifier: Apache-2.0
# Decides whether CUDA is built (sets AAPT_HAVE_CUDA), for which GPUs, and says how it is linked.
#
# AUTO builds CUDA exactly when nvcc is found. An nvcc that is found but does not work is an error, never a quiet
# CPU-only build; that is why check_language(CUDA), which cannot tell the two apart, is not used.

set(AAPT_CUDA AUTO CACHE STRING "Build the CUDA code: AUTO (when nvcc is found), ON or OFF")
set_property(CACHE AAPT_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT AAPT_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "AAPT_CUDA: expected AUTO, ON or OFF, got '${AAPT_CUDA}'")
endif()

option(AAPT_EMULATE "Build the kernels for the CPU, one fiber per CUDA thread: for tests, never for a wheel" OFF)
if(AAPT_EMULATE AND SKBUILD_STATE STREQUAL "wheel")
  message(FATAL_ERROR "AAPT_EMULATE: expected a build for tests, got one for a wheel, whose kernels users would run")
endif()

option(AAPT_PROBES "Build _probes, kernels that test and measure single primitives; never for a wheel" OFF)

include(AaptArchitectures)

# Sets <result> to the nvcc to use, or to a false value. What the user named comes first.
function(aapt_find_nvcc result)
  if(CMAKE_CUDA_COMPILER)
    set(${result} "${CMAKE_CUDA_COMPILER}" PARENT_SCOPE)
  elseif(DEFINED ENV{CUDACXX})
    set(${result} "$ENV{CUDACXX}" PARENT_SCOPE)
  else()
    find_program(AAPT_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
    set(${result} "${AAPT_NVCC}" PARENT_SCOPE)
  endif()
endfunction()

# Stops with nvcc's own words unless it can compile and link an empty program.
function(aapt_require_working_nvcc nvcc)
  set(probe "${PROJECT_BINARY_DIR}/nvcc_probe")
  file(WRITE "${probe}.cu" "int main() { return 0; }\n")
  separate_arguments(flags UNIX_COMMAND "$ENV{CUDAFLAGS}")
  if(DEFINED ENV{CUDAHOSTCXX})
    list(APPEND flags -ccbin "$ENV{CUDAHOSTCXX}")
  endif()
  execute_process(COMMAND "${nvcc}" ${flags} "${probe}.cu" -o "${probe}"
    RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${nvcc} was found but cannot compile and link an empty program (${status}):\n${output}\n"
      "Repair the CUDA toolkit, or set AAPT_CUDA=OFF for a build without CUDA.")
  endif()
endfunction()

# Sets <result> to the architectures that the user names, by CMake's own variables, or to nothing.
function(aapt_user_architectures result nvcc)
  set(architectures "${CMAKE_CUDA_ARCHITECTURES}")
  if(NOT architectures)
    set(architectures "$ENV{CUDAARCHS}")
  endif()
  execute_process(COMMAND "${nvcc}" --list-gpu-arch OUTPUT_VARIABLE known COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[0-9]+" known "${known}")
  aapt_expand_architectures(expanded "${architectures}" "${known}")
  set(${result} ${expanded} PARENT_SCOPE)
endfunction()

# Links the CUDA runtime statically: the module imports on a machine without CUDA and shares torch's primary context.
function(aapt_link_cuda target)
  set_target_properties(${target} PROPERTIES LINKER_LANGUAGE CXX CUDA_RUNTIME_LIBRARY Static)
  target_link_libraries(${target} PRIVATE CUDA::cudart_static)
  target_link_options(${target} PRIVATE LINKER:--exclude-libs,ALL)
endfunction()

set(AAPT_HAVE_CUDA false)
if(AAPT_EMULATE)
  set(AAPT_EMULATE_LITERAL true)
else()
  set(AAPT_EMULATE_LITERAL false)
endif()
if(NOT AAPT_CUDA STREQUAL "OFF" AND NOT AAPT_EMULATE)
  aapt_find_nvcc(nvcc)
  if(nvcc)
    aapt_require_working_nvcc("${nvcc}")
    set(CMAKE_CUDA_COMPILER "${nvcc}" CACHE FILEPATH "CUDA compiler")
    aapt_user_architectures(AAPT_PORTABLE_ARCHITECTURES "${nvcc}")
    set(CMAKE_CUDA_ARCHITECTURES OFF)  # each target names its own
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    if(NOT AAPT_PORTABLE_ARCHITECTURES)
      aapt_default_architectures(AAPT_PORTABLE_ARCHITECTURES "${CMAKE_CUDA_COMPILER_VERSION}")
    endif()
    # Kernels for Hopper alone use instructions that only its own machine code has.
    if("90-real" IN_LIST AAPT_PORTABLE_ARCHITECTURES)
      set(AAPT_HOPPER_ARCHITECTURES 90a-real)
    endif()
    set(AAPT_HAVE_CUDA true)
  elseif(AAPT_CUDA STREQUAL "ON")
    message(FATAL_ERROR
      "AAPT_CUDA=ON: expected nvcc in CUDACXX, CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda, got none")
  endif()
endif()
if(AAPT_HAVE_CUDA)
  message(STATUS "aapt_fast: with CUDA ${CMAKE_CUDA_COMPILER_VERSION} (${CMAKE_CUDA_COMPILER})")
elseif(AAPT_EMULATE)
  message(STATUS "aapt_fast: with emulated kernels")
else()
  message(STATUS "aapt_fast: without CUDA (AAPT_CUDA=${AAPT_CUDA})")
endif()
