// SPDX-License-Identifier: Apache-2.0
// The only way a kernel reaches the hardware: one set of names in aapt::arch with two bodies.
//
//   PTX        arch_ptx.h (Ampere and later), arch_sm90.h and arch_wgmma.h (Hopper)
//   emulated   ../emulate/arch_ptx.h, ../emulate/arch_sm90.h: the same kernels run on the CPU, one fiber per thread
//
// The Hopper headers compile only for the architecture 90a.
//
// A kernel is a function template `AAPT_KERNEL void name(AAPT_GRID_CONSTANT const Params params)`, started by
// arch::launch. It has no static shared memory: shared_memory() is its one block, described by a struct.
#pragma once

#include "common/launch.h"
#include "common/types.h"

#ifdef AAPT_EMULATE
#include "emulate/arch_ptx.h"
#include "emulate/arch_sm90.h"
#else
#include "common/arch_ptx.h"
#include "common/arch_sm90.h"
#include "common/arch_wgmma.h"
#endif
