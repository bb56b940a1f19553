# SPDX-License-Identifier: Apache-2.0
"""One suite per op. `python -m bench.kernels` runs them and writes a document; pytest-benchmark runs them, too.

A suite has `OP`, `SHAPES` (of real models; the first one is the most important), `TINY` (for trying it out) and
`build(shape, setting)`.
"""
