"""What of the acceleration is left out, by the environment: for those who look for what makes a difference.

`KANDINSKY22_ACCELERATION` is "off", or names of `PARTS` with commas between them. Each part works without the others, and
none changes what is computed.
"""

import os
from functools import cache

SWITCH = "KANDINSKY22_ACCELERATION"
PARTS = {
    "convolutions": "Winograd's algorithm and convolutions as matrix products, on a CPU",
    "normalisations": "normalisation, scale, shift and SiLU in one",
    "linear": "linear maps by what reads a weight fastest, on a CPU",
    "kernels": "compiled kernels; what they compute plain torch computes instead",
    "filters": "memory for transformed filters, on a CPU; they are made anew at every call",
    "recording": "a GPU's steps recorded and played",
    "pages": "huge pages for large tensors, on Linux",
    "allocator": "keeping what tensors free until a stage is done, with glibc",
}
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # in the environment too, where torch looks when it first allocates


def off() -> bool:
    """Whether nothing is to be accelerated."""
    return "off" in _told()


def uses(part: str) -> bool:
    """Whether a part is to be used. Raises `ValueError` where what is left out is none of them."""
    told = _told()
    if not told <= PARTS.keys() | {"off"}:
        raise ValueError(
            f"{SWITCH} must be off, or some of {', '.join(PARTS)} with commas between them, got {os.environ[SWITCH]!r}"
        )
    return part not in told


def ask_for_huge_pages() -> None:
    """Have torch ask for them, unless it is told already. A step's memory takes longer to fetch in pages of 4 KB than to compute
    with. For this process and those that it starts."""
    if not _told() & {"off", "pages"}:  # an unknown word is refused when a network is prepared, not at import
        os.environ.setdefault(HUGE_PAGES, "1")


def _told() -> frozenset[str]:
    return _words(os.environ.get(SWITCH, ""))


@cache  # it is asked for at every call of a kernel
def _words(told: str) -> frozenset[str]:
    return frozenset(word.strip() for word in told.split(",")) - {""}
