"""A world of abstract compositions: random scenes, their pictures and captions, and an oracle that reads pictures.

`sample` a scene, `render` it, `caption` it; `read` a picture, `judge` it. Needs numpy and Pillow only. Scenes with
emoji (`thing_scenes`) and their captions in two languages (`wording`) need drawings that `runs/fetch_things.py`
downloads.
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
