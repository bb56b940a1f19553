# SPDX-License-Identifier: Apache-2.0
"""Procedural worlds with exact ground truth: data for training, truth for evaluation, poses for live control."""
