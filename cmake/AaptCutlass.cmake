# SPDX-License-Identifier: Apache-2.0
# Finds the CUTLASS headers and defines the target aapt_cutlass. Included by the first kernel that asks for them.
#
# Looked for in CUTLASS_DIR (CMake variable or environment: a CUTLASS checkout), else in the package nvidia-cutlass
# of the Python that runs the build. Nothing is downloaded here.
include_guard(GLOBAL)

set(CUTLASS_DIR "$ENV{CUTLASS_DIR}" CACHE PATH "CUTLASS source tree, with include/cutlass in it")
set(cutlass_root "${CUTLASS_DIR}")
if(NOT cutlass_root)
  set(print_root [[
from importlib.util import find_spec
from pathlib import Path
package = find_spec("cutlass_library")
print(Path(package.origin).parent / "source" if package else "")
]])
  execute_process(COMMAND "${Python_EXECUTABLE}" -c "${print_root}"
    OUTPUT_VARIABLE cutlass_root OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
endif()

set(version_file "${cutlass_root}/include/cutlass/version.h")
if(NOT EXISTS "${version_file}")
  message(FATAL_ERROR "CUTLASS: expected include/cutlass/version.h in CUTLASS_DIR or the package nvidia-cutlass, "
    "got CUTLASS_DIR='${CUTLASS_DIR}' and nothing in '${cutlass_root}'. "
    "Set CUTLASS_DIR to a CUTLASS checkout, or pip install nvidia-cutlass==4.2.0.0.")
endif()
file(STRINGS "${version_file}" cutlass_version REGEX "#define CUTLASS_(MAJOR|MINOR|PATCH) ")
list(TRANSFORM cutlass_version REPLACE "[^0-9]" "")
list(JOIN cutlass_version "." cutlass_version)
set_property(GLOBAL PROPERTY AAPT_CUTLASS_VERSION "${cutlass_version}")
message(STATUS "aapt_fast: CUTLASS ${cutlass_version} (${cutlass_root})")

add_library(aapt_cutlass INTERFACE)
target_include_directories(aapt_cutlass SYSTEM INTERFACE
  "${cutlass_root}/include" "${cutlass_root}/tools/util/include")
target_compile_options(aapt_cutlass INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)

# Its headers include those of the CUDA runtime, which nvcc knows and a C++ compiler has to be shown: those of the
# packages nvidia-cuda-runtime, -crt and -cccl of the Python that runs the build, or a toolkit's.
if(AAPT_EMULATE)
  find_path(AAPT_CUDA_INCLUDE cuda_runtime_api.h
    HINTS "${Python_SITELIB}/nvidia/cu13/include" "$ENV{CUDA_HOME}/include" /usr/local/cuda/include)
  if(NOT AAPT_CUDA_INCLUDE)
    message(FATAL_ERROR "AAPT_EMULATE: expected the CUDA headers in the packages nvidia-cuda-runtime, nvidia-cuda-crt "
      "and nvidia-cuda-cccl of ${Python_EXECUTABLE}, or in CUDA_HOME, got none")
  endif()
  target_include_directories(aapt_cutlass SYSTEM INTERFACE "${AAPT_CUDA_INCLUDE}" "${AAPT_CUDA_INCLUDE}/cccl")
endif()
