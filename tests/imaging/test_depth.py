"""Depth hints, compared with transformers' own pipeline on tiny random networks, and their error messages."""

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


def depth_anything(**options: Any) -> torch.nn.Module:
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
        **options,
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
    """Checkpoints of small networks: the model card's architecture, a newer one, and one that predicts metres."""
    networks: dict[str, Callable[[], torch.nn.Module]] = {
        "dpt": dpt,
        "depth_anything": depth_anything,
        "metres": lambda: depth_anything(depth_estimation_type="metric", max_depth=20),
    }
    root = tmp_path_factory.mktemp("depth")
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    saved = {name: save(root / name, make()) for name, make in networks.items()}
    if bars:
        logging.enable_progress_bar()
    return saved


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def pipeline_output(folder: Path, picture: Image.Image) -> dict[str, Any]:
    """The result of the model card's `depth_estimator(image)`."""
    processor = DPTImageProcessorPil.from_pretrained(folder)
    return pipeline("depth-estimation", model=str(folder), image_processor=processor, device="cpu")(picture)


@pytest.mark.parametrize("name", ["dpt", "depth_anything"])
def test_depth_equals_the_pipeline_of_the_model_card(name: str, folders: dict[str, Path], picture: Image.Image) -> None:
    """Bit for bit, so `Picture`'s three equal channels in [0, 1] are the hint of the model card's `make_hint`."""
    result = depth(picture, model=folders[name])
    assert result.image.mode == "L" and result.image.size == (WIDTH, HEIGHT)
    assert np.array_equal(np.asarray(result.image), np.asarray(pipeline_output(folders[name], picture)["depth"]))
    assert result.image.getextrema() == (0, 255)
    assert depth(picture, model=str(folders[name])) == result


def test_depth_accepts_paths_and_grey_pictures(folders: dict[str, Path], picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "a.png")
    grey = picture.convert("L")
    assert depth(tmp_path / "a.png", model=folders["dpt"]) == depth(picture, model=folders["dpt"])
    assert depth(grey, model=folders["dpt"]) == depth(grey.convert("RGB"), model=folders["dpt"])


def test_metric_depth_is_inverted_so_that_near_is_bright(folders: dict[str, Path], picture: Image.Image) -> None:
    """A larger distance is never brighter, and the grey levels are those of the reciprocal."""
    metres = pipeline_output(folders["metres"], picture)["predicted_depth"].numpy()
    assert metres.min() > 0 and metres.std() > 0
    nearness = 1 / metres
    grey = np.asarray(depth(picture, model=folders["metres"]).image)
    assert (np.diff(grey.ravel()[np.argsort(metres.ravel())].astype(int)) <= 0).all()
    assert np.abs(grey - 255 * (nearness - nearness.min()) / np.ptp(nearness)).max() <= 1


