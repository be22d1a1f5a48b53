"""CLIP's tokenizer: prompts -> ids, by byte-pair encoding (Sennrich et al. 2016; Radford et al. 2021).

The rules are CLIP's, run by the `tokenizers` library; the tables are the published vocab.json and merges.txt, or are
learnt from captions. Knows no files and no network.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Self

import tokenizers
import torch
from tokenizers import Encoding, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
# One word: a special token, a contraction, a run of letters, one digit, or a run of anything else that is not space.
WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokens(NamedTuple):
    ids: Tensor  # int64 [B, max_length]: start, the prompt, end, and end again as padding
    mask: Tensor  # bool [B, max_length]: true from start to the first end after the prompt
    dropped: tuple[str, ...]  # per prompt, its text from the first word that did not fit whole; "" if all did

    def trimmed(self) -> Self:
        """Without the padding that no prompt needs: nothing before an end token looks at what follows it."""
        longest = int(self.mask.sum(dim=1).max())
        return self._replace(ids=self.ids[:, :longest], mask=self.mask[:, :longest])


class Tokenizer:
    """`vocab` (token -> id) and `merges` (first learnt first) as published; `max_length` counts start and end.

    The end token must have the largest id: CLIP pools there, and padding must not move it. Raises ValueError if it has
    not, if a special token is missing, if vocabulary and merges are not of one tokenizer, or if no token would fit.
    """

    def __init__(self, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], max_length: int = 77) -> None:
        for token in (START, END):
            if token not in vocab:
                raise ValueError(f"the vocabulary lacks {token}; is it CLIP's?")
        _check_tables(vocab, merges)
        if vocab[END] != max(vocab.values()):
            raise ValueError(
                f"{END} must have the largest id, {max(vocab.values())}, got {vocab[END]}; CLIP pools there"
            )
        if max_length < 3:
            raise ValueError(f"max_length must be at least 3 (start, one token, end), got {max_length}")
        self.vocab = dict(vocab)
        self.merges = tuple(merges)
        self.max_length = max_length
        self.start, self.end = vocab[START], vocab[END]
        # A letter that the vocabulary lacks becomes the end token, as in transformers; the published one lacks none.
        model = models.BPE(vocab=self.vocab, merges=list(merges), end_of_word_suffix=WORD_END, unk_token=END)
        self._backend = _clip_rules(model)
        self._backend.add_special_tokens([START, END])  # typed out in a prompt, they mean themselves

    def __call__(self, prompts: list[str]) -> Tokens:
        rows, lengths, dropped = [], [], []
        for prompt, encoding in zip(prompts, self._backend.encode_batch(prompts), strict=True):
            prompt_ids = encoding.ids[: self.max_length - 2]
            rows.append([self.start, *prompt_ids] + [self.end] * (self.max_length - 1 - len(prompt_ids)))
            lengths.append(len(prompt_ids) + 2)
            dropped.append(_tail(prompt, encoding, len(prompt_ids)))
        ids = torch.tensor(rows, dtype=torch.int64).view(-1, self.max_length)
        mask = torch.arange(self.max_length) < torch.tensor(lengths).view(-1, 1)
        return Tokens(ids, mask, tuple(dropped))

    def token_ids(self, prompt: str) -> list[int]:
        """The ids of a prompt of any length, start and end included, without padding."""
        return [self.start, *self._backend.encode(prompt).ids, self.end]

    def text_of(self, ids: Sequence[int], *, special: bool = True) -> str:
        """The text of ids; special: with start and end. Words are separated by one space."""
        tokens = {i: token for token, i in self.vocab.items()}
        chosen = [tokens[i] for i in ids if special or i not in (self.start, self.end)]
        words = "".join(token + WORD_END if token in (START, END) else token for token in chosen).split(WORD_END)
        return " ".join(decoders.ByteLevel().decode([word]) for word in words if word)


def learn(captions: Iterable[str], size: int, max_length: int) -> Tokenizer:
    """Learn a tokenizer of the published kind: 256 letters for the bytes, the same as word ends, merges, start, end.

    Every text can be spelled in bytes, so no word is unknown, and merges stay inside words, so what stands beside a
    word never changes its tokens. The vocabulary has `size` ids, or fewer once every word of the captions is one token.
    Raises ValueError if `size` is below the 514 that are always there.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + WORD_END for letter in letters)]
    if size < len(tokens) + 2:
        raise ValueError(f"size must be at least {len(tokens) + 2} (bytes, their word ends, start, end), got {size}")
    backend = _clip_rules(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=letters, end_of_word_suffix=WORD_END, show_progress=False
    )
    texts = (caption.replace(START, " ").replace(END, " ") for caption in captions)  # special tokens are no words
    backend.train_from_iterator(texts, trainer)
    # The trainer counts only the word ends it met, so it learns a few merges more than fit: leave out the last.
    vocab = {token: i for i, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    for left, right in json.loads(backend.to_str())["model"]["merges"]:
        if left + right not in vocab:  # two merges may spell one token
            if len(vocab) + 2 == size:
                break
            vocab[left + right] = len(vocab)
        merges.append((left, right))
    for token in (START, END):
        vocab[token] = len(vocab)
    return Tokenizer(vocab, merges, max_length)


def _check_tables(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> None:
    """Raises `ValueError` unless the merges make the tokens of the vocabulary, beside letters and special tokens."""
    if not all(type(number) is int for number in vocab.values()) or {*vocab.values()} != {*range(len(vocab))}:
        raise ValueError(f"the ids of its {len(vocab)} tokens must be the numbers from 0 to {len(vocab) - 1}")
    letters = {token for token in vocab if len(token.removesuffix(WORD_END)) == 1}
    merged = {left + right for left, right in merges}
    if unknown := merged.union(*merges) - vocab.keys():
        raise ValueError(f"the vocabulary lacks {min(unknown)!r:.100}, which merges.txt names; fetch both again")
    if unmade := vocab.keys() - merged - letters - {START, END}:
        raise ValueError(
            f"no line of merges.txt makes {min(unmade)!r:.100} and {len(unmade) - 1} other tokens; fetch it again"
        )


def _clip_rules(model: models.BPE) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    one_space = normalizers.Replace(Regex(r"\s+"), " ")
    words = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), one_space, normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    return backend


def _tail(prompt: str, encoding: Encoding, first: int) -> str:
    """The prompt from the word to which token number `first` belongs; "" if there is no such token."""
    if first == len(encoding.ids):
        return ""
    while first > 0 and encoding.word_ids[first - 1] == encoding.word_ids[first]:
        first -= 1
    return prompt[encoding.offsets[first][0] :].strip()
