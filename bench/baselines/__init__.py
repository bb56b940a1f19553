# SPDX-License-Identifier: Apache-2.0
"""Systems that the package is compared with: the same work, written without it."""
