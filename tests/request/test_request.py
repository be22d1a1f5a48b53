"""Requests as values: JSON round trips, resolving defaults and sizes, and validation messages."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kandinsky22.request import Condition, Defaults, Embedding, Mask, Mix, Picture, Request, Sampling, Start, Text
from kandinsky22.request.request import MAX_SEED
from kandinsky22.request.tasks import controlnet, interpolate, text2img

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
def test_request_survives_a_json_round_trip(request_: Request) -> None:
    assert Request.from_json(request_.to_json()) == request_
    resolved = request_.resolved(DEFAULTS)
    assert Request.from_json(resolved.to_json()) == resolved


def test_resolving_fills_only_missing_fields() -> None:
    resolved = text2img("a ring", width=64, num_inference_steps=9).resolved(DEFAULTS)
    assert (resolved.height, resolved.width) == (64, 64)
    assert resolved.decoder == Sampling(sampler="ddpm", steps=9, guidance_scale=3.0)
    assert resolved.prior == DEFAULTS.prior
    assert resolved.resolved(DEFAULTS) == resolved
    assert text2img("a ring").resolved(DEFAULTS).seed != text2img("a ring").resolved(DEFAULTS).seed


def test_empty_negative_prompt_counts_as_none_but_an_empty_text_does_not() -> None:
    assert text2img("a ring", negative_prompt="").negative is None
    assert Text("").prompt == ""


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_inference_steps": 0}, "steps must be a whole number from 1 to 1000, got 0; try 25"),
        ({"prior_num_inference_steps": 2.5}, "steps must be a whole number"),
        ({"sampler": "eulr"}, "sampler must be one of ddpm, unclip, ddim, euler, dpmpp_2m, unipc, heun, got 'eulr'"),
        ({"height": 63}, "height must be a whole number from 64 up, got 63"),
        ({"width": "64"}, "width must be a whole number"),
        ({"num_images": 0}, "num_images must be a whole number from 1 up"),
        ({"num_images": True}, "num_images must be a whole number from 1 up"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"seed": MAX_SEED}, "seed must be a whole number from 0"),
        ({"guidance_scale": -0.5}, "guidance_scale must be 0 or more"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be 0 or more"),
        ({"guidance_scale": 10**400}, "guidance_scale must be 0 or more"),
        ({"guidance_scale": True}, "guidance_scale must be 0 or more"),
        ({"guidance_interval": [0, True]}, "guidance_interval must be two rising numbers"),
        ({"model": 3}, "model must be a name or a folder, got int"),
    ],
)
def test_out_of_range_options_are_refused_in_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        text2img("a ring", **options)
    assert "\n" not in str(refused.value)


def test_prompts_must_be_text() -> None:
    with pytest.raises(ValueError, match="the prompt must be text, got list"):
        text2img(["a ring"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="half a character"):
        text2img("\ud83d")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"condition": 3}', '{"condition": {"prompt": "a"}, "lora": 1}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="request"):
        Request.from_json(text)


@pytest.mark.parametrize(
    "values",
    [
        {"variation_strength": True, "variation_seed": 1},
        {"model": ["box"]},
        {"start": {"image": {"picture": {"sha256": "a", "height": 64, "width": 64}}, "strength": True}},
        {"condition": {"parts": [{"prompt": "a"}, {"prompt": "b"}], "weights": [True, 0]}},
        {"mask": {"image": {"picture": {"sha256": "a", "height": 64, "width": 64}}, "pad": [1] * 4, "paste_back": 1}},
    ],
)
def test_values_of_another_type_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|got"):
        Request.from_json(json.dumps({"condition": {"prompt": "a"}, **values}))


def test_request_for_one_image_of_a_batch_has_the_next_seed() -> None:
    request = text2img("a ring", seed=5, num_images=3)
    assert [request.for_image(k).seed for k in range(3)] == [5, 6, 7]
    assert request.for_image(2).num_images == 1


RNG = np.random.default_rng(1)
WIDE = Picture.of(RNG.integers(0, 256, (40, 80, 3), dtype=np.uint8))
HOLE = Picture.of(np.ones((40, 80), np.uint8))
VALUE = Embedding.of([1.0, 2.5, -3.0], "clip")


@pytest.mark.parametrize(
    "condition",
    [Text("a", WIDE, 0.5), WIDE, VALUE, Mix((Text("a"), WIDE, VALUE, Text("", WIDE, 1.0)), (0.5, -1, 2, 0.0))],
    ids=["emb2emb", "picture", "embedding", "mix"],
)
@pytest.mark.parametrize(
    "parts",
    [
        {"start": Start(WIDE, 0.3)},
        {"hint": WIDE, "start": Start(WIDE, 1)},
        {"mask": Mask(image=WIDE, area=HOLE, repaint="black", feather=3, paste_back=False, crop=True)},
        {"mask": Mask(image=WIDE, pad=(1, 2, 3, 4))},
    ],
    ids=["start", "hint", "mask", "pad"],
)
def test_every_part_survives_a_json_round_trip_without_pixels(condition: Condition, parts: dict[str, Any]) -> None:
    request = Request(
        condition=condition, negative=condition, seed=1, variation_seed=2, variation_strength=0.5, **parts
    )
    text = request.to_json()
    restored = Request.from_json(text)
    assert restored == request
    assert len(text) < 4000
    with_pixels = restored.with_pictures(request.pictures)
    assert all(picture.pixels is not None for picture in with_pixels.pictures.values())


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (64, 128)),
        ({"aspect": "16:9", "height": 768, "width": 768}, (576, 1024)),
        ({"aspect": "16:9", "width": 1920}, (1080, 1920)),
        ({"aspect": "1:2", "height": 200}, (200, 96)),
        ({"aspect": "1:1"}, (64, 64)),
        ({"aspect": "3:1", "height": 128, "width": 128}, (64, 192)),
        ({"aspect": "4:3", "height": 512, "width": 512}, (384, 512)),
        ({"aspect": "1:8", "height": 64, "width": 64}, (512, 64)),
        ({"start": Start(WIDE, 0.3)}, (64, 128)),
        ({"hint": WIDE, "width": 256}, (128, 256)),
        ({"start": Start(WIDE, 0.3), "height": 96, "width": 96}, (96, 96)),
        ({"mask": Mask(image=Picture.of(np.zeros((90, 70))), area=HOLE)}, (90, 70)),
        ({"mask": Mask(image=Picture.of(np.zeros((90, 70))), pad=(0, 10, 20, 0))}, (110, 80)),
        ({"mask": Mask(image=Picture.of(np.zeros((100, 200))), area=HOLE), "height": 200}, (200, 400)),
    ],
)
def test_size_follows_from_sides_aspect_and_input_pictures(options: dict[str, Any], size: tuple[int, int]) -> None:
    resolved = Request(condition=Text(""), **options).resolved(DEFAULTS)
    assert (resolved.height, resolved.width) == size
    assert resolved.resolved(DEFAULTS) == resolved


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: Start(WIDE, 0), "strength must be above 0"),
        (lambda: Start(WIDE, 1.5), "at most 1, got 1.5; try 0.3"),
        (lambda: Text("a", WIDE), "give both or neither"),
        (lambda: Mix((), ()), "as many weights"),
        (lambda: Mix((VALUE,), (float("nan"),)), "weights must be finite numbers"),
        (lambda: Mask(image=WIDE), "nothing would be painted"),
        (lambda: Mask(image=WIDE, area=HOLE, repaint="grey"), "mask_mode must be white or black"),  # type: ignore[arg-type]
        (lambda: Mask(image=WIDE, pad=(0, -1, 0, 0)), "from 0 up"),
        (lambda: Request(condition=VALUE, aspect="wide"), "width:height, such as 16:9"),
        (lambda: Request(condition=VALUE, aspect="100:1"), "at most 8:1"),
        (lambda: Request(condition=VALUE, variation_strength=0.5), "needs a variation_seed"),
        (
            lambda: Request(condition=Text(""), mask=Mask(image=Picture.of(np.zeros((30, 90))), area=HOLE)).resolved(
                DEFAULTS
            ),
            "enlarge it",
        ),
    ],
)
def test_invalid_parts_are_refused(wrong: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        wrong()


def test_numpy_numbers_are_converted_to_python_numbers() -> None:
    request = text2img("a", seed=np.int64(5), height=np.int32(64), guidance_scale=np.float32(2), aspect="1:1")  # type: ignore[typeddict-item]
    assert request == text2img("a", seed=5, height=64, guidance_scale=2.0, aspect="1:1")
    assert Mix((VALUE, WIDE), np.array([0.5, 1], np.float32)).weights == (0.5, 1.0)  # type: ignore[arg-type]
    assert Request.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: Request(condition="a cat"), "condition must be a Text, Picture, Embedding or Mix, got str"),
        (lambda: Request(condition=Text("a"), negative="b"), "negative must be a Text"),
        (lambda: Request(condition=Text("a"), hint="depth.png"), "hint must be a Picture"),
        (lambda: Request(condition=Text("a"), prior={"steps": 3}), "prior must be a Sampling"),
        (lambda: Start("cat.png", 0.3), "image must be a Picture"),
        (lambda: Mask(image="cat.png"), "image must be a Picture"),
        (
            lambda: Request(condition=Text("a"), mask=Mask(image=WIDE, area=HOLE), aspect="1:1"),
            "keeps the picture's own ratio",
        ),
        (lambda: text2img("a", bogus=5), "there is no option bogus; the options are negative_prompt"),
        (lambda: text2img("a", negative_prompt=["x"]), "the prompt must be text, got list"),
        (lambda: interpolate("a cat"), "takes a list"),
        (lambda: interpolate([]), "at least one"),
        (lambda: interpolate(["a"], weights=1.0), "weights must be a list"),
        (lambda: controlnet("a", hint=WIDE, strength=0.5), "apply to the image to start from"),
        (lambda: text2img("a", aspect="-1:-1"), "width:height, such as 16:9"),
    ],
)
def test_values_of_the_wrong_type_are_refused(wrong: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        wrong()


def test_mix_of_one_part_with_weight_one_is_that_part() -> None:
    assert interpolate(["a"]) == text2img("a")
    assert Request(condition=WIDE, negative=Mix((Text("b"),), (1,))).negative == Text("b")


def test_batch_request_is_restored_from_each_of_its_images() -> None:
    batch = text2img("a", seed=4, num_images=3, variation_seed=9, variation_strength=0.5)
    assert all(batch.for_image(k).batch_from(k, 3) == batch for k in range(3))
