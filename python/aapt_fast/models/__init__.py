# SPDX-License-Identifier: Apache-2.0
"""Models: single-device modules and their configurations."""
