# SPDX-License-Identifier: Apache-2.0
"""Adapters that take steps of other systems by their public interface. A system is imported when it is loaded."""
