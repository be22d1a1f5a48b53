"""Speed options on a small random model: each alone, in a batch, with every task, and as named presets."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import Kandinsky, Painting, Request, Sampling, controlnet, img2img, inpaint, text2img
from kandinsky22.checkpoints.catalog import DECODER
from kandinsky22.cli.show import summary
from kandinsky22.evaluation.unet_work import UNetWork
from kandinsky22.imaging.images import read_recipe
from kandinsky22.request import Defaults
from kandinsky22.request.events import Notice, Result
from kandinsky22.request.presets import SPEEDS, StagePreset
from kandinsky22.request.task_schema import parameters
from kandinsky22.request.tasks import CommonOptions
from tests.diffusion.toy import DECODER as DECODER_SCHEDULE

FEW: CommonOptions = {"num_inference_steps": 6, "prior_num_inference_steps": 2, "seed": 3, "guidance_scale": 3.0}
RNG = np.random.default_rng(5)
PHOTO = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
HOLE = np.zeros((64, 64), np.float32)
HOLE[8:40, 16:56] = 1


@pytest.fixture(scope="module")
def kandinsky(tiny_model: Path) -> Kandinsky:
    return Kandinsky.load(tiny_model)


def painted(kandinsky: Kandinsky, request: Request) -> Painting:
    """The first picture of a request."""
    (result,) = [event for event in kandinsky.stream(request) if isinstance(event, Result)]
    return result.pictures[0]


def largest_difference(a: Painting, b: Painting) -> int:
    return int(np.abs(np.asarray(a.image, int) - np.asarray(b.image, int)).max())


def test_full_guidance_interval_is_exact_and_an_interval_without_steps_turns_guidance_off(
    kandinsky: Kandinsky,
) -> None:
    exact, off = (painted(kandinsky, text2img("a ring", **FEW | {"guidance_scale": s})) for s in (3.0, 1.0))
    full = painted(kandinsky, text2img("a ring", **FEW, guidance_interval=(0, 1), reuse=1))
    no_steps = painted(kandinsky, text2img("a ring", **FEW, guidance_interval=(0.99, 1)))  # six steps start at 0.83
    half = painted(kandinsky, text2img("a ring", **FEW, guidance_interval=(0, 0.5)))
    assert largest_difference(exact, full) == 0
    assert largest_difference(off, no_steps) <= 1  # up to rounding: the condition was computed for both rows
    assert min(largest_difference(half, exact), largest_difference(half, off), largest_difference(exact, off)) > 5


@pytest.mark.parametrize(("sampler", "calls"), [("ddim", 6), ("heun", 11)])
def test_guidance_interval_and_reuse_save_rows_and_deep_calls(kandinsky: Kandinsky, sampler: str, calls: int) -> None:
    unet = kandinsky.decoder(DECODER).unet
    rows: list[int] = []
    deep: list[int] = []
    hooks = [
        unet.conv_out.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0]))),
        unet.mid_block.register_forward_pre_hook(lambda _, inputs: deep.append(len(inputs[0]))),
    ]
    options = FEW | {"sampler": sampler}
    painted(kandinsky, text2img("a ring", **options))
    assert rows == deep == [2] * calls
    rows.clear()
    deep.clear()
    painted(kandinsky, text2img("a ring", **options, guidance_interval=(0.4, 1), reuse=2))
    for hook in hooks:
        hook.remove()
    assert len(rows) == calls and set(rows) == {1, 2} and rows == sorted(rows, reverse=True)
    assert len(deep) == -(-calls // 2)


def test_reuse_changes_nothing_with_one_step_but_does_with_more(kandinsky: Kandinsky) -> None:
    for steps, same in ((1, True), (6, False)):
        exact, reused = (
            painted(kandinsky, text2img("a ring", **FEW | {"num_inference_steps": steps, "reuse": n})) for n in (1, 3)
        )
        assert (largest_difference(exact, reused) == 0) is same


SPEED_OPTIONS: dict[str, CommonOptions] = {
    "interval": {"guidance_interval": (0.3, 0.7)},
    "reuse": {"reuse": 2},
    "both, heun": {"guidance_interval": (0.0, 0.6), "reuse": 3, "sampler": "heun"},
    "turbo": {"speed": "turbo"},
}


@pytest.mark.parametrize("task", ["text2img", "img2img", "inpaint", "controlnet"])
def test_other_requests_of_a_batch_change_nothing(kandinsky: Kandinsky, task: str) -> None:
    """The others have other speed options, steps, sizes and numbers of pictures."""
    make_request = {
        "text2img": lambda options: text2img("a ring", **options),
        "img2img": lambda options: img2img("a ring", image=PHOTO, strength=0.7, **options),
        "inpaint": lambda options: inpaint("a ring", image=PHOTO, mask_image=HOLE, **options),
        "controlnet": lambda options: controlnet("a ring", hint=PHOTO, **options),
    }[task]
    requests = {name: make_request(FEW | options) for name, options in SPEED_OPTIONS.items()}
    requests["exact"] = make_request(FEW | {"num_inference_steps": 9, "num_images": 2})
    together = {k: e.pictures for k, e in kandinsky.stream_many(requests) if isinstance(e, Result)}
    for name, request in requests.items():
        assert largest_difference(painted(kandinsky, request), together[name][0]) <= 1, name
    assert largest_difference(together["reuse"][0], together["interval"][0]) > 2


def test_saved_picture_carries_its_speed_options_and_replays_from_them(kandinsky: Kandinsky, tmp_path: Path) -> None:
    picture = painted(kandinsky, text2img("a ring", **FEW, speed="turbo", guidance_interval=(0.2, 0.8), reuse=4))
    stored, sampler = picture.request.decoder, kandinsky.defaults.decoder.sampler
    assert stored == Sampling(sampler=sampler, steps=6, guidance_scale=3.0, guidance_interval=(0.2, 0.8), reuse=4)
    recipe = read_recipe(picture.save(tmp_path / "turbo.png"))
    expected = f"{sampler}, 6 steps, guidance 3.0 from 0.2 to 0.8, deeper levels at every 4 calls"
    assert summary(recipe)["decoder"] == expected
    assert recipe.request == picture.request and "speed" not in json.loads(recipe.request.to_json())
    assert largest_difference(painted(kandinsky, recipe.request), picture) == 0
    exact = painted(kandinsky, text2img("a ring", **FEW)).request.decoder
    assert (exact.guidance_interval, exact.reuse, exact.exact) == ((0.0, 1.0), 1, True) and not stored.exact


def test_picture_of_an_earlier_version_without_speed_options_is_exact(kandinsky: Kandinsky) -> None:
    request = painted(kandinsky, text2img("a ring", **FEW)).request
    values = json.loads(request.to_json())
    for name in ("guidance_interval", "reuse"):
        del values["decoder"][name]
    assert kandinsky.resolve(Request.from_json(json.dumps(values))) == request


MODEL_DEFAULT = Sampling(sampler="ddpm", steps=20, guidance_scale=3.0, guidance_interval=(0, 1), reuse=1)
PUBLISHED = Defaults(
    height=512,
    width=512,
    prior=Sampling(sampler="unclip", steps=25, guidance_scale=4.0),
    decoder=replace(MODEL_DEFAULT, steps=50),
)


def test_preset_steps_are_a_fraction_of_the_models_steps() -> None:
    preset = StagePreset(steps_fraction=0.3, sampling=Sampling(sampler="euler", reuse=2))
    assert [preset.for_model(replace(MODEL_DEFAULT, steps=n)).steps for n in (50, 20, 5, 1)] == [15, 6, 2, 1]
    assert preset.for_model(MODEL_DEFAULT) == Sampling(sampler="euler", steps=6, reuse=2)
    assert StagePreset(sampling=Sampling(reuse=2)).for_model(MODEL_DEFAULT) == Sampling(reuse=2)


def test_speed_resolves_to_its_settings_and_fills_only_missing_options() -> None:
    for name, speed in SPEEDS.items():
        request = text2img("a ring", speed=name).resolved(PUBLISHED)  # type: ignore[arg-type]
        assert request.speed is None
        assert request.decoder == speed.decoder.for_model(PUBLISHED.decoder).with_defaults(PUBLISHED.decoder)
        assert request.prior == speed.prior.for_model(PUBLISHED.prior).with_defaults(PUBLISHED.prior)
        partial = text2img("a ring", speed=name, num_inference_steps=7, guidance_interval=(0, 1), prior="linear")  # type: ignore[arg-type]
        resolved = partial.resolved(PUBLISHED)
        assert resolved.decoder == replace(request.decoder, steps=7, guidance_interval=(0, 1)) and resolved.prior.linear
    assert text2img("a ring", speed="exact") == text2img("a ring") == replace(text2img("a ring"), speed="exact")
    assert parameters(text2img)["speed"].choices == tuple(SPEEDS)
    assert text2img("a ring", speed="exact", seed=1).resolved(PUBLISHED).decoder == PUBLISHED.decoder
    work = {
        name: UNetWork.of(text2img("a ring", speed=name).resolved(PUBLISHED).decoder, DECODER_SCHEDULE)
        for name in SPEEDS
    }  # type: ignore[arg-type]
    assert work["exact"].deep > work["fast"].deep >= work["turbo"].deep


def test_unresolved_request_keeps_its_speed_in_json() -> None:
    request = text2img("a ring", speed="fast")
    assert Request.from_json(request.to_json()) == request and request.to_json() != text2img("a ring").to_json()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"speed": "warp"}, "speed must be one of exact, fast, turbo, got 'warp'"),
        ({"reuse": 0}, r"reuse must be a whole number from 1 \(off\) to 1000, got 0; try 2"),
        ({"reuse": 2.5}, "reuse must be a whole number"),
        ({"reuse": True}, "reuse must be a whole number"),
        *(
            (
                {"guidance_interval": wrong},
                "guidance_interval must be two rising numbers from 0 .* to 1 .*; try 0.2,0.8",
            )
            for wrong in (
                (0.2,),
                (0.8, 0.2),
                (0.5, 0.5),
                (-0.1, 1),
                (0, 1.1),
                (0, 0.5, 1),
                0.5,
                "0.2,0.8",
                ("0", "1"),
                (0, float("nan")),
            )
        ),
    ],
)
def test_invalid_speed_options_are_refused_in_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        text2img("a ring", **options)
    assert "\n" not in str(refused.value)


def test_prior_refuses_decoder_speed_options() -> None:
    for option in ({"guidance_interval": (0.2, 0.8)}, {"reuse": 2}):
        with pytest.raises(ValueError, match="apply to the decoder; leave them out of the prior"):
            replace(text2img("a ring"), prior=Sampling(**option))


def test_guidance_interval_accepts_numpy_numbers() -> None:
    request = text2img("a", guidance_interval=np.array([0.25, 0.5]), reuse=np.int64(2))  # type: ignore[arg-type]
    assert request == text2img("a", guidance_interval=(0.25, 0.5), reuse=2)
    assert Request.from_json(request.to_json()) == request


def test_untested_speed_options_give_a_notice(kandinsky: Kandinsky) -> None:
    def notices(**options: Any) -> list[str]:
        events = kandinsky.stream(text2img("a ring", **FEW | options))
        return [event.text for event in events if isinstance(event, Notice) and "untested" in event.text]

    assert len(notices(reuse=2)) == len(notices(guidance_interval=(0, 0.5))) == len(notices(speed="turbo")) == 1
    assert notices() == notices(speed="exact") == notices(reuse=1, guidance_interval=(0, 1)) == []
