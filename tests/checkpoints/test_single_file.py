"""A whole model in one file: unpacking restores every byte, and files from elsewhere are not trusted."""

import json
import os
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kandinsky22.checkpoints import catalog, locate, safetensors_file, single_file
from kandinsky22.checkpoints.dtypes import BYTES
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.model import StoredModel
from kandinsky22.checkpoints.network import Stored
from kandinsky22.models.unet import UNet, UNetConfig

UNET = Path("decoder/unet/diffusion_pytorch_model.safetensors")
TEXT = Path("prior/text_encoder/model.safetensors")
ZERO = Path("prior/zero_image_embed.safetensors")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {p.relative_to(folder).as_posix(): load_file(p) for p in folder.rglob("*.safetensors")}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """The same names, dtypes, shapes and bits."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A small model that may be changed."""
    return shutil.copytree(tiny_model, tmp_path / "copy")


@pytest.fixture
def file(tiny_model: Path, tmp_path: Path) -> Path:
    """The small model in one file."""
    single_file.convert([str(tiny_model)], tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("model", ["tiny", catalog.BOX])
def test_a_round_trip_changes_no_byte(tiny_model: Path, tmp_path: Path, model: str) -> None:
    source = locate.model_folder(str(tiny_model) if model == "tiny" else model)
    single_file.convert([str(source)], tmp_path / "one.safetensors")
    single_file.convert([str(tmp_path / "one.safetensors")], tmp_path / "folder")
    assert contents(tmp_path / "folder") == contents(source)
    single_file.convert([str(tmp_path / "folder")], tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.safetensors", "folder", "one.safetensors"]


def test_every_tensor_is_named_by_its_path(tiny_model: Path, file: Path) -> None:
    """As the safetensors library reads the file."""
    expected = {
        ".".join((*Path(place).parent.parts, name)): value
        for place, saved in weights(tiny_model).items()
        for name, value in saved.items()
    }
    for key in (
        "prior.prior.clip_mean",
        "prior.text_encoder.text_projection.weight",
        "decoder.movq.quantize.embedding.weight",
        "decoder.unet.conv_in.weight",
        "decoder-inpaint.unet.conv_in.weight",
        "controlnet-depth.unet.conv_in.weight",
    ):
        assert key in expected
    assert equal(load_file(file), expected)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["decoder/unet/config.json"])["in_channels"] == 4
    assert metadata["prior/tokenizer/merges.txt"].startswith("#version")


def test_numbers_are_aligned_to_their_size(copy: Path, tmp_path: Path) -> None:
    """The published encoder is float16 with a constant in int64."""
    odd = {"a": torch.ones(3, dtype=torch.float16), "x.position_ids": torch.arange(3)}
    save_file({**load_file(copy / TEXT), **odd}, copy / TEXT)
    single_file.convert([str(copy)], tmp_path / "one.safetensors")
    header, start = safetensors_file.read_header(tmp_path / "one.safetensors")
    assert start % 8 == 0
    assert all(entry.begin % BYTES[entry.dtype] == 0 for entry in safetensors_file.entries(header))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_converted_to_a_dtype(tiny_model: Path, copy: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """As torch converts them; integers, and files that are no network's, stay unchanged. A source may mix dtypes."""
    mixed = {
        name: value.to(dtype) if i % 2 else value for i, (name, value) in enumerate(load_file(copy / UNET).items())
    }
    save_file({**mixed, "old.position_ids": torch.arange(77)[None]}, copy / UNET)
    name = str(dtype).removeprefix("torch.")
    for way in ("one.safetensors", "folder"):
        single_file.convert([str(copy)], tmp_path / way, name)
    single_file.convert([str(tmp_path / "one.safetensors")], tmp_path / "unpacked")
    assert contents(tmp_path / "unpacked") == contents(tmp_path / "folder")
    before, after = weights(copy), weights(tmp_path / "folder")
    for place, saved in before.items():
        wanted = {k: v if k == "old.position_ids" or place == str(ZERO) else v.to(dtype) for k, v in saved.items()}
        assert equal(after[place], wanted), place
    assert (tmp_path / "folder" / UNET).stat().st_size < 0.6 * (tiny_model / UNET).stat().st_size
    StoredModel(locate.part_folders(str(tmp_path / "folder")))


def test_half_precision_is_converted_to_float32_when_unpacked(file: Path, tmp_path: Path) -> None:
    single_file.convert([str(file)], tmp_path / "half.safetensors", "float16")
    single_file.convert([str(tmp_path / "half.safetensors")], tmp_path / "folder", "float32")
    half = load_file(tmp_path / "half.safetensors")
    unpacked = load_file(tmp_path / "folder" / UNET)
    assert all(torch.equal(value, half[f"decoder.unet.{name}"].float()) for name, value in unpacked.items())


def test_a_conversion_that_would_overflow_is_refused(copy: Path, tmp_path: Path) -> None:
    save_file({**load_file(copy / UNET), "conv_in.bias": torch.full((32,), 1e6)}, copy / UNET)
    with pytest.raises(ValueError, match=r"conv_in\.bias has numbers that are too large for F16; use --dtype bfloat16"):
        single_file.convert([str(copy)], tmp_path / "one.safetensors", "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"])
def test_pickled_weights_become_safetensors(copy: Path, tmp_path: Path, name: str) -> None:
    """As the published depth decoder is on its main branch."""
    saved = load_file(copy / UNET)
    (copy / UNET).unlink()
    torch.save(saved, (copy / UNET).with_name(name))
    single_file.convert([str(copy)], tmp_path / "folder")
    assert equal(load_file((tmp_path / "folder" / UNET).with_name(name.replace(".bin", ".safetensors"))), saved)
    assert not list((tmp_path / "folder").rglob("*.bin"))
    torch.save(load_file(copy / TEXT), (copy / TEXT).with_name("pytorch_model.bin"))
    (copy / TEXT).unlink()
    single_file.convert([str(copy)], tmp_path / "one.safetensors")
    single_file.convert([str(tmp_path / "one.safetensors")], tmp_path / "unpacked")
    StoredModel(locate.part_folders(str(tmp_path / "unpacked")))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_in_several_files_stay_in_several(copy: Path, tmp_path: Path, suffix: str) -> None:
    saved = load_file(copy / UNET)
    (copy / UNET).unlink()
    shards(copy / UNET.parent, saved, suffix)
    single_file.convert([str(copy)], tmp_path / "one.safetensors")
    single_file.convert([str(tmp_path / "one.safetensors")], tmp_path / "folder")
    if suffix == "safetensors":
        assert contents(tmp_path / "folder") == contents(copy)
    loaded = Stored(tmp_path / "folder" / UNET.parent, UNet, UNetConfig).load(torch.float32, torch.device("cpu"))
    assert equal(dict(loaded.state_dict()), saved)


def shards(folder: Path, saved: dict[str, torch.Tensor], suffix: str) -> None:
    """Write weights in two files with an index."""
    files = [f"diffusion_pytorch_model-0000{k}-of-00002.{suffix}" for k in (1, 2)]
    where = {name: files[i % 2] for i, name in enumerate(saved)}
    for file in files:
        part = {name: value for name, value in saved.items() if where[name] == file}
        torch.save(part, folder / file) if suffix == "bin" else save_file(part, folder / file)
    index = folder / f"diffusion_pytorch_model.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))


def test_second_copies_and_other_files_are_left_out_and_listed(copy: Path, tmp_path: Path) -> None:
    before = contents(copy)
    torch.save({}, copy / "decoder/unet/diffusion_pytorch_model.bin")
    (copy / "decoder/original.ckpt").write_bytes(b"\xff\xfe")
    (copy / "decoder/.cache/huggingface").mkdir(parents=True)
    (copy / "decoder/.cache/huggingface/download.json").write_text("{}")
    done = single_file.convert([str(copy)], tmp_path / "folder")
    assert done.left_out == ["decoder/original.ckpt", "decoder/unet/diffusion_pytorch_model.bin"]
    assert contents(tmp_path / "folder") == before


def test_pipelines_can_be_passed_one_by_one(tiny_model: Path, copy: Path, tmp_path: Path) -> None:
    """By the class that their `model_index.json` names; also links, as the hub's cache has them."""
    cached = tmp_path / "snapshots" / "c0ffee"
    for path in (copy / "decoder-inpaint").rglob("*"):
        if path.is_file():
            link = cached / path.relative_to(copy / "decoder-inpaint")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(path, link.parent))
    single_file.convert([str(cached), str(copy / "prior")], tmp_path / "folder")
    expected = {
        name: saved
        for name, saved in contents(tiny_model).items()
        if name.split("/")[0] in ("prior", "decoder-inpaint")
    }
    assert contents(tmp_path / "folder") == expected
    with pytest.raises(ValueError, match="are both prior/ folders"):
        single_file.convert([str(copy), str(copy / "prior")], tmp_path / "twice")


