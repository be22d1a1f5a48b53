"""Depth hints: transformers' own pipeline is the oracle, on tiny networks of random weights; and what goes wrong, said."""

import importlib
import json
import logging.handlers as logging_handlers
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
    pipeline,
)
from transformers.utils import logging

from kandinsky22.cli.app import run
from kandinsky22.imaging.depth import DEFAULT, depth
from tests.models_on_disk import randomise

HEIGHT, WIDTH = 50, 70


def dpt() -> torch.nn.Module:
    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        is_hybrid=False,
        use_auxiliary_head=False,
    )
    return DPTForDepthEstimation(config)


def depth_anything(**said: Any) -> torch.nn.Module:
    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=32,
        patch_size=8,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=8,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        **said,
    )
    return DepthAnythingForDepthEstimation(config)


def save(folder: Path, network: Any) -> Path:
    randomise(network)
    network.save_pretrained(folder)
    processor = DPTImageProcessorPil(size={"height": 32, "width": 32}, keep_aspect_ratio=False, ensure_multiple_of=8)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoints of small networks: the card's kind, a newer one, and one that says metres."""
    made: dict[str, Callable[[], torch.nn.Module]] = {
        "dpt": dpt,
        "depth_anything": depth_anything,
        "metres": lambda: depth_anything(depth_estimation_type="metric", max_depth=20),
    }
    root = tmp_path_factory.mktemp("depth")
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    saved = {name: save(root / name, make()) for name, make in made.items()}
    if bars:
        logging.enable_progress_bar()
    return saved


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def of_pipeline(folder: Path, picture: Image.Image) -> dict[str, Any]:
    """What the card's `depth_estimator(image)` gives."""
    processor = DPTImageProcessorPil.from_pretrained(folder)
    return pipeline("depth-estimation", model=str(folder), image_processor=processor, device="cpu")(picture)


@pytest.mark.parametrize("name", ["dpt", "depth_anything"])
def test_it_is_what_the_card_makes(name: str, folders: dict[str, Path], picture: Image.Image) -> None:
    """To the bit, and so the hint of the card's `make_hint` is `Picture`'s own three equal channels in [0, 1]."""
    found = depth(picture, model=folders[name])
    assert found.image.mode == "L" and found.image.size == (WIDTH, HEIGHT)
    assert np.array_equal(np.asarray(found.image), np.asarray(of_pipeline(folders[name], picture)["depth"]))
    assert found.image.getextrema() == (0, 255)
    assert depth(picture, model=str(folders[name])) == found


def test_pictures_come_from_anywhere(folders: dict[str, Path], picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "a.png")
    grey = picture.convert("L")
    assert depth(tmp_path / "a.png", model=folders["dpt"]) == depth(picture, model=folders["dpt"])
    assert depth(grey, model=folders["dpt"]) == depth(grey.convert("RGB"), model=folders["dpt"])


def test_near_is_bright_even_from_metres(folders: dict[str, Path], picture: Image.Image) -> None:
    """Farther in metres is never brighter, and the greys are those of the reciprocal."""
    metres = of_pipeline(folders["metres"], picture)["predicted_depth"].numpy()
    assert metres.min() > 0 and metres.std() > 0
    nearness = 1 / metres
    grey = np.asarray(depth(picture, model=folders["metres"]).image)
    assert (np.diff(grey.ravel()[np.argsort(metres.ravel())].astype(int)) <= 0).all()
    assert np.abs(grey - 255 * (nearness - nearness.min()) / np.ptp(nearness)).max() <= 1


def test_no_noise_and_no_traces(
    folders: dict[str, Path], picture: Image.Image, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nothing is printed or logged, transformers is left as it was, and so is torch's global generator; nor if it fails."""
    partial = shutil.copytree(folders["dpt"], tmp_path / "partial")
    drop(
        partial, "neck.fusion_stage.layers.0.residual_layer1."
    )  # as in the published dpt-large, whose load warns of it
    logged = logging_handlers.BufferingHandler(100)
    verbosity = logging.get_verbosity()
    logging.add_handler(logged)
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    state = torch.random.get_rng_state()
    capfd.readouterr()
    try:
        assert depth(picture, model=partial) == depth(picture, model=folders["dpt"])
        with pytest.raises(ValueError):
            depth(picture, model=tmp_path)
        assert capfd.readouterr() == ("", "") and logged.buffer == []
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)
        assert torch.equal(torch.random.get_rng_state(), state)
    finally:
        logging.remove_handler(logged)
        logging.set_verbosity(verbosity)


