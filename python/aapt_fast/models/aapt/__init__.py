# SPDX-License-Identifier: Apache-2.0
"""AAPT's generator and discriminator, how they are sampled, and the configurations with a name."""
