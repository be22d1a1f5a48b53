"""The tokenizer, against transformers with the published tables and with tables learnt from captions."""

import gzip
import json
import random
import subprocess
import sys
import zipfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from kandinsky22.models.tokenizer import END, START, Tokenizer, learn

CACHE = Path(__file__).parents[2] / ".cache" / "open_clip"
Tables = tuple[dict[str, int], list[tuple[str, str]]]
CAPTIONS = [
    f"{count} {size} {color} {shape}s {relation} a {other} square on a {ground} ground"
    for count in ("two", "three", "four")
    for size in ("small", "large")
    for color, other in (("red", "blue"), ("blue", "yellow"), ("black", "red"))
    for shape in ("circle", "triangle", "line")
    for relation in ("over", "under", "left of")
    for ground in ("cream", "grey")
]
TEXTS = [
    "",
    " ",
    "\t\n\r\x0b\x0c \u00a0\u2003\u3000",
    "a red cat, 4k photo",
    "A RED CAT; 4K PHOTO!",
    "it's we're I'll you've she'd I'm don't 'S 'RE ''s '' ' s' 'quoted'",
    "rock'n'roll O'Neill l'été",
    "3.14159 2024 1/2 x² ½ ٣٤ Ⅷ ①",
    "...!!!???--- #@$%^&*()[]{}<>|\\/~`_+=",
    "snake_case camelCase kebab-case http://example.com/?q=1&b=2",
    "Привет, мир! Ёжик в тумане; ЩЁЛК",
    "красный круг над синим треугольником",
    "你好世界，一只猫。日本語のテスト ｶﾀｶﾅ 한국어 각 가",
    "مرحبا بالعالم हिन्दी ไทย ελληνικά ΟΔΟΣ",
    "🎉🎉 👩‍👩‍👧‍👦 🇺🇦 ❤️ ☃ emoji",
    "cafe\u0301 café e\u0301\u0301 A\u030a Å Å ﬁ ｆｕｌｌ ǆ \u1112\u1161\u11ab",
    "İstanbul Iıi ß ẞ ŉ ΐ \u0130\u0307",
    "a  b\t\tc\n\nd\u00a0\u00a0e   ",
    "\x00 nul \x01\x02\x1f del \x7f \x80\x9f",
    "zero\u200bwidth\u200djoin \ufeff bom \u00adsoft \u202ertl\u202c \ufffd \U0010ffff",
    "<|startoftext|>",
    "a <|endoftext|> b",
    "<|ENDOFTEXT|><|endoftext|>",
    "<| endoftext |>",
    "<<|endoftext|>>",
    "</w> a</w>",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "a" * 500,
    "ab" * 2000,
    "!" * 300,
    "7" * 300,
    "word " * 75,
    "word " * 76,
    "Щука " * 60,
    "🎨" * 90,
]


def random_texts(count: int) -> list[str]:
    rng = random.Random(5)
    ranges = [
        (0, 0x7F),
        (0, 0x24F),
        (0x300, 0x36F),
        (0x370, 0x52F),
        (0x590, 0x8FF),
        (0x2000, 0x2BFF),
        (0x3040, 0x9FFF),
        (0xAC00, 0xD7A3),
        (0xE000, 0xFFFF),
        (0x1F300, 0x1FAFF),
        (0x10000, 0x10FFFF),
    ]
    texts = []
    for _ in range(count):
        chosen = rng.sample(ranges, rng.randint(1, 4))
        letters = (chr(rng.randint(*rng.choice(chosen))) for _ in range(rng.randint(0, 120)))
        texts.append("".join(rng.choice((letter, letter, letter, letter + " ")) for letter in letters))
    return texts


