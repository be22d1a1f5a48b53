"""Configurations and tokenizers: whatever their values are, they are refused in one sentence and before work."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tests.hostile.corpus import WRONG_JSON

from kandinsky22.checkpoints.json_files import CheckpointError, read_json
from kandinsky22.checkpoints.locate import part_folders
from kandinsky22.checkpoints.model import StoredModel
from kandinsky22.checkpoints.network import Stored
from kandinsky22.checkpoints.part import KINDS
from kandinsky22.checkpoints.tokenizer import load_tokenizer

WRONG = (10**9, 10**400, -1, "x", True, None, 1.5, [], [-1], {"a": 1}, float("nan"))
NETWORKS = ("prior/prior", "prior/text_encoder", "prior/image_encoder", "decoder/unet", "decoder/movq")
UNSHAPED = {"sample_size", "scaling_factor", "norm_eps", "layer_norm_eps"}  # numbers that no tensor's shape depends on


def refusal(folder: Path) -> str:
    """The message with which a model is refused; "" if it is not."""
    try:
        model = StoredModel(part_folders(str(folder)))
        model.prior.image_processor()
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("network", NETWORKS)
def test_a_configuration_of_other_values_is_refused_before_a_network_is_built(
    tiny_model: Path, tmp_path: Path, network: str
) -> None:
    folder = shutil.copytree(tiny_model / network, tmp_path / "network")
    kind = KINDS[Path(network).name]
    values = json.loads((folder / "config.json").read_text())
    known = kind.config.from_dict(values)
    for key in set(vars(known)) - UNSHAPED:
        for wrong in WRONG:
            (folder / "config.json").write_text(json.dumps({**values, key: wrong}))
            with pytest.raises(CheckpointError) as refused:
                Stored(folder, kind.network, kind.config)
            message = str(refused.value)
            assert str(folder) in message and len(message) < 1000 and len(message.splitlines()) == 1, (key, wrong)


@pytest.mark.parametrize("part", ["prior", "decoder"])
@pytest.mark.parametrize(
    "change",
    [
        {"num_train_timesteps": 10**9},
        {"num_train_timesteps": -1},
        {"num_train_timesteps": True},
        {"clip_sample": True, "clip_sample_range": 10**400},
        {"beta_schedule": []},
        {"prediction_type": "x" * 10**6},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_noise_schedule_of_other_values_is_refused_when_the_model_is_opened(
    tiny_model: Path, tmp_path: Path, part: str, change: dict[str, object]
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    path = folder / part / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert refusal(folder).startswith(f"{path}: {[*change][-1]}") and len(refusal(folder)) < 500


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("decoder/unet/config.json", {"sample_size": 10**6}),
        ("decoder/unet/config.json", {"sample_size": 0}),
        ("prior/image_processor/preprocessor_config.json", {"size": 10**6}),
        ("prior/image_processor/preprocessor_config.json", {"size": 10**6, "crop_size": 10**6}),
    ],
)
def test_sizes_that_no_tensor_has_are_limited(
    tiny_model: Path, tmp_path: Path, file: str, change: dict[str, int]
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert any(key in refusal(folder) for key in change) and len(refusal(folder)) < 500


@pytest.mark.parametrize("text", WRONG_JSON, ids=range(len(WRONG_JSON)))
def test_every_json_file_of_a_model_is_refused_with_its_name_if_it_is_damaged(
    tiny_model: Path, tmp_path: Path, text: bytes
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    read = 0
    for path in sorted([*(folder / "prior").rglob("*.json"), *(folder / "decoder").rglob("*.json")]):
        original = path.read_bytes()
        path.write_bytes(text)
        message = refusal(folder)
        assert not message or (str(path) in message and len(message.splitlines()) == 1), path
        read += bool(message)
        path.write_bytes(original)
    assert read == 11 and refusal(folder) == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_or_a_device_is_not_read_as_json(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(CheckpointError, match=f"{name} cannot be read: .* is a pipe or a device"):
            read_json(tmp_path / name)


def test_a_tokenizer_cut_anywhere_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """At the end of a line too, where every line that is left is valid."""
    folder = shutil.copytree(tiny_model / "prior" / "tokenizer", tmp_path / "tokenizer")
    merges, vocab = folder / "merges.txt", folder / "vocab.json"
    whole = merges.read_text()
    lines = whole.splitlines(keepends=True)
    cuts = [sum(map(len, lines[:k])) for k in (0, 1, 2, len(lines) // 2, len(lines) - 1)]
    for end in (*cuts, len(whole) - 3, len(whole) // 2):
        merges.write_text(whole[:end])
        with pytest.raises(CheckpointError, match="tokenizer"):
            load_tokenizer(folder)
    merges.write_text(whole + "q q\n")
    with pytest.raises(CheckpointError, match="the vocabulary lacks 'qq'"):
        load_tokenizer(folder)
    merges.write_text(whole)
    tokens = json.loads(vocab.read_text())
    first, second, *_ = tokens
    for change in ({first: -1}, {first: "0"}, {first: None}, {first: tokens[second]}, {"new": len(tokens)}):
        vocab.write_text(json.dumps({**tokens, **change}))
        with pytest.raises(CheckpointError, match="does not contain CLIP's tokenizer"):
            load_tokenizer(folder)
    vocab.write_text(json.dumps(tokens))
    assert load_tokenizer(folder)(["a red circle"]).ids.dtype == torch.int64
