"""The tokenizer's files: vocab.json, merges.txt and tokenizer_config.json, as published.

transformers from version 5 writes tokenizer.json instead of the first two; it is read where they are missing.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandinsky22.checkpoints.json_files import CheckpointError, read_json, read_text, write_json
from kandinsky22.files import atomic_write, first_line
from kandinsky22.models.tokenizer import END, START, Tokenizer

BACKEND_FILE = "tokenizer.json"
VERSION = "#version: 0.2\n"
MAX_LENGTH = 4096  # transformers writes 10^30 where the length was not set


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`. Raises `CheckpointError`."""
    is_published = (folder / "vocab.json").exists() or not (folder / BACKEND_FILE).exists()
    tables = read_json(folder / ("vocab.json" if is_published else BACKEND_FILE))
    length = read_json(folder / "tokenizer_config.json").get("model_max_length", 77)
    if not isinstance(length, int) or length > MAX_LENGTH:
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: model_max_length must be a number of tokens, got {length!r:.100}"
        )
    try:
        if not is_published:
            return tokenizer_of(tables, length)
        lines = read_text(folder / "merges.txt").splitlines()
        merges = [
            (left, right)
            for left, right in (line.split() for line in lines if line and not line.startswith("#version"))
        ]
        return Tokenizer(tables, merges, length)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} does not contain CLIP's tokenizer: {first_line(error)}") from error


def tokenizer_of(backend: Mapping[str, Any], max_length: int) -> Tokenizer:
    """The tokenizer that a `tokenizer.json` describes. Raises `ValueError` where it is not CLIP's."""
    model = backend.get("model")
    if not isinstance(model, Mapping) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise ValueError("its model is not byte-pair encoding with a vocabulary")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", ())]
    added = {token["content"]: token["id"] for token in backend.get("added_tokens", ())}
    return Tokenizer({**model["vocab"], **added}, [(left, right) for left, right in pairs], max_length)


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the tokenizer in the published layout."""
    vocab = json.dumps(tokenizer.vocab, ensure_ascii=False, separators=(",", ":"))
    merges = VERSION + "".join(f"{left} {right}\n" for left, right in tokenizer.merges)
    for name, text in (("vocab.json", vocab), ("merges.txt", merges)):
        with atomic_write(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": tokenizer.max_length,
            "do_lower_case": True,
            "add_prefix_space": False,
            "errors": "replace",
            **special,
        },
    )
