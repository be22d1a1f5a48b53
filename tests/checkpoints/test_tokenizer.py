"""The tokenizer's files, as published and as transformers writes them from version 5."""

import json
from pathlib import Path
from typing import Any

import pytest

from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.tokenizer import load_tokenizer, save_tokenizer, tokenizer_of

TEXTS = ["two red circles, and a square", "a Ring  beside\na star", "", "größer & 12'll"]


def backend_of(folder: Path, merges: Any) -> dict[str, Any]:
    """What transformers writes as tokenizer.json of the tokenizer in a folder, with its parts that are read."""
    vocab = json.loads((folder / "vocab.json").read_text())
    special = [{"id": vocab[token], "content": token} for token in ("<|startoftext|>", "<|endoftext|>")]
    return {"version": "1.0", "added_tokens": special, "model": {"type": "BPE", "vocab": vocab, "merges": merges}}


@pytest.mark.parametrize("as_pairs", [True, False])
def test_tokenizer_json_alone_is_the_same_tokenizer(tiny_model: Path, tmp_path: Path, as_pairs: bool) -> None:
    original = load_tokenizer(tiny_model / "prior" / "tokenizer")
    save_tokenizer(tmp_path, original)
    merges = [list(pair) if as_pairs else " ".join(pair) for pair in original.merges]
    (tmp_path / "tokenizer.json").write_text(json.dumps(backend_of(tmp_path, merges)))
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink()
    loaded = load_tokenizer(tmp_path)
    assert (loaded.vocab, loaded.merges, loaded.max_length) == (original.vocab, original.merges, original.max_length)
    assert loaded(TEXTS).ids.equal(original(TEXTS).ids)


def test_a_tokenizer_json_that_is_not_clips_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    for backend in ({}, {"model": {"type": "WordPiece", "vocab": {}}}, {"model": {"type": "BPE", "vocab": {"a": 1}}}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(backend))
        with pytest.raises(CheckpointError, match="does not contain CLIP's tokenizer"):
            load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="the vocabulary lacks"):
        tokenizer_of({"model": {"type": "BPE", "vocab": {"a": 1}, "merges": []}}, 77)


def test_a_folder_without_a_tokenizer_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"vocab\.json is missing"):
        load_tokenizer(tmp_path)


def test_ids_are_turned_into_text_again(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model / "prior" / "tokenizer")
    ids = tokenizer.token_ids("Two red circles")
    assert tokenizer.text_of(ids, special=False) == "two red circles"
    assert tokenizer.text_of(ids).split()[0] == "<|startoftext|>" and len(ids) > 2
