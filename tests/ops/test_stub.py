# SPDX-License-Identifier: Apache-2.0
"""The stub of the compiled module says what the module has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import aapt_fast
from aapt_fast.ops._load import extension
from aapt_fast.ops.kernels import KERNELS

STUB = ast.parse((Path(aapt_fast.__file__).parent / "_C.pyi").read_text())
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}


def test_every_kernel_is_in_the_stub():
    kernels = {name for name in FUNCTIONS if re.search(r"_(portable|sm90(_\w+)?)$", name)}
    assert kernels == {kernel.replace("/", "_") for kernel in KERNELS}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_are_those_of_the_module(name):
    function = getattr(extension(), name, None)
    if function is None:
        pytest.skip("this build of aapt_fast has no kernels")
    signature = re.match(r"\w+\((.*?)\) ->", function.__doc__, re.DOTALL)[1]
    arguments = re.findall(r"(?:^|, )(\w+): ", signature)
    assert arguments == [argument.arg for argument in FUNCTIONS[name].args.args]
