# SPDX-License-Identifier: Apache-2.0
"""Models of other packages, made faster in place: `patch`, `unpatch`, `patched`, `explain`."""
