# SPDX-License-Identifier: Apache-2.0
"""Wan transformers: shapes, parameter names, few-step sampling."""
