"""What a tokenizer makes of captions: whether it knows their words, and whether they fit."""

from collections.abc import Sequence

import numpy as np

from kandinsky22.models.tokenizer import Tokenizer, learn
from kandinsky22.training.data import Pictures

LEARNED_FROM = 20_000  # captions that a tokenizer is learned from
CHECKED = 2000  # captions that a tokenizer is checked on
REPORTED = 0.1  # share of the captions above which a fault is reported
LETTERS_PER_TOKEN = 2  # a caption with fewer is spelled letter by letter


def draw_captions(sets: Sequence[Pictures], count: int) -> list[str]:
    """`count` captions, as many of each set; the same at each call."""
    rng, each = np.random.default_rng(0), count // len(sets)
    return [text for pictures in sets for text in pictures.captions(np.arange(each) % len(pictures), rng)]


def learn_tokenizer(sets: Sequence[Pictures], vocabulary: int, text_length: int) -> Tokenizer:
    """A tokenizer with at most `vocabulary` tokens, learned from the captions of the sets."""
    return learn(draw_captions(sets, LEARNED_FROM), vocabulary, text_length)


def tokenizer_notice(tokenizer: Tokenizer, sets: Sequence[Pictures]) -> str:
    """A sentence that says how many captions the tokenizer spells letter by letter or cuts, and the fix.

    Empty if each concerns at most a tenth of them.
    """
    captions = [text for text in draw_captions(sets, CHECKED) if text]
    lengths = [len(tokenizer.token_ids(text)) for text in captions]
    spelled = [
        text
        for text, length in zip(captions, lengths, strict=True)
        if len("".join(text.split())) < LETTERS_PER_TOKEN * (length - 2)
    ]
    cut = sum(length > tokenizer.max_length for length in lengths)
    faults = []
    if len(spelled) > REPORTED * len(captions):
        longest = max(spelled, key=lambda text: len(tokenizer.token_ids(text)) / len(text))
        faults.append(
            f"spells {len(spelled) / len(captions):.0%} of the captions almost letter by letter ({longest:.40} takes "
            f"{len(tokenizer.token_ids(longest)) - 2} tokens)"
        )
    if cut > REPORTED * len(captions):
        faults.append(
            f"cuts {cut / len(captions):.0%} of the captions at its limit of {tokenizer.max_length - 2} tokens"
        )
    if not faults:
        return ""
    return (
        f"this model's tokenizer {' and '.join(faults)}, so their words are learnt badly or not at all; "
        "`train clip` with --new-tokenizer learns one from these captions, and the prior is then to be trained again"
    )
