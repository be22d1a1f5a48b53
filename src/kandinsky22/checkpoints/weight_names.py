"""The names of weight files, as diffusers and transformers write them, and which copy of several to read."""

import re
from collections.abc import Iterable

WEIGHT_FILE = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>[a-z]\w*))?(?P<shard>-\d{5}-of-\d{5})?"
    r"(?:\.(?P<variant_of_shard>(?!safetensors|bin)[a-z]\w*))?\.(?P<kind>safetensors|bin)"
    r"(?P<index>\.index(?:\.(?P<variant_of_index>\w+))?\.json)?"
)
"""A file of a network's weights, one of several (a shard), or the index of several."""


def is_variant(name: str, variant: str) -> bool:
    """Whether a file's name is that of weights of a variant."""
    match = WEIGHT_FILE.fullmatch(name)
    return match is not None and variant in (match["variant"], match["variant_of_shard"], match["variant_of_index"])


def choose_weights(names: Iterable[str], variant: str | None = None) -> list[str]:
    """The files of one copy of a network's weights among a folder's file names; empty if there are none.

    The first is the one to open: the file itself, or the index of several, which follow. Of several copies it is the
    one of `variant` (such as "fp16") if there is one; else safetensors before pickled, then no variant before
    variants.
    """
    copies: dict[tuple[str, str, bool], list[str]] = {}
    for name in names:
        if match := WEIGHT_FILE.fullmatch(name):
            named_variant = match["variant"] or match["variant_of_shard"] or match["variant_of_index"] or ""
            is_sharded = bool(match["shard"] or match["index"])
            copies.setdefault((named_variant, match["kind"], is_sharded), []).append(name)
    without_index = {
        key for key, files in copies.items() if key[2] and not any(name.endswith(".json") for name in files)
    }
    complete = [key for key in copies if key not in without_index]  # shards without an index cannot be read
    if not complete:
        return []

    def rank(copy: tuple[str, str, bool]) -> tuple[bool, bool, bool, bool, str, bool]:
        named, kind, is_sharded = copy
        return named != (variant or named), kind != "safetensors", named != "", named != "fp16", named, is_sharded

    return sorted(copies[min(complete, key=rank)], key=lambda name: (not name.endswith(".json"), name))
