"""Weight files of other programs: pickled, of several dtypes, in variants and in several files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.models_on_disk import randomise
from tests.oracle.tiny import UNET

from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.network import Stored, save
from kandinsky22.checkpoints.weight_files import find_weights
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
