"""Kandinsky 2.2: one engine for all its tasks.

Names are resolved lazily, so that importing the package, or listing its names, imports no torch.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kandinsky22.engine.kandinsky import Kandinsky
    from kandinsky22.imaging.depth import depth
    from kandinsky22.imaging.images import Painting
    from kandinsky22.request import Embedding, LoRA, Mask, Mix, Picture, Request, Sampling, Start, Text
    from kandinsky22.request.embedding import mix, slerp
    from kandinsky22.request.tasks import controlnet, img2img, inpaint, interpolate, outpaint, text2img, variations

__version__ = "0.1.0"
_HOMES = {
    "engine.kandinsky": ("Kandinsky",),
    "imaging.depth": ("depth",),
    "imaging.images": ("Painting",),
    "request.embedding": ("Embedding", "mix", "slerp"),
    "request.lora": ("LoRA",),
    "request.parts": ("Mask", "Mix", "Sampling", "Start", "Text"),
    "request.picture": ("Picture",),
    "request.request": ("Request",),
    "request.tasks": ("controlnet", "img2img", "inpaint", "interpolate", "outpaint", "text2img", "variations"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = [
    "Embedding",
    "Kandinsky",
    "LoRA",
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


class _Package(ModuleType):
    """The package with its public names as properties, which completion in a shell lists without reading them."""

    def __dir__(self) -> list[str]:
        return [*__all__, "__version__"]


def _lazy(name: str, home: str) -> property:
    return property(lambda _: getattr(import_module(f"{__name__}.{home}"), name))


for _name, _home in _HOME_OF.items():
    setattr(_Package, _name, _lazy(_name, _home))
sys.modules[__name__].__class__ = _Package
