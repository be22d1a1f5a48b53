"""Nodes for ComfyUI: put this folder into its custom_nodes, in an environment where kandinsky22 is installed."""

from kandinsky22.integrations.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
