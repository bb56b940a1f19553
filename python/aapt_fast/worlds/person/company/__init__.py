# SPDX-License-Identifier: Apache-2.0
"""Company of the person: what chance moves and no control decides."""
