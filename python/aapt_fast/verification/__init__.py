# SPDX-License-Identifier: Apache-2.0
"""Kernels held against torch: one case per op and shape, the systems that do its work, and their comparison."""
