# SPDX-License-Identifier: Apache-2.0
"""The bound of network evaluations per step. No torch, so that the command line finds mistakes at once."""

MOST_EVALUATIONS = 1000  # per step: as many as models of this kind are trained with
