"""Painting with the linear prior: a matrix in the place of the diffusion prior, without chance, steps or guidance."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kandinsky22 import Kandinsky, Request, controlnet, interpolate, text2img
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.linear_prior import FOLDER, save
from kandinsky22.models.linear_prior import LinearPrior, LinearPriorConfig
from kandinsky22.models.prior import PriorTransformer
from kandinsky22.request import Sampling
from tests.models_on_disk import DIM, randomise


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, with a linear prior of random weights."""
    folder = tmp_path_factory.mktemp("linear") / "tiny-model"
    shutil.copytree(tiny_model, folder)
    prior = LinearPrior(LinearPriorConfig(text_dim=DIM, embedding_dim=DIM))
    randomise(prior)
    stored = Kandinsky.load(tiny_model).stored.prior
    save(folder / "prior" / FOLDER, prior, stored.text_encoder.fingerprint, stored.image_encoder.fingerprint)
    return folder


@pytest.fixture(scope="module")
def kandinsky(folder: Path) -> Kandinsky:
    return Kandinsky.load(folder)


def linear(prompt: str, **how: object) -> Request:
    return text2img(prompt, prior="linear", num_inference_steps=2, seed=3, **how)  # type: ignore[arg-type]


def test_a_texts_embedding_is_its_map_whatever_the_seed_and_the_company(kandinsky: Kandinsky) -> None:
    network = kandinsky.networks.get(kandinsky.stored.prior.linear_prior)
    with torch.inference_mode():
        known = network(kandinsky.prior.encode_text(["a red circle"]).embed)
    for how in ({}, {"num_images": 3}, {"prior_seed": 7}):
        found = kandinsky.embed(linear("a red circle", **how)).image
        assert torch.allclose(found, known.expand_as(found), atol=1e-6)
    both = kandinsky.prior.map_prompts(["a red circle", "a much longer prompt about three blue stars"])
    assert torch.allclose(both[:1], known, atol=1e-6)


def test_the_diffusion_prior_is_never_asked(kandinsky: Kandinsky, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PriorTransformer, "forward", None)
    first, second = kandinsky(linear("a red circle", num_images=2, negative_prompt="a blue one"))
    assert np.any(np.asarray(first.image) != np.asarray(second.image))  # the decoder has its chance all the same


def test_it_tells_texts_apart_and_mixes_them(kandinsky: Kandinsky) -> None:
    one, two = (kandinsky.embed(linear(text)).image for text in ("a red circle", "a blue star"))
    assert not torch.allclose(one, two, atol=1e-3)
    half = interpolate(["a red circle", "a blue star"], prior="linear", seed=3)
    assert torch.allclose(kandinsky.embed(half).image, (one + two) / 2, atol=1e-6)
    away = kandinsky.embed(linear("a red circle", negative_prompt="a blue star")).negative
    assert away is not None and torch.allclose(away, two, atol=1e-6)


def test_both_priors_may_be_asked_in_company(kandinsky: Kandinsky) -> None:
    requests = {"matrix": linear("a red circle"), "diffusion": text2img("a red circle", num_inference_steps=2, seed=3)}
    together = kandinsky.stream_many(requests)
    pictures = {key: event.pictures[0] for key, event in together if hasattr(event, "pictures")}
    for key, request in requests.items():
        alone = np.asarray(kandinsky(request)[0].image).astype(int)
        assert np.abs(np.asarray(pictures[key].image).astype(int) - alone).max() <= 1


def test_it_is_carried_by_the_picture_and_replays(kandinsky: Kandinsky) -> None:
    (painting,) = kandinsky(linear("a red circle"))
    again = Request.from_json(painting.request.to_json())
    assert again.prior == Sampling(sampler="linear", steps=1, guidance_scale=1)
    assert np.array_equal(np.asarray(kandinsky(again)[0].image), np.asarray(painting.image))
    assert painting.made_by["weights"]["linear_prior"] == kandinsky.stored.prior.linear_prior.fingerprint
    usual = text2img("a red circle", seed=1, prior="diffusion")
    assert usual == text2img("a red circle", seed=1)


def test_a_model_without_one_says_so_before_anything_runs(tiny_model: Path) -> None:
    kandinsky = Kandinsky.load(tiny_model)
    with pytest.raises(CheckpointError, match="no linear prior; fit one with: kandinsky22 train linear-prior"):
        kandinsky.resolved(linear("a red circle"))
    with pytest.raises(ValueError, match=r"no linear prior of kandinsky-2\.2 is published; fit one"):
        Kandinsky.load("kandinsky-2.2", request=linear("a red circle"))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"prior_num_inference_steps": 5}, "takes no steps and no guidance"),
        ({"prior_guidance_scale": 4.0}, "takes no steps and no guidance"),
        ({"prior_sampler": "ddim"}, "is not sampled; leave out prior_sampler"),
    ],
)
def test_what_means_nothing_to_it_is_refused(how: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        linear("a red circle", **how)


def test_there_are_two_priors() -> None:
    with pytest.raises(ValueError, match="prior must be diffusion or linear, got 'liner'"):
        text2img("a red circle", prior="liner")  # type: ignore[typeddict-item]


def test_a_decoder_cannot_be_linear() -> None:
    with pytest.raises(ValueError, match="the prior alone can be linear"):
        text2img("a red circle", sampler="linear")


def test_it_cannot_begin_with_a_picture() -> None:
    picture = Image.new("RGB", (64, 64))
    with pytest.raises(ValueError, match="cannot begin with a picture"):
        controlnet("a red circle", hint=picture, image=picture, prior="linear")
