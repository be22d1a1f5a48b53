"""Weight files of other programs: pickled, of several dtypes, in variants and in several files."""

import json
import os
import random
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.hostile.corpus import compressed, pickled
from tests.models_on_disk import randomise
from tests.oracle.tiny import UNET

from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.network import Stored, save
from kandinsky22.checkpoints.weight_files import find_weights, tensor_shapes
from kandinsky22.models.unet import UNet, UNetConfig

CPU = torch.device("cpu")
FILE = "diffusion_pytorch_model.safetensors"
Weights = dict[str, torch.Tensor]


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    """A network's weights; `tmp_path` contains its configuration alone."""
    network = UNet(UNET)
    randomise(network)
    save(tmp_path, network, dtype=torch.float32)
    (tmp_path / FILE).unlink()
    return dict(network.state_dict())


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Weights:
    return dict(Stored(folder, UNet, UNetConfig).load(dtype, CPU).state_dict())


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def halves(weights: Weights) -> tuple[Weights, Weights]:
    """The weights in two parts."""
    names = list(weights)
    return {name: weights[name] for name in names[::2]}, {name: weights[name] for name in names[1::2]}


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model.bin", "pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_of_any_name_and_format_are_read(
    weights: Weights, tmp_path: Path, name: str, zipped: bool
) -> None:
    torch.save({**weights, "x.position_ids": torch.arange(77)}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert same(loaded(tmp_path), weights)


@pytest.mark.parametrize("length", [0, 3, 100, 5000])
def test_a_truncated_pickle_is_reported_as_damaged(weights: Weights, tmp_path: Path, length: int) -> None:
    path = tmp_path / "diffusion_pytorch_model.bin"
    torch.save(weights, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        Stored(tmp_path, UNet, UNetConfig)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_of_several_dtypes_is_read(weights: Weights, tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    """As the published prior's folder does, whose image encoder is float16 with constants in int64."""
    kinds = (torch.float16, torch.float32, torch.bfloat16)
    mixed = {name: value.to(kinds[i % 3]) for i, (name, value) in enumerate(weights.items())}
    mixed["a.position_ids"] = torch.arange(77)[None]
    path = tmp_path / f"diffusion_pytorch_model.{suffix}"
    torch.save(mixed, path) if suffix == "bin" else save_file(mixed, path)
    assert same(loaded(tmp_path, dtype), {name: mixed[name].to(dtype) for name in weights})


def test_a_variant_is_chosen_when_it_is_requested(weights: Weights, tmp_path: Path) -> None:
    save_file(weights, tmp_path / FILE)
    save_file(
        {name: value.half() for name, value in weights.items()}, tmp_path / "diffusion_pytorch_model.fp16.safetensors"
    )
    assert find_weights(tmp_path).name == FILE
    assert find_weights(tmp_path, "fp16").name == "diffusion_pytorch_model.fp16.safetensors"
    assert find_weights(tmp_path, "bf16").name == FILE


def write_shards(folder: Path, weights: Weights, suffix: str) -> Path:
    """Two files and their index."""
    names = [f"diffusion_pytorch_model-0000{k}-of-00002.{suffix}" for k in (1, 2)]
    for name, half in zip(names, halves(weights), strict=True):
        torch.save(half, folder / name) if suffix == "bin" else save_file(half, folder / name)
    where = {key: name for name, half in zip(names, halves(weights), strict=True) for key in half}
    index = folder / f"diffusion_pytorch_model.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_in_several_files_are_read(weights: Weights, tmp_path: Path, suffix: str) -> None:
    write_shards(tmp_path, weights, suffix)
    assert same(loaded(tmp_path), weights)


def test_a_missing_file_or_an_invalid_index_is_named(weights: Weights, tmp_path: Path) -> None:
    index = write_shards(tmp_path, weights, "safetensors")
    second = tmp_path / "diffusion_pytorch_model-00002-of-00002.safetensors"
    save_file({}, second)
    with pytest.raises(CheckpointError, match="missing"):
        Stored(tmp_path, UNet, UNetConfig)
    second.unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors is damaged or incomplete"):
        Stored(tmp_path, UNet, UNetConfig)
    for where in ({"a": "../diffusion_pytorch_model.safetensors"}, {"a": 1}, {}, []):
        index.write_text(json.dumps({"weight_map": where}))
        with pytest.raises(CheckpointError, match="does not say in which files"):
            Stored(tmp_path, UNet, UNetConfig)
    for text in ("{", "[]"):
        index.write_text(text)
        with pytest.raises(CheckpointError, match="damaged or incomplete"):
            Stored(tmp_path, UNet, UNetConfig)


def refusal(folder: Path) -> str:
    """The message with which a network's folder is refused, when it is checked or loaded."""
    with pytest.raises(CheckpointError) as refused:
        loaded(folder)
    return str(refused.value)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_with_their_file(
    weights: Weights, tmp_path: Path, suffix: str, value: float
) -> None:
    name = [*weights][3]
    weights[name] = weights[name].half()
    weights[name].view(-1)[-1] = value
    path = tmp_path / f"diffusion_pytorch_model.{suffix}"
    torch.save(weights, path) if suffix == "bin" else save_file(weights, path)
    assert f"{path} cannot be read ({name} has numbers that are not finite)" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_integer_weights_are_refused(weights: Weights, tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    path = tmp_path / f"diffusion_pytorch_model.{suffix}"
    integers = {name: value.to(dtype) for name, value in weights.items()}
    torch.save(integers, path) if suffix == "bin" else save_file(integers, path)
    assert "weights are floating-point numbers" in refusal(tmp_path) and str(path) in refusal(tmp_path)


def test_a_pickle_that_declares_more_than_it_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    for content, reason in (
        (pickled(torch.zeros(1).expand(1 << 31)), "its tensors have more bytes than the file"),
        (compressed(pickled(torch.zeros(1 << 16))), "it is compressed"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"model.bin is damaged or incomplete .{reason}"):
            tensor_shapes(path)


def test_any_damage_to_a_pickle_is_a_refusal(tmp_path: Path) -> None:
    """Or changes numbers alone."""
    path, rng = tmp_path / "model.bin", random.Random(0)
    for zipped in (True, False):
        torch.save({"a": torch.ones(3, 4), "b": torch.ones(5)}, path, _use_new_zipfile_serialization=zipped)
        original = path.read_bytes()
        for _ in range(300):
            content = bytearray(original)
            for _ in range(rng.choice((1, 1, 2, 8))):
                content[rng.randrange(min(len(content), 900))] = rng.randrange(256)
            path.write_bytes(content)
            try:
                tensor_shapes(path)
            except CheckpointError as error:
                assert str(path) in str(error) and len(str(error).splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
@pytest.mark.parametrize("name", ["model.bin", "model.safetensors", "model.safetensors.index.json"])
def test_a_pipe_in_the_place_of_weights_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="is a pipe or a device"):
        tensor_shapes(tmp_path / name)
    with pytest.raises(CheckpointError, match="has no weights"):
        find_weights(tmp_path)


def test_the_message_about_other_tensors_is_short(weights: Weights, tmp_path: Path) -> None:
    save_file({f"tensor.{k}": torch.zeros(1) for k in range(5000)}, tmp_path / FILE)
    message = refusal(tmp_path)
    assert len(message) < 1000 and "missing" in message and " more" in message
