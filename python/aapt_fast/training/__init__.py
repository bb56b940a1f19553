# SPDX-License-Identifier: Apache-2.0
"""Training scripts, one per stage, each read from top to bottom; pure parts beside them."""
