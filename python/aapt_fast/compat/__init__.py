# SPDX-License-Identifier: Apache-2.0
"""Modules with the signatures of other packages, for code that was written for those.

`flash_attn` and `flash_attn_interface` stand for FlashAttention 2 and 3, `wan` for the attention functions of the Wan
family. An argument value that is not supported raises NotImplementedError with its name; no argument is ignored.
"""
