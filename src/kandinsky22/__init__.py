"""Kandinsky 2.2, whole: one engine for all its tasks. Names are resolved lazily, so importing this imports no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kandinsky22.images import Picture
    from kandinsky22.kandinsky import Kandinsky
    from kandinsky22.request import Request, Sampling, Text
    from kandinsky22.tasks import text2img

__version__ = "0.1.0"
__all__ = ["Kandinsky", "Picture", "Request", "Sampling", "Text", "text2img"]

_HOMES = {
    "Kandinsky": "kandinsky",
    "Picture": "images",
    "Request": "request",
    "Sampling": "request",
    "Text": "request",
    "text2img": "tasks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
