"""A little world of abstract compositions: random scenes, their pictures and captions, and an oracle that reads them.

A leaf of the package: numpy and Pillow only. `sample` a scene, `render` it, `caption` it; `read` a picture, `judge` it.
"""

from kandinsky22.compositions.captions import EXAMPLES, OPPOSITES, WORDS, caption, language, perturb
from kandinsky22.compositions.oracle import Reading, Seen, judge, read, wilson
from kandinsky22.compositions.pieces import Piece
from kandinsky22.compositions.render import Layers, layers, render
from kandinsky22.compositions.segments import foreground
from kandinsky22.compositions.world import (
    COLORS,
    DECORATIONS,
    GROUNDS,
    HELD_OUT_PAIRS,
    PLURALS,
    RELATIONS,
    SHAPES,
    STYLES,
    Group,
    Scene,
    sample,
)

__all__ = [
    "COLORS",
    "DECORATIONS",
    "EXAMPLES",
    "GROUNDS",
    "HELD_OUT_PAIRS",
    "OPPOSITES",
    "PLURALS",
    "RELATIONS",
    "SHAPES",
    "STYLES",
    "WORDS",
    "Group",
    "Layers",
    "Piece",
    "Reading",
    "Scene",
    "Seen",
    "caption",
    "foreground",
    "judge",
    "language",
    "layers",
    "perturb",
    "read",
    "render",
    "sample",
    "wilson",
]
