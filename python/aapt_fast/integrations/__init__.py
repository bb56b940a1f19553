# SPDX-License-Identifier: Apache-2.0
"""Other people's models, made faster in place: `patch`, `unpatch`, `patched`, `explain`."""
