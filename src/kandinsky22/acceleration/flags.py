"""The environment variable that switches acceleration off, whole or in parts: to find out what makes a difference.

`KANDINSKY22_ACCELERATION` is "off", or names of `PARTS` separated by commas, which are then not used. Each part works
without the others, and none changes what is computed.
"""

import os
from functools import cache

ENV_VARIABLE = "KANDINSKY22_ACCELERATION"
PARTS = {
    "convolutions": "Winograd's algorithm and convolutions as matrix products, on a CPU",
    "normalisations": "normalisation, scale, shift and SiLU in one",
    "linear": "linear layers by the library that reads the weight fastest, on a CPU",
    "kernels": "compiled kernels; plain torch computes the same instead",
    "filters": "memory for transformed filters, on a CPU; without it they are transformed at every call",
    "recording": "a GPU's steps recorded as CUDA graphs and replayed",
    "pages": "huge pages for large tensors, on Linux",
    "allocator": "keeping what tensors free until a stage is done, with glibc",
}
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # the environment variable that torch reads at its first allocation


def is_off() -> bool:
    """Whether all acceleration is switched off."""
    return "off" in _disabled_parts()


def uses(part: str) -> bool:
    """Whether a part is enabled. Raises `ValueError` where the variable names anything but "off" and parts."""
    disabled = _disabled_parts()
    if not disabled <= PARTS.keys() | {"off"}:
        raise ValueError(
            f"{ENV_VARIABLE} must be off, or some of {', '.join(PARTS)} separated by commas, "
            f"got {os.environ[ENV_VARIABLE]!r}"
        )
    return part not in disabled


def request_huge_pages() -> None:
    """Ask torch for huge pages, by its environment variable, unless that is set or the part is disabled.

    For this process and those that it starts. It works only before torch allocates its first tensor on the CPU, which
    is when torch reads the variable; importing this package allocates none. In pages of 4 KB, a step's memory takes
    longer to map than to compute with.
    """
    if not _disabled_parts() & {"off", "pages"}:  # a wrong name is reported by `uses`, when a network is prepared
        os.environ.setdefault(HUGE_PAGES, "1")


def _disabled_parts() -> frozenset[str]:
    return _split(os.environ.get(ENV_VARIABLE, ""))


@cache  # called at every call of a kernel
def _split(names: str) -> frozenset[str]:
    return frozenset(name.strip() for name in names.split(",")) - {""}
