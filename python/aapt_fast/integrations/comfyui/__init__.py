# SPDX-License-Identifier: Apache-2.0
"""Nodes for ComfyUI, which reads the two mappings here.

This folder is a node pack: a link to it in custom_nodes, or a file there that imports the mappings, installs it.
docs/how-to/use-in-comfyui.md says how.
"""

from aapt_fast.integrations.comfyui.nodes import LoadModel, PatchVAE, Stream

NODE_CLASS_MAPPINGS = {"AAPTLoadModel": LoadModel, "AAPTStream": Stream, "AAPTPatchVAE": PatchVAE}
NODE_DISPLAY_NAME_MAPPINGS = {
    "AAPTLoadModel": "Load model (aapt_fast)",
    "AAPTStream": "Stream video (aapt_fast)",
    "AAPTPatchVAE": "Patch Wan VAE (aapt_fast)",
}
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
