"""Which prompt is meant: what was typed, something at random, or none because a command was mistyped."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from kandinsky22.checkpoints import catalog, locate
from kandinsky22.checkpoints.metadata import read_metadata
from kandinsky22.request.vocabulary import vocabulary

OPTIONS_AS_WORDS = {"help": "--help", "version": "--version"}


def typed_prompt(words: Sequence[str], commands: Iterable[str], model: str) -> str:
    """The prompt among words that followed no `--`; "" is none. Raises `ValueError` where they look like a command."""
    if not words:
        return ""
    first = words[0]
    meant = _command_meant(first, [*commands, *OPTIONS_AS_WORDS])
    mistake = "the command goes first" if meant == first else f'no command "{first}"; did you mean {meant}?'
    if len(words) > 1:
        quoted = f'a prompt of several words needs quotes: kandinsky22 "{" ".join(words)}"'
        raise ValueError(mistake if meant else quoted)
    if meant and first.lower() not in _vocabulary(model):
        raise ValueError(f"{mistake} (to paint that word: kandinsky22 -- {first})")
    if first.lower().endswith(".png") and Path(first).is_file():
        raise ValueError(f"{first} is a picture; did you mean kandinsky22 show {first}, or replay?")
    return first


def random_prompt(seed: int, model: str) -> str:
    """A sentence of the small model's language; a seed says the same one again."""
    import numpy as np

    from kandinsky22.compositions import caption, sample

    known = _vocabulary(model)
    rng = np.random.default_rng(seed)
    sentences = (caption(sample(rng)) for _ in range(1000))  # the program draws more than every model was taught
    return next((said for said in sentences if known >= set(said.replace(",", "").split())), caption(sample(rng)))


def _command_meant(word: str, commands: Sequence[str]) -> str:
    close = get_close_matches(word.lower(), commands, 1, 0.7)
    return OPTIONS_AS_WORDS.get(close[0], close[0]) if close else ""


def _vocabulary(model: str) -> set[str]:
    try:
        return vocabulary(read_metadata(locate.part_folders(model).get(catalog.DECODER)).words)
    except ValueError:  # a model that cannot be read is told of when it is loaded
        return set()
