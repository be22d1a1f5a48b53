"""Figures that others published, with where they stand. None of them is comparable with a number of ours by itself.

The model card's table names no resolution, no steps, no guidance, no way of resizing and no choice of captions, and its rows
were measured by as many teams. `source` is where else a row's figure was found, by us; of some only the card has it. `protocol`
is what is said there of how it was measured.
"""

from typing import NamedTuple

CARD = "as the model card of Kandinsky 2.2 has it, section Evaluation"
PROTOCOLS_DIFFER = (
    "Protocols differ: which 30,000 captions, the size of the pictures, how they are resized for Inception, steps and guidance "
    "each move FID by more than many of these rows are apart, and the card does not say them. The card's row of 8.21 is of "
    "Kandinsky 2.1; no FID of Kandinsky 2.2 was ever published."
)


class Figure(NamedTuple):
    """A published FID on 30,000 captions of COCO, zero-shot."""

    model: str
    fid: float
    source: str
    protocol: str = ""


CARD_TABLE = (
    Figure("eDiff-I (2022)", 6.95, CARD),
    Figure(
        "Imagen (2022)", 7.27, "abstract of arXiv:2205.11487", "“without ever training on COCO”; the card says “Image”"
    ),
    Figure("Kandinsky 2.1 (2023)", 8.21, CARD, "“COCO_30k, zero-shot”; nothing else is said"),
    Figure("Stable Diffusion 2.1 (2022)", 8.59, CARD),
    Figure(
        "GigaGAN, 512x512 (2023)",
        9.09,
        "Papers with Code, for arXiv:2303.05511",
        "“zero-shot, 256x256”, where the card has 512x512",
    ),
    Figure("DALL-E 2 (2022)", 10.39, "table 2 of a survey (Cao et al. 2024), for arXiv:2204.06125", "“zero-shot”"),
    Figure("GLIDE (2022)", 12.24, "Papers with Code, for arXiv:2112.10741", "“zero-shot”"),
    Figure("Kandinsky 1.0 (2022)", 15.40, CARD),
    Figure(
        "DALL-E (2021)", 17.89, "Wizwand, for arXiv:2102.12092", "“MS-COCO 256x256 (val)”; of other lists, 27.5 or 28.0"
    ),
    Figure("Kandinsky 2.0 (2022)", 20.00, CARD),
    Figure(
        "GLIGEN (2022)",
        21.04,
        "Wizwand, for arXiv:2301.07093",
        "“COCO 30k subset 2014 (val)”, and the same for layouts of COCO 2017",
    ),
)
"""The eleven rows of the card. The lists named are others' readings of the papers, which could not be opened here."""

_PAPER = "section 6 of arXiv:2310.03502, on the architecture of 2.1"
FAMILY = (
    Figure("Kandinsky, linear prior", 8.03, _PAPER, "COCO-30K validation, 256x256"),
    Figure("Kandinsky, diffusion prior, MoVQ quantised", 9.86, _PAPER, "COCO-30K validation, 256x256"),
    Figure("Kandinsky, diffusion prior, MoVQ not quantised", 9.87, _PAPER, "COCO-30K validation, 256x256"),
)
"""What the family's paper has beside it: another protocol than the card's, since the same system is at 9.86 there."""