def test_tensors_are_copied_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tens of MB of weights take a few MB: for a copy, the header's; for a conversion, also a few large tensors'."""
    monkeypatch.setattr(safetensors_file, "CHUNK", 1 << 16)
    peaks = []
    for dtype in (None, "float16"):
        tracemalloc.start()
        single_file.convert([catalog.BOX], tmp_path / f"{dtype}.safetensors", dtype)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    largest = max(value.numel() * value.itemsize for value in load_file(tmp_path / "None.safetensors").values())
    # as text, as JSON, as entries, and as checks
    headers = 12 * safetensors_file.read_header(tmp_path / "None.safetensors")[1]
    assert peaks[0] < headers and peaks[1] < headers + 6 * largest
    assert headers + 6 * largest < (tmp_path / "None.safetensors").stat().st_size / 2


def test_progress_reaches_the_end(file: Path, tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    done = single_file.convert([str(file)], tmp_path / "folder", progress=lambda *report: reports.append(report))
    assert reports[-1] == (done.bytes, done.bytes)
    assert [written for written, _ in reports] == sorted(written for written, _ in reports)


@pytest.mark.parametrize("target", ["stopped.safetensors", "stopped"])
def test_an_interrupted_conversion_leaves_no_files(tiny_model: Path, tmp_path: Path, target: str) -> None:
    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        single_file.convert([str(tiny_model)], tmp_path / target, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_existing_targets_and_full_disks_are_refused(
    file: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file.txt").touch()
    for existing in (file, tmp_path / "full"):
        with pytest.raises(ValueError, match="already exists; choose another name"):
            single_file.convert([str(tiny_model)], existing)
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'int8'"):
        single_file.convert([str(tiny_model)], tmp_path / "folder", "int8")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"takes 0\.0 GB, and 0\.0 GB is free there; make room"):
        single_file.convert([str(tiny_model)], tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", file.name]


def forged(file: Path, **changed: Any) -> Path:
    """The file with changed metadata; None removes a key."""
    with safe_open(file, framework="pt") as opened:
        metadata = {**opened.metadata(), **changed}
    save_file(load_file(file), file, {name: text for name, text in metadata.items() if text is not None})
    return file


@pytest.mark.parametrize(
    "key",
    [
        "../evil.json",
        "/etc/evil.json",
        "decoder/../../evil.json",
        "decoder/.git/config.json",
        "evil.json",
        "decoder/run.py",
        "other/config.json",
        "decoder\\..\\evil.json",
        "header ../x.safetensors",
        "header decoder/unet/x.py",
        "decoder//x.json",
    ],
)
def test_no_file_is_written_outside_a_models_folders(file: Path, tmp_path: Path, key: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="would write a file that is no part of a model"):
        single_file.convert([str(forged(file, **{key: "{}"}))], tmp_path / "a" / "folder")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "header",
    [
        "",
        "[]",
        '{"a": 1}',
        '{"conv_in.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"no.such":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{"conv_out.bias":{"dtype":"F32","shape":[8],"data_offsets":[64,96]}}',
        '{"conv_out.bias":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},'
        '"conv_in.bias":{"dtype":"F32","shape":[32],"data_offsets":[64,192]}}',
    ],
)
def test_a_header_that_does_not_match_is_refused(file: Path, tmp_path: Path, header: str) -> None:
    with pytest.raises(CheckpointError, match="does not contain the decoder/unet/"):
        single_file.convert([str(forged(file, **{f"header {UNET.as_posix()}": header}))], tmp_path / "folder")


def test_other_files_are_refused(file: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no whole model in one file"):
        single_file.convert([str(tiny_model / UNET)], tmp_path / "folder")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged or incomplete"):
        single_file.convert([str(file)], tmp_path / "folder")
    with pytest.raises(ValueError, match="is damaged or incomplete"):
        locate.part_folders(str(file))
    (tmp_path / "decoder").mkdir()
    with pytest.raises(CheckpointError, match="there are no weights in"):
        single_file.convert([str(tmp_path)], tmp_path / "folder")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(
        CheckpointError, match=r"is of a StableDiffusionPipeline, which is no pipeline of Kandinsky 2\.2"
    ):
        single_file.convert([str(tmp_path)], tmp_path / "folder")
