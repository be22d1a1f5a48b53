"""A small model's language: which words of a prompt it never learnt. Imports no torch."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

TOLD = ("shapes", "colors")  # the kinds that say in a line what a language is about


def unknown_words(prompts: Iterable[str], words: Mapping[str, Any]) -> str | None:
    """One line naming the words outside a model's language, what it does know, and what paints everything.

    `words` is the model's language by kind, as its `kandinsky22.json` holds it; a model without one knows no bounds.
    """
    if not words:
        return None
    known = vocabulary(words)
    said = [word for prompt in prompts for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", prompt.lower())]
    strange = list(dict.fromkeys(word for word in said if word not in known))
    if not strange:
        return None
    knows = "; ".join(", ".join(words[kind]) for kind in TOLD if kind in words)
    return (
        f"this small model never learnt {', '.join(strange)}; it knows {knows} (all of it: `kandinsky22 words`); for "
        "everything else pass the real weights, --model FOLDER"
    )


def vocabulary(words: Mapping[str, Sequence[str]]) -> set[str]:
    """The single words of a language by kind."""
    return {word for phrases in words.values() for phrase in phrases for word in phrase.split()}
