"""Kandinsky 2.2, whole: one engine for all its tasks. Names are resolved lazily, so importing this imports no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kandinsky22.depth_estimation import depth
    from kandinsky22.embedding import Embedding, mix, slerp
    from kandinsky22.images import Painting
    from kandinsky22.kandinsky import Kandinsky
    from kandinsky22.picture import Picture
    from kandinsky22.request import Mask, Mix, Request, Sampling, Start, Text
    from kandinsky22.tasks import controlnet, img2img, inpaint, interpolate, outpaint, text2img, variations

__version__ = "0.1.0"
_HOMES = {
    "depth_estimation": ("depth",),
    "embedding": ("Embedding", "mix", "slerp"),
    "images": ("Painting",),
    "kandinsky": ("Kandinsky",),
    "picture": ("Picture",),
    "request": ("Mask", "Mix", "Request", "Sampling", "Start", "Text"),
    "tasks": ("controlnet", "img2img", "inpaint", "interpolate", "outpaint", "text2img", "variations"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = [
    "Embedding",
    "Kandinsky",
    "Mask",
    "Mix",
    "Painting",
    "Picture",
    "Request",
    "Sampling",
    "Start",
    "Text",
    "controlnet",
    "depth",
    "img2img",
    "inpaint",
    "interpolate",
    "mix",
    "outpaint",
    "slerp",
    "text2img",
    "variations",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
