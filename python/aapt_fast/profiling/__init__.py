# SPDX-License-Identifier: Apache-2.0
"""Parts of `aapt-fast bench`: one step by stages, the roofline, the document. The scripts of bench/ share them."""
