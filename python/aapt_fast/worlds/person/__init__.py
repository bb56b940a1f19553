# SPDX-License-Identifier: Apache-2.0
"""The person world: a capsule human in a patterned room, moved by the poses of a skeleton."""
