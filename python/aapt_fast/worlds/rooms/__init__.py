# SPDX-License-Identifier: Apache-2.0
"""The rooms world: textured houses with doors, seen by a camera that moves with six degrees of freedom."""
