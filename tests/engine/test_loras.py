"""Requests with LoRAs: which pictures and embeddings they change, in any company and at any placement."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kandinsky22 import Kandinsky, LoRA, Request, inpaint, text2img
from kandinsky22.request.events import Result
from tests.engine.test_batch import FEW_STEPS, HOLE, PHOTO
from tests.loras_on_disk import write_lora

Files = dict[str, Path]


@pytest.fixture(scope="module")
def kandinsky(tiny_model: Path) -> Kandinsky:
    return Kandinsky.load(tiny_model)


@pytest.fixture(scope="module")
def files(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("loras")
    networks = {"style": ("unet",), "other": ("unet",), "prior": ("prior",), "text": ("text_encoder",)}
    return {
        name: write_lora(folder / f"{name}.safetensors", tiny_model, of, seed=seed)
        for seed, (name, of) in enumerate(networks.items())
    }


def request(*loras: Any, **options: Any) -> Request:
    return text2img("a red star", loras=loras, seed=3, **FEW_STEPS, **options)


def pixels(kandinsky: Kandinsky, request: Request) -> Any:
    return np.asarray(kandinsky(request)[0].image).astype(int)


@pytest.mark.filterwarnings("ignore:guidance_interval and reuse")
def test_requests_with_different_loras_in_one_batch_are_those_alone(kandinsky: Kandinsky, files: Files) -> None:
    style, other = files["style"], files["other"]
    requests = {
        "plain": request(),
        "one": request(style),
        "scaled": request(f"{style}:0.5", num_images=2),
        "both": request(style, f"{other}:-0.4"),
        "reused": request(other, reuse=2),
        "masked": inpaint("a star", image=PHOTO, mask_image=HOLE, loras=[style], seed=3, **FEW_STEPS),
    }
    alone = {key: pixels(kandinsky, value) for key, value in requests.items()}
    results = {key: event for key, event in kandinsky.stream_many(requests) if isinstance(event, Result)}
    for key, event in results.items():
        assert np.abs(np.asarray(event.pictures[0].image).astype(int) - alone[key]).max() <= 1
    for key in ("one", "scaled", "both"):
        assert np.abs(alone[key] - alone["plain"]).max() > 3


def test_scale_zero_is_bit_for_bit_the_model_without_it(tiny_model: Path, files: Files) -> None:
    kandinsky = Kandinsky.load(tiny_model)
    plain = pixels(kandinsky, request())
    assert (pixels(kandinsky, request(files["style"], files["prior"])) != plain).any()
    assert (pixels(kandinsky, request(f"{files['style']}:0", f"{files['text']}:0")) == plain).all()
    assert (pixels(kandinsky, request()) == plain).all()


def test_embeddings_are_cached_by_the_loras_that_change_them(kandinsky: Kandinsky, files: Files) -> None:
    def embed(*loras: Any) -> torch.Tensor:
        return kandinsky.embed(kandinsky.resolve(request(*loras))).image

    plain, prior, text = embed(), embed(files["prior"]), embed(files["text"])
    assert not torch.equal(prior, plain) and not torch.equal(text, plain) and not torch.equal(text, prior)
    assert torch.equal(embed(files["prior"]), prior)
    assert not torch.equal(embed(f"{files['prior']}:0.5"), prior)
    known = len(kandinsky.embedder.cache._latest)
    assert torch.equal(embed(files["style"]), plain)
    assert torch.equal(embed(LoRA.of(files["prior"], 0.3, prior_scale=1)), prior)
    assert len(kandinsky.embedder.cache._latest) == known


@pytest.mark.parametrize("placement", ["offload", "sequential"])
def test_every_placement_is_exact(placement: Any, tiny_model: Path, kandinsky: Kandinsky, files: Files) -> None:
    asked = request(files["style"], files["prior"])
    moved = Kandinsky.load(tiny_model, placement=placement)
    expected = pixels(kandinsky, asked)
    assert (pixels(moved, asked) == expected).all() and (pixels(moved, asked) == expected).all()


def test_a_picture_names_its_loras_and_no_folder(kandinsky: Kandinsky, files: Files) -> None:
    painting = kandinsky(request(f"{files['style']}:0.5"))[0]
    text = painting.request.to_json()
    assert str(files["style"].parent) not in text
    (lora,) = Request.from_json(text).loras
    assert lora == LoRA.of(files["style"], 0.5) and lora.name == "style" and lora.path is None


def test_loras_that_cannot_be_used_are_refused_before_anything_runs(
    kandinsky: Kandinsky, files: Files, tmp_path: Path
) -> None:
    reference = replace(LoRA.of(files["style"]), path=None)
    with pytest.raises(ValueError, match="pass its file"):
        Kandinsky.load(kandinsky.stored.first.folder.parent).resolve(request(reference))
    with pytest.raises(ValueError, match="linear prior takes no adapters, and prior has some"):
        kandinsky.resolve(text2img("a red star", loras=[files["prior"]], prior="linear"))
    copy = Path(shutil.copy(files["style"], tmp_path))
    lora = LoRA.of(copy)
    shutil.copy(files["other"], copy)
    with pytest.raises(ValueError, match="has changed since"):
        Kandinsky.load(kandinsky.stored.first.folder.parent).resolve(request(lora))
    box = Kandinsky.load()
    with pytest.raises(ValueError, match=r"style\.safetensors is for a decoder of another model"):
        box.resolve(request(files["style"]))
