# SPDX-License-Identifier: Apache-2.0
"""One model on several devices, each served by a process of its own (a rank)."""