def drop(folder: Path, prefix: str) -> None:
    """Take tensors out of a checkpoint."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    assert len(kept) < len(tensors)
    save_file(kept, path, metadata={"format": "pt"})


def test_a_folder_that_is_no_depth_checkpoint_says_so(
    folders: dict[str, Path], picture: Image.Image, tmp_path: Path
) -> None:
    """One sentence each: an empty folder, another kind of network, a cut file, weights of another network, code in it."""
    empty, other, cut, alien, code = (tmp_path / name for name in ("empty", "other", "cut", "alien", "code"))
    empty.mkdir()
    for folder in (other, cut, alien, code):
        shutil.copytree(folders["dpt"], folder)
    (other / "config.json").write_text('{"model_type": "bert"}')
    (cut / "model.safetensors").write_bytes((folders["dpt"] / "model.safetensors").read_bytes()[:5000])
    drop(alien, "dpt.")
    config = json.loads((code / "config.json").read_text())
    auto = {"AutoConfig": "evil.Evil", "AutoModelForDepthEstimation": "evil.Evil"}
    (code / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": auto}))
    (code / "evil.py").write_text("raise SystemExit('code of a stranger ran')")
    for folder, sentence in (
        (empty, "no depth checkpoint"),
        (other, "no depth checkpoint"),
        (cut, "no depth checkpoint"),
        (alien, "lacks .* tensors; fetch it again"),
        (code, "no depth checkpoint"),
    ):
        with pytest.raises(ValueError, match=sentence) as raised:
            depth(picture, model=folder)
        assert "\n" not in str(raised.value) and str(folder) in str(raised.value)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every connection that is so much as tried; none succeeds."""
    addresses: list[Any] = []

    def no_connection(*address: Any, **_: Any) -> None:
        addresses.append(address)
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", no_connection)
    monkeypatch.setattr("socket.socket.connect", no_connection)
    return addresses


def test_what_is_not_here_names_three_ways_out(
    picture: Image.Image, tried: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an empty cache; nothing is fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=f"{DEFAULT} is not here; .*hf download {DEFAULT}.*folder.*depth picture itself"
    ):
        depth(picture)
    for name in ("no-such-folder", "no/such/folder", "~/no such folder"):
        with pytest.raises(ValueError, match=f"{name} is not here"):
            depth(picture, model=name)
    assert tried == []


def test_what_was_fetched_is_found(
    folders: dict[str, Path], picture: Image.Image, tried: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, in the hub's cache as `hf download` leaves it; the hub is not asked, nor for a folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / f"models--{DEFAULT.replace('/', '--')}"
    shutil.copytree(folders["dpt"], cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    assert depth(picture) == depth(picture, model=DEFAULT) == depth(picture, model=folders["dpt"])
    assert tried == []


def test_without_transformers_it_names_the_extra(
    picture: Image.Image, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    with pytest.raises(ValueError, match=r"pip install 'kandinsky22\[depth\]'"):
        depth(picture, model=folders["dpt"])
    importlib.reload(sys.modules["kandinsky22.imaging.depth"])  # importing the module needs no transformers


def test_a_device_that_is_not_there_is_refused(picture: Image.Image, folders: dict[str, Path]) -> None:
    for device in ("cuda:99", "nonsense"):
        with pytest.raises(ValueError, match="cannot be used here; try cpu"):
            depth(picture, model=folders["dpt"], device=device)


class Flat(torch.nn.Module):
    """A network that finds the same everywhere."""

    config = transformers.DPTConfig()

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, pixel_values: torch.Tensor) -> Any:
        found = torch.full(pixel_values.shape[-2:], self.value)[None]
        return transformers.modeling_outputs.DepthEstimatorOutput(predicted_depth=found)


def test_no_depth_at_all(folders: dict[str, Path], picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall is black, where transformers divides by zero; what is no number is refused."""
    info: dict[str, list[str]] = {"missing_keys": [], "mismatched_keys": []}
    for value in (3.0, float("nan")):
        loaded = (Flat(value), info)
        monkeypatch.setattr(
            transformers.AutoModelForDepthEstimation, "from_pretrained", lambda *_, _it=loaded, **__: _it
        )
        if value == 3:
            assert depth(picture, model=folders["dpt"]).image.getextrema() == (0, 0)
        else:
            with pytest.raises(ValueError, match="no numbers"):
                depth(picture, model=folders["dpt"])


def test_from_the_command_line(
    folders: dict[str, Path],
    picture: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    picture.save("cat.png")
    folder = next(iter(folders.values()))
    assert run(["depth", "cat.png", "--estimator", str(folder)]) == 0
    assert capsys.readouterr().out == "out/cat-depth.png\n"
    with Image.open("out/cat-depth.png") as made:
        assert made.size == picture.size and made.mode == "L"
    assert run(["depth", "cat.png", "--estimator", "nowhere/at-all"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
