# SPDX-License-Identifier: Apache-2.0
# The module _probes: small kernels that use or measure one primitive of aapt::arch each, and an attention to bisect
# with. Only with AAPT_PROBES.

if(NOT AAPT_HAVE_CUDA AND NOT AAPT_EMULATE)
  message(FATAL_ERROR "AAPT_PROBES: expected a build with CUDA or AAPT_EMULATE=ON, got neither")
endif()

pybind11_add_module(_probes MODULE
  csrc/probes/binding.cpp
  csrc/common/tensor.cpp
  csrc/common/tensor_binding.cpp
  csrc/common/tensor_map.cpp
  csrc/paged_attention/arguments.cpp)
target_include_directories(_probes PRIVATE csrc)
target_compile_options(_probes PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU,Clang,AppleClang>:-Wall -Wextra>)
if(AAPT_EMULATE)
  target_sources(_probes PRIVATE csrc/common/device_info_no_cuda.cpp)
  aapt_link_emulation(_probes)
else()
  target_link_libraries(_probes PRIVATE cuda_host)
  aapt_link_cuda(_probes)
endif()

aapt_kernels(probes_portable TARGET _probes
  ARCHITECTURES ${AAPT_PORTABLE_ARCHITECTURES}
  SOURCES csrc/probes/portable.cu)
aapt_kernels(probes_hopper TARGET _probes
  ARCHITECTURES 90a-real
  SOURCES
    csrc/probes/attention.cu
    csrc/probes/barrier_ring.cu
    csrc/probes/l2_bandwidth.cu
    csrc/probes/tile.cu
    csrc/probes/wgmma.cu)

install(TARGETS _probes LIBRARY DESTINATION aapt_fast)
