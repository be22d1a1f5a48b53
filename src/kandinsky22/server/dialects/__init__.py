"""The dialects that clients speak: one module of routes each, with the shape of its errors."""

from collections.abc import Sequence
from typing import cast

from kandinsky22.server.app import Dialect
from kandinsky22.server.dialects import a1111, fusionbrain, native, openai, studio

DIALECTS: Sequence[Dialect] = tuple(cast(Dialect, module) for module in (openai, a1111, fusionbrain, native, studio))
"""All of them. An error outside of their paths has the shape of the first."""