def layout(merges: list[tuple[str, str]]) -> dict[str, int]:
    """The vocabulary in the published order: bytes, bytes that end a word, merges, start, end."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(i) for i in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = [*letters, *(x + "</w>" for x in letters), *(x + y for x, y in merges), START, END]
    return {token: i for i, token in enumerate(tokens)}


@pytest.fixture(scope="module")
def published() -> Tables:
    """The published tables, rebuilt from the list of merges inside open_clip's wheel (1.5 MB, fetched once).

    Fails where no package index can be reached, so that these tests are never skipped silently.
    """
    if not list(CACHE.glob("*.whl")):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*pip, "-d", str(CACHE), "open_clip_torch"], check=True)
    with zipfile.ZipFile(next(CACHE.glob("*.whl"))) as wheel:
        lines = gzip.decompress(wheel.read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode().split("\n")
    merges = [(left, right) for left, right in map(str.split, lines[1 : 49408 - 512 - 2 + 1])]
    return layout(merges), merges


@pytest.fixture(scope="module")
def learnt() -> Tokenizer:
    return learn(CAPTIONS, size=560, max_length=32)


def assert_equal_to_transformers(tokenizer: Tokenizer, theirs: CLIPTokenizer, texts: list[str]) -> None:
    tokens = tokenizer(texts)
    expected = theirs(texts, padding="max_length", truncation=True, return_tensors="pt")
    for i, text in enumerate(texts):
        assert tokens.ids[i].tolist() == expected.input_ids[i].tolist(), text
        assert tokens.mask[i].tolist() == expected.attention_mask[i].bool().tolist(), text


def test_the_rebuilt_tables_have_the_published_file_sizes(published: Tables) -> None:
    vocab, merges = published
    assert len(vocab) == 49408
    assert len(json.dumps(vocab, ensure_ascii=False, separators=(",", ":")).encode()) == 862_328
    assert len("\n".join(["#version: 0.2", *map(" ".join, merges), ""]).encode()) == 524_619


def test_ids_and_masks_equal_those_of_transformers_with_the_published_tables(published: Tables) -> None:
    vocab, merges = published
    theirs = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
    tokenizer = Tokenizer(vocab, merges)
    assert_equal_to_transformers(tokenizer, theirs, TEXTS + CAPTIONS + random_texts(600))
    ids = tokenizer(["a red cat, 4k photo"]).ids
    assert ids.dtype == torch.int64
    assert ids[0, :9].tolist() == [49406, 320, 736, 2368, 267, 275, 330, 1125, 49407]
    assert (ids[0, 9:] == 49407).all()


def test_ids_equal_those_of_transformers_with_learnt_tables_and_their_files(learnt: Tokenizer, tmp_path: Path) -> None:
    texts = TEXTS + CAPTIONS + random_texts(100)
    theirs = CLIPTokenizer(vocab=dict(learnt.vocab), merges=list(learnt.merges), model_max_length=32)
    assert_equal_to_transformers(learnt, theirs, texts)
    merges = "\n".join(["#version: 0.2", *map(" ".join, learnt.merges), ""])
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 32}
    for name, text in (
        ("vocab.json", json.dumps(learnt.vocab)),
        ("merges.txt", merges),
        ("tokenizer_config.json", json.dumps(config)),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert_equal_to_transformers(learnt, CLIPTokenizer.from_pretrained(tmp_path), texts)


def test_dropped_is_the_text_that_did_not_fit(published: Tables, learnt: Tokenizer) -> None:
    vocab, merges = published
    short = Tokenizer(vocab, merges, max_length=6)  # room for four tokens
    assert short(["a red  cat sat", "", "  A Red Cat, "]).dropped == ("", "", "")
    assert short(["a red  cat sat  Down, here "]).dropped == ("Down, here",)
    # "xylophonezzz" is four tokens, of which three would fit: the word is dropped whole
    assert short(["a xylophonezzz!"]).dropped == ("xylophonezzz!",)
    # the letter "İ" is two words, of which one fits: it is counted as dropped
    assert short(["a Cafe\u0301 dog İstanbul 🎉"]).dropped == ("İstanbul 🎉",)
    texts = [text for text in TEXTS if text.isprintable()]
    for text, dropped in zip(texts, learnt(texts).dropped, strict=True):
        assert text.rstrip().endswith(dropped)
        full = learnt([text]).ids[0].tolist()
        shortened = learnt([text.rstrip().removesuffix(dropped)])
        assert shortened.dropped == ("",), text
        assert shortened.ids[0, : shortened.mask.sum() - 1].tolist() == full[: shortened.mask.sum() - 1], text


def test_no_prompts_give_an_empty_batch(learnt: Tokenizer) -> None:
    tokens = learnt([])
    assert tokens.ids.shape == tokens.mask.shape == (0, 32)
    assert tokens.dropped == ()


def test_learnt_tables_have_the_published_layout(learnt: Tokenizer) -> None:
    assert len(learnt.vocab) == 560
    assert learnt.vocab == layout(list(learnt.merges))
    assert (learnt.vocab[START], learnt.vocab[END]) == (558, 559)
    relearnt = learn([f"{END}{caption} {START}" for caption in CAPTIONS], size=560, max_length=32)
    assert (relearnt.vocab, relearnt.merges) == (learnt.vocab, learnt.merges)


def test_every_learnt_merge_joins_a_most_frequent_pair(learnt: Tokenizer) -> None:
    words = Counter(word for caption in CAPTIONS for word in caption.split())
    spelling = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    for left, right in learnt.merges:
        pairs = Counter[tuple[str, str]]()
        for word, parts in spelling.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        assert pairs[left, right] == max(pairs.values())
        for parts in spelling.values():
            for i in range(len(parts) - 2, -1, -1):
                if parts[i : i + 2] == [left, right]:
                    parts[i : i + 2] = [left + right]


def test_learn_stops_at_whole_words_when_the_captions_are_too_few() -> None:
    tokenizer = learn(CAPTIONS, size=5000, max_length=32)
    assert len(tokenizer.vocab) < 5000
    words = {word for caption in CAPTIONS for word in caption.split()}
    assert all(word + "</w>" in tokenizer.vocab for word in words)
    assert learn([], size=514, max_length=8).merges == ()


def test_unknown_words_do_not_change_the_tokens_of_others(learnt: Tokenizer) -> None:
    def body(text: str) -> list[int]:
        tokens = learnt([text])
        return [int(i) for i in tokens.ids[0, 1 : int(tokens.mask.sum()) - 1]]

    circle, cream = body("a red circle"), body("cream")
    assert body("A RED Circle") == circle
    assert body("a red circle, привет, cream") == circle + body(",") + body("привет") + body(",") + cream
    assert body("  a\n red\tcircle🎉 zebra cream") == circle + body("🎉") + body("zebra") + cream
    assert learnt.end not in body("привет 🎉 \x00 zebra, 你好")


def test_invalid_tables_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lacks <\|endoftext\|>"):
        Tokenizer({"a": 0, START: 1}, [])
    with pytest.raises(ValueError, match=r"<\|endoftext\|> must have the largest id, 2, got 1"):
        Tokenizer({START: 0, END: 1, "a": 2}, [])
    with pytest.raises(ValueError, match="max_length must be at least 3"):
        Tokenizer({"a": 0, START: 1, END: 2}, [], max_length=2)
    with pytest.raises(ValueError, match="size must be at least 514"):
        learn(CAPTIONS, size=513, max_length=32)
