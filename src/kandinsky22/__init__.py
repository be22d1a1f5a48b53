"""Kandinsky 2.2: one engine for all its tasks.

Names are resolved lazily, so that importing the package imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kandinsky22.engine.kandinsky import Kandinsky
    from kandinsky22.imaging.depth import depth
    from kandinsky22.imaging.images import Painting
    from kandinsky22.request import Embedding, Mask, Mix, Picture, Request, Sampling, Start, Text
    from kandinsky22.request.embedding import mix, slerp
    from kandinsky22.request.tasks import controlnet, img2img, inpaint, interpolate, outpaint, text2img, variations

__version__ = "0.1.0"
_HOMES = {
    "engine.kandinsky": ("Kandinsky",),
    "imaging.depth": ("depth",),
    "imaging.images": ("Painting",),
    "request.embedding": ("Embedding", "mix", "slerp"),
    "request.parts": ("Mask", "Mix", "Sampling", "Start", "Text"),
    "request.picture": ("Picture",),
    "request.request": ("Request",),
    "request.tasks": ("controlnet", "img2img", "inpaint", "interpolate", "outpaint", "text2img", "variations"),
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
