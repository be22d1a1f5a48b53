"""Published FIDs, with their sources. None of them can be compared directly with a number measured here.

The model card's table states no resolution, steps, guidance, resizing or choice of captions, and each of its rows was
measured by another team. `source` is where else a row's figure was found; some are on the card alone. `protocol` is
what the source states about how it was measured.
"""

from typing import NamedTuple

CARD = "as the model card of Kandinsky 2.2 has it, section Evaluation"
PROTOCOLS_DIFFER = (
    "Protocols differ: which 30,000 captions, the size of the pictures, how they are resized for Inception, steps and "
    "guidance each change FID by more than many of these rows differ, and the card does not state them. The card's row "
    "of 8.21 is of Kandinsky 2.1; no FID of Kandinsky 2.2 was ever published."
)


class PublishedFID(NamedTuple):
    """A published FID on 30,000 captions of COCO, zero-shot."""

    model: str
    fid: float
    source: str
    protocol: str = ""


CARD_TABLE = (
    PublishedFID("eDiff-I (2022)", 6.95, CARD),
    PublishedFID(
        "Imagen (2022)", 7.27, "abstract of arXiv:2205.11487", "“without ever training on COCO”; the card says “Image”"
    ),
    PublishedFID("Kandinsky 2.1 (2023)", 8.21, CARD, "“COCO_30k, zero-shot”; nothing else is stated"),
    PublishedFID("Stable Diffusion 2.1 (2022)", 8.59, CARD),
    PublishedFID(
        "GigaGAN, 512x512 (2023)",
        9.09,
        "Papers with Code, for arXiv:2303.05511",
        "“zero-shot, 256x256”, where the card has 512x512",
    ),
    PublishedFID(
        "DALL-E 2 (2022)", 10.39, "table 2 of a survey (Cao et al. 2024), for arXiv:2204.06125", "“zero-shot”"
    ),
    PublishedFID("GLIDE (2022)", 12.24, "Papers with Code, for arXiv:2112.10741", "“zero-shot”"),
    PublishedFID("Kandinsky 1.0 (2022)", 15.40, CARD),
    PublishedFID(
        "DALL-E (2021)", 17.89, "Wizwand, for arXiv:2102.12092", "“MS-COCO 256x256 (val)”; of other lists, 27.5 or 28.0"
    ),
    PublishedFID("Kandinsky 2.0 (2022)", 20.00, CARD),
    PublishedFID(
        "GLIGEN (2022)",
        21.04,
        "Wizwand, for arXiv:2301.07093",
        "“COCO 30k subset 2014 (val)”, and the same for layouts of COCO 2017",
    ),
)
"""The eleven rows of the card. Sources that are lists quote the papers, which were not checked."""

_PAPER = "section 6 of arXiv:2310.03502, on the architecture of 2.1"
FAMILY = (
    PublishedFID("Kandinsky, linear prior", 8.03, _PAPER, "COCO-30K validation, 256x256"),
    PublishedFID("Kandinsky, diffusion prior, MoVQ quantised", 9.86, _PAPER, "COCO-30K validation, 256x256"),
    PublishedFID("Kandinsky, diffusion prior, MoVQ not quantised", 9.87, _PAPER, "COCO-30K validation, 256x256"),
)
"""The rows of the paper on Kandinsky.

Its protocol differs from the card's: the system of the card's 8.21 has 9.86 there.
"""
