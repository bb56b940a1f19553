# SPDX-License-Identifier: Apache-2.0
"""Pictures and videos in files: read as a viewer shows them, written so that a player shows the same."""
