"""Linear probes: heads that predict a scene's attributes from a CLIP embedding, and the attributes as class labels.

The heads are trained with CLIP, so that its embeddings become linear in the attributes, and then measure it; they are
not shipped. Shape, count and place are attributes of a colour, because the groups of a scene differ in colour.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.compositions import COLORS, DECORATIONS, GROUNDS, OPPOSITES, RELATIONS, SHAPES, STYLES, Scene

# Classes of each colour: its shape (the last class: absent), count, and place (absent, alone, or one of the relations).
PLACES = ("absent", "alone", *RELATIONS)
PER_COLOR = {"shape": len(SHAPES) + 1, "count": 5, "place": len(PLACES)}
PER_SCENE = {"ground": len(GROUNDS), "decoration": len(DECORATIONS), "style": len(STYLES)}
THING_ATTRIBUTES = {"thing_count": 5, "drawing": 2}  # classes of scenes with things, beside which thing it is
UNSTATED = -100  # the class index that cross-entropy skips
ABSENT_WEIGHT = 0.2  # weight of an absent colour's loss; a present one has 1


def labels(scenes: Sequence[Scene], captions: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Class indices of scenes: [N, 8] for attributes of a colour, [N] for ground, decoration and style.

    With captions, a ground or decoration that the caption does not mention is UNSTATED. No decoration, and paper, the
    default style, are the empty word, so they count as mentioned.
    """
    colors, grounds, shapes = list(COLORS), list(GROUNDS), list(SHAPES)
    classes = {
        "shape": torch.full((len(scenes), len(colors)), len(shapes)),
        "count": torch.zeros(len(scenes), len(colors), dtype=torch.int64),
        "place": torch.zeros(len(scenes), len(colors), dtype=torch.int64),
        "ground": torch.tensor([grounds.index(s.ground) for s in scenes]),
        "decoration": torch.tensor([DECORATIONS.index(s.decoration) for s in scenes]),
        "style": torch.tensor([STYLES.index(s.style) for s in scenes]),
    }
    for row, scene in enumerate(scenes):
        places = ["alone"] if scene.relation is None else [scene.relation, OPPOSITES[scene.relation]]
        for group, place in zip(scene.groups, places, strict=True):
            color = colors.index(group.color)
            classes["shape"][row, color] = shapes.index(group.shape)
            classes["count"][row, color] = group.count
            classes["place"][row, color] = PLACES.index(place)
        if captions is not None:
            if scene.ground not in captions[row]:
                classes["ground"][row] = UNSTATED
            if scene.decoration not in captions[row]:
                classes["decoration"][row] = UNSTATED
    return classes


class Probes(nn.Module):
    """One linear layer from an embedding [B, D] to the logits of every attribute; `things`: the number of things to
    classify, 0 for the world of shapes."""

    def __init__(self, dim: int, things: int = 0) -> None:
        super().__init__()
        self.sizes = {
            **{k: (len(COLORS), n) for k, n in PER_COLOR.items()},
            **{k: (1, n) for k, n in PER_SCENE.items()},
        }
        if things:
            self.sizes |= {"thing": (1, things), **{k: (1, n) for k, n in THING_ATTRIBUTES.items()}}
        self.linear = nn.Linear(dim, sum(a * b for a, b in self.sizes.values()))

    def forward(self, embeds: Tensor) -> dict[str, Tensor]:
        """Logits: [B, 8, classes] for attributes of a colour, [B, classes] for the rest."""
        parts = self.linear(embeds).split([a * b for a, b in self.sizes.values()], dim=-1)
        shaped = {name: p.unflatten(-1, size) for (name, size), p in zip(self.sizes.items(), parts, strict=True)}
        return {name: p if name in PER_COLOR else p[:, 0] for name, p in shaped.items()}

    def loss(self, embeds: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of each embedding, [B], summed over attributes; absent colours have a small weight."""
        present = (targets["count"] > 0).float()
        weights = present + ABSENT_WEIGHT * (1 - present)
        total = embeds.new_zeros(len(embeds))
        for name, logits in self(embeds).items():
            logits = logits.float()
            if name in PER_COLOR:
                each = F.cross_entropy(logits.transpose(1, 2), targets[name], reduction="none")
                total = total + (each * weights).mean(dim=1)
            else:
                each = F.cross_entropy(logits, targets[name], reduction="none", ignore_index=UNSTATED)
                total = total + 0.2 * each
        return total

    @torch.no_grad()
    def accuracy(self, embeds: Tensor, targets: dict[str, Tensor]) -> dict[str, float]:
        """The share of correct predictions, by attribute: of the stated ones, and for attributes of a colour, of
        colours present."""
        present = targets["count"] > 0
        rates = {}
        for name, logits in self(embeds).items():
            stated = present if name in PER_COLOR else targets[name] != UNSTATED
            rates[name] = float((logits.argmax(-1) == targets[name])[stated].float().mean())
        return rates
