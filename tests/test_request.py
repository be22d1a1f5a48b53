"""A request is a value: it goes to JSON and back, and what no model could paint is refused in one sentence."""

from typing import Any

import pytest

from kandinsky22.request import MAX_SEED, Defaults, Request, Sampling, Text
from kandinsky22.tasks import text2img

DEFAULTS = Defaults(
    height=64,
    width=128,
    prior=Sampling(sampler="unclip", steps=25, guidance_scale=2.0),
    decoder=Sampling(sampler="ddpm", steps=50, guidance_scale=3.0),
)


@pytest.mark.parametrize(
    "request_",
    [
        text2img("a red circle"),
        text2img(
            "кружок, 'quoted' \"twice\" $5\n", negative_prompt="a star", height=70, width=100, num_images=3, seed=0
        ),
        text2img("", sampler="heun", guidance_scale=1, prior_num_inference_steps=7, model="elsewhere"),
    ],
)
def test_json_goes_both_ways(request_: Request) -> None:
    assert Request.from_json(request_.to_json()) == request_
    resolved = request_.resolved(DEFAULTS)
    assert Request.from_json(resolved.to_json()) == resolved


def test_resolving_fills_only_what_is_open() -> None:
    resolved = text2img("a ring", width=64, num_inference_steps=9).resolved(DEFAULTS)
    assert (resolved.height, resolved.width) == (64, 64)
    assert resolved.decoder == Sampling(sampler="ddpm", steps=9, guidance_scale=3.0)
    assert resolved.prior == DEFAULTS.prior
    assert resolved.resolved(DEFAULTS) == resolved
    assert text2img("a ring").resolved(DEFAULTS).seed != text2img("a ring").resolved(DEFAULTS).seed


def test_an_empty_negative_prompt_is_none_at_all_but_an_empty_text_is_literal() -> None:
    assert text2img("a ring", negative_prompt="").negative is None
    assert Text("").prompt == ""


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_inference_steps": 0}, "steps must be a whole number from 1 to 1000, got 0; try 25"),
        ({"prior_num_inference_steps": 2.5}, "steps must be a whole number"),
        ({"sampler": "euler"}, "sampler must be one of ddpm, unclip, ddim, dpmpp_2m, heun, got 'euler'"),
        ({"height": 63}, "height must be a whole number from 64 up, got 63"),
        ({"width": "64"}, "width must be a whole number"),
        ({"num_images": 0}, "num_images must be a whole number from 1 up"),
        ({"num_images": True}, "num_images must be a whole number from 1 up"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"seed": MAX_SEED}, "seed must be a whole number from 0"),
        ({"guidance_scale": 0.5}, "guidance_scale must be at least 1"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be at least 1"),
    ],
)
def test_what_no_model_could_paint_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        text2img("a ring", **options)
    assert "\n" not in str(refused.value)


def test_prompts_must_be_text() -> None:
    with pytest.raises(ValueError, match="the prompt must be text, got list"):
        text2img(["a ring"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="half a character"):
        text2img("\ud83d")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"condition": 3}', '{"condition": {"prompt": "a"}, "lora": 1}'])
def test_other_json_is_no_request(text: str) -> None:
    with pytest.raises(ValueError, match="request"):
        Request.from_json(text)


def test_one_picture_of_many_is_the_next_seed() -> None:
    request = text2img("a ring", seed=5, num_images=3)
    assert [request.single(k).seed for k in range(3)] == [5, 6, 7]
    assert request.single(2).num_images == 1