def test_depth_prints_nothing_and_restores_global_state(
    folders: dict[str, Path], picture: Image.Image, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Nothing is printed or logged; transformers' settings and torch's generator are unchanged, after an error too."""
    partial = shutil.copytree(folders["dpt"], tmp_path / "partial")
    # as in the published dpt-large, whose load warns of it
    drop_tensors(partial, "neck.fusion_stage.layers.0.residual_layer1.")
    log = logging_handlers.BufferingHandler(100)
    verbosity = logging.get_verbosity()
    logging.add_handler(log)
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    state = torch.random.get_rng_state()
    capfd.readouterr()
    try:
        assert depth(picture, model=partial) == depth(picture, model=folders["dpt"])
        with pytest.raises(ValueError):
            depth(picture, model=tmp_path)
        assert capfd.readouterr() == ("", "") and log.buffer == []
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)
        assert torch.equal(torch.random.get_rng_state(), state)
    finally:
        logging.remove_handler(log)
        logging.set_verbosity(verbosity)


def drop_tensors(folder: Path, prefix: str) -> None:
    """Take tensors out of a checkpoint."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    remaining = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    assert len(remaining) < len(tensors)
    save_file(remaining, path, metadata={"format": "pt"})


def test_a_folder_without_a_depth_checkpoint_is_refused(
    folders: dict[str, Path], picture: Image.Image, tmp_path: Path
) -> None:
    """An empty folder, another kind of network, a truncated file, missing weights and a folder with code in it."""
    empty, other, cut, incomplete, code = (tmp_path / name for name in ("empty", "other", "cut", "incomplete", "code"))
    empty.mkdir()
    for folder in (other, cut, incomplete, code):
        shutil.copytree(folders["dpt"], folder)
    (other / "config.json").write_text('{"model_type": "bert"}')
    (cut / "model.safetensors").write_bytes((folders["dpt"] / "model.safetensors").read_bytes()[:5000])
    drop_tensors(incomplete, "dpt.")
    config = json.loads((code / "config.json").read_text())
    auto = {"AutoConfig": "evil.Evil", "AutoModelForDepthEstimation": "evil.Evil"}
    (code / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": auto}))
    (code / "evil.py").write_text("raise SystemExit('code from the folder ran')")
    for folder, sentence in (
        (empty, "no depth checkpoint"),
        (other, "no depth checkpoint"),
        (cut, "no depth checkpoint"),
        (incomplete, "lacks .* tensors; fetch it again"),
        (code, "no depth checkpoint"),
    ):
        with pytest.raises(ValueError, match=sentence) as raised:
            depth(picture, model=folder)
        assert "\n" not in str(raised.value) and str(folder) in str(raised.value)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The addresses of all attempted connections; each attempt fails."""
    addresses: list[Any] = []

    def no_connection(*address: Any, **_: Any) -> None:
        addresses.append(address)
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", no_connection)
    monkeypatch.setattr("socket.socket.connect", no_connection)
    return addresses


def test_a_missing_estimator_is_refused_with_three_alternatives(
    picture: Image.Image, connections: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is empty, and nothing is downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=f"{DEFAULT} is not here; .*hf download {DEFAULT}.*folder.*depth picture itself"
    ):
        depth(picture)
    for name in ("no-such-folder", "no/such/folder", "~/no such folder"):
        with pytest.raises(ValueError, match=f"{name} is not here"):
            depth(picture, model=name)
    assert connections == []


def test_a_downloaded_estimator_is_found_in_the_hub_cache(
    folders: dict[str, Path],
    picture: Image.Image,
    connections: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By name, in the layout that `hf download` writes; neither a name nor a folder causes a connection."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / f"models--{DEFAULT.replace('/', '--')}"
    shutil.copytree(folders["dpt"], cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    assert depth(picture) == depth(picture, model=DEFAULT) == depth(picture, model=folders["dpt"])
    assert connections == []


def test_without_transformers_the_error_names_the_extra(
    picture: Image.Image, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    with pytest.raises(ValueError, match=r"pip install 'kandinsky22\[depth\]'"):
        depth(picture, model=folders["dpt"])
    importlib.reload(sys.modules["kandinsky22.imaging.depth"])  # importing the module needs no transformers


def test_an_unavailable_device_is_refused(picture: Image.Image, folders: dict[str, Path]) -> None:
    for device in ("cuda:99", "nonsense"):
        with pytest.raises(ValueError, match="cannot be used here; try cpu"):
            depth(picture, model=folders["dpt"], device=device)


class ConstantDepth(torch.nn.Module):
    """A network that predicts one value everywhere."""

    config = transformers.DPTConfig()

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, pixel_values: torch.Tensor) -> Any:
        result = torch.full(pixel_values.shape[-2:], self.value)[None]
        return transformers.modeling_outputs.DepthEstimatorOutput(predicted_depth=result)


def test_constant_depth_is_black_and_nan_is_refused(
    folders: dict[str, Path], picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constant depth gives a black picture, where transformers divides by zero; NaN is refused."""
    info: dict[str, list[str]] = {"missing_keys": [], "mismatched_keys": []}
    for value in (3.0, float("nan")):
        loaded = (ConstantDepth(value), info)
        monkeypatch.setattr(
            transformers.AutoModelForDepthEstimation, "from_pretrained", lambda *_, loaded=loaded, **__: loaded
        )
        if value == 3:
            assert depth(picture, model=folders["dpt"]).image.getextrema() == (0, 0)
        else:
            with pytest.raises(ValueError, match="not finite"):
                depth(picture, model=folders["dpt"])


def test_the_depth_command_writes_a_picture(
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
    with Image.open("out/cat-depth.png") as written:
        assert written.size == picture.size and written.mode == "L"
    assert run(["depth", "cat.png", "--estimator", "nowhere/at-all"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
