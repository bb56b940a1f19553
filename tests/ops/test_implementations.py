# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from aapt_fast import ops


def test_every_registered_op_is_described_for_both_devices():
    described = ops.implementations()
    registered = {
        name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if "aapt::" in name
    }
    assert set(described) == registered
    assert all(set(devices) == {"cpu", "cuda"} and all(devices.values()) for devices in described.values())
    for op in described:
        for key in ("CPU", "CUDA"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"aapt::{op}", key)


def test_all_public_names_exist():
    assert all(hasattr(ops, name) for name in ops.__all__)
