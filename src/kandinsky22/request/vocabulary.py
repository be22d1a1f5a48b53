"""The vocabulary of a small model: which words of a prompt it was not trained on. Imports no torch."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SUMMARY_KINDS = ("shapes", "colors")  # the kinds of words that a notice lists


def unknown_words_notice(prompts: Iterable[str], language: Mapping[str, Any]) -> str | None:
    """One line that names the words outside a model's vocabulary and what to use instead; None if there are none.

    language: the model's words by kind, as in its `kandinsky22.json`; empty for a model without a limited vocabulary.
    """
    if not language:
        return None
    known = known_words(language)
    words = [word for prompt in prompts for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", prompt.lower())]
    unknown = list(dict.fromkeys(word for word in words if word not in known))
    if not unknown:
        return None
    kinds = [", ".join(language[kind]) for kind in SUMMARY_KINDS if kind in language]
    summary = "; ".join(kinds) or f"{len(known)} words"
    return (
        f"this small model was not trained on {', '.join(unknown)}; it knows {summary} (`kandinsky22 words` lists "
        "everything); for other prompts use the published weights, --model kandinsky-2.2"
    )


def known_words(language: Mapping[str, Sequence[str]]) -> set[str]:
    """The single words of a language given as phrases by kind."""
    return {word for phrases in language.values() for phrase in phrases for word in phrase.split()}
