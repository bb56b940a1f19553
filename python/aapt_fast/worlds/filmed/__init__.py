# SPDX-License-Identifier: Apache-2.0
"""Videos of one's own as a world: a folder of files, with or without controls beside them."""
