"""Painting with the linear prior: one matrix instead of the diffusion prior, without noise, steps or guidance."""

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


def linear(prompt: str, **options: object) -> Request:
    return text2img(prompt, prior="linear", num_inference_steps=2, seed=3, **options)  # type: ignore[arg-type]


def test_a_text_has_one_embedding_for_every_seed_and_batch(kandinsky: Kandinsky) -> None:
    network = kandinsky.networks.get(kandinsky.stored.prior.linear_prior)
    with torch.inference_mode():
        expected = network(kandinsky.prior.encode_text(["a red circle"]).embed)
    for options in ({}, {"num_images": 3}, {"prior_seed": 7}):
        embedding = kandinsky.embed(linear("a red circle", **options)).image
        assert torch.allclose(embedding, expected.expand_as(embedding), atol=1e-6)
    both = kandinsky.prior.map_prompts(["a red circle", "a much longer prompt about three blue stars"])
    assert torch.allclose(both[:1], expected, atol=1e-6)


def test_the_diffusion_prior_never_runs(kandinsky: Kandinsky, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PriorTransformer, "forward", None)
    first, second = kandinsky(linear("a red circle", num_images=2, negative_prompt="a blue one"))
    assert np.any(np.asarray(first.image) != np.asarray(second.image))  # the decoder's noise still differs


def test_linear_prior_distinguishes_texts_and_mixes_them(kandinsky: Kandinsky) -> None:
    one, two = (kandinsky.embed(linear(text)).image for text in ("a red circle", "a blue star"))
    assert not torch.allclose(one, two, atol=1e-3)
    half = interpolate(["a red circle", "a blue star"], prior="linear", seed=3)
    assert torch.allclose(kandinsky.embed(half).image, (one + two) / 2, atol=1e-6)
    negative = kandinsky.embed(linear("a red circle", negative_prompt="a blue star")).negative
    assert negative is not None and torch.allclose(negative, two, atol=1e-6)


def test_requests_of_both_priors_run_in_one_batch(kandinsky: Kandinsky) -> None:
    requests = {"matrix": linear("a red circle"), "diffusion": text2img("a red circle", num_inference_steps=2, seed=3)}
    together = kandinsky.stream_many(requests)
    pictures = {key: event.pictures[0] for key, event in together if hasattr(event, "pictures")}
    for key, request in requests.items():
        alone = np.asarray(kandinsky(request)[0].image).astype(int)
        assert np.abs(np.asarray(pictures[key].image).astype(int) - alone).max() <= 1


def test_a_saved_request_names_the_linear_prior_and_replays(kandinsky: Kandinsky) -> None:
    (painting,) = kandinsky(linear("a red circle"))
    replayed = Request.from_json(painting.request.to_json())
    assert replayed.prior == Sampling(sampler="linear", steps=1, guidance_scale=1)
    assert np.array_equal(np.asarray(kandinsky(replayed)[0].image), np.asarray(painting.image))
    assert painting.made_by["weights"]["linear_prior"] == kandinsky.stored.prior.linear_prior.fingerprint
    unchanged = text2img("a red circle", seed=1, prior="diffusion")
    assert unchanged == text2img("a red circle", seed=1)


def test_a_model_without_a_linear_prior_refuses_such_a_request(tiny_model: Path) -> None:
    kandinsky = Kandinsky.load(tiny_model)
    with pytest.raises(CheckpointError, match="no linear prior; fit one with: kandinsky22 train linear-prior"):
        kandinsky.resolve(linear("a red circle"))
    with pytest.raises(ValueError, match=r"no linear prior of kandinsky-2\.2 is published; fit one"):
        Kandinsky.load("kandinsky-2.2", request=linear("a red circle"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior_num_inference_steps": 5}, "has no steps and no guidance"),
        ({"prior_guidance_scale": 4.0}, "has no steps and no guidance"),
        ({"prior_sampler": "ddim"}, "has no sampler; leave out prior_sampler"),
    ],
)
def test_sampling_options_are_refused_with_the_linear_prior(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear("a red circle", **options)


def test_an_unknown_prior_is_refused() -> None:
    with pytest.raises(ValueError, match="prior must be diffusion or linear, got 'liner'"):
        text2img("a red circle", prior="liner")  # type: ignore[typeddict-item]


def test_linear_is_refused_as_a_sampler_of_the_decoder() -> None:
    with pytest.raises(ValueError, match="only the prior can be linear"):
        text2img("a red circle", sampler="linear")


def test_the_linear_prior_refuses_a_start_picture() -> None:
    picture = Image.new("RGB", (64, 64))
    with pytest.raises(ValueError, match="cannot start from a picture"):
        controlnet("a red circle", hint=picture, image=picture, prior="linear")
