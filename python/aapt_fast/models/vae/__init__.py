# SPDX-License-Identifier: Apache-2.0
"""Causal video VAEs and the streams that decode with them."""
