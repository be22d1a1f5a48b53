"""Requests as values: their parts, pictures, embeddings, tasks and events. Imports no torch."""

from kandinsky22.request.embedding import Embedding
from kandinsky22.request.lora import LoRA
from kandinsky22.request.parts import Condition, Mask, Mix, Part, Sampling, Start, Text
from kandinsky22.request.picture import Picture
from kandinsky22.request.request import Defaults, Request

__all__ = [
    "Condition",
    "Defaults",
    "Embedding",
    "LoRA",
    "Mask",
    "Mix",
    "Part",
    "Picture",
    "Request",
    "Sampling",
    "Start",
    "Text",
]
