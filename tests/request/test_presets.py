"""What speeds give up, on a small random model: each dial alone, in company, with every task, and by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import Kandinsky, Painting, Request, Sampling, controlnet, img2img, inpaint, text2img
from kandinsky22.checkpoints.catalog import DECODER
from kandinsky22.cli.show import described
from kandinsky22.evaluation.dials import Work
from kandinsky22.imaging.images import read_recipe
from kandinsky22.request import Defaults
from kandinsky22.request.events import Notice, Result
from kandinsky22.request.presets import SPEEDS, Dials
from kandinsky22.request.task_schema import parameters
from kandinsky22.request.tasks import How
from tests.diffusion.toy import DECODER as DECODER_SCHEDULE

FEW: How = {"num_inference_steps": 6, "prior_num_inference_steps": 2, "seed": 3, "guidance_scale": 3.0}
RNG = np.random.default_rng(5)
PHOTO = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
HOLE = np.zeros((64, 64), np.float32)
HOLE[8:40, 16:56] = 1


@pytest.fixture(scope="module")
def kandinsky(tiny_model: Path) -> Kandinsky:
    return Kandinsky.load(tiny_model)


def painted(kandinsky: Kandinsky, request: Request) -> Painting:
    """Its first picture; notices are looked at elsewhere."""
    (result,) = [event for event in kandinsky.stream(request) if isinstance(event, Result)]
    return result.pictures[0]


def apart(a: Painting, b: Painting) -> int:
    return int(np.abs(np.asarray(a.image, int) - np.asarray(b.image, int)).max())


def test_an_interval_of_everything_is_the_exact_picture_and_one_without_a_step_is_no_guidance(
    kandinsky: Kandinsky,
) -> None:
    exact, off = (painted(kandinsky, text2img("a ring", **FEW | {"guidance_scale": s})) for s in (3.0, 1.0))
    whole = painted(kandinsky, text2img("a ring", **FEW, guidance_interval=(0, 1), reuse=1))
    beyond = painted(kandinsky, text2img("a ring", **FEW, guidance_interval=(0.99, 1)))  # six steps begin at 0.83
    half = painted(kandinsky, text2img("a ring", **FEW, guidance_interval=(0, 0.5)))
    assert apart(exact, whole) == 0
    assert apart(off, beyond) <= 1  # to rounding: it was conditioned on both
    assert min(apart(half, exact), apart(half, off), apart(exact, off)) > 5


@pytest.mark.parametrize(("sampler", "calls"), [("ddim", 6), ("heun", 11)])
def test_what_is_computed_of_a_picture(
    kandinsky: Kandinsky, sampler: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = kandinsky.decoder(DECODER).unet
    rows: list[int] = []
    deep: list[int] = []
    forward_cached, below = unet.forward_cached, unet._deeper_levels
    monkeypatch.setattr(unet, "forward_cached", lambda *a, **how: rows.append(len(a[2])) or forward_cached(*a, **how))
    monkeypatch.setattr(unet, "_deeper_levels", lambda *a: deep.append(len(a[0])) or below(*a))
    how = FEW | {"sampler": sampler}
    painted(kandinsky, text2img("a ring", **how))
    assert rows == deep == [2] * calls
    rows.clear()
    deep.clear()
    painted(kandinsky, text2img("a ring", **how, guidance_interval=(0.4, 1), reuse=2))
    assert len(rows) == calls and set(rows) == {1, 2} and rows == sorted(rows, reverse=True)
    assert len(deep) == -(-calls // 2)


def test_one_step_has_nothing_to_use_again_and_more_steps_have(kandinsky: Kandinsky) -> None:
    for steps, same in ((1, True), (6, False)):
        exact, reused = (
            painted(kandinsky, text2img("a ring", **FEW | {"num_inference_steps": steps, "reuse": n})) for n in (1, 3)
        )
        assert (apart(exact, reused) == 0) is same


DIALS: dict[str, How] = {
    "interval": {"guidance_interval": (0.3, 0.7)},
    "reuse": {"reuse": 2},
    "both, heun": {"guidance_interval": (0.0, 0.6), "reuse": 3, "sampler": "heun"},
    "turbo": {"speed": "turbo"},
}


@pytest.mark.parametrize("task", ["text2img", "img2img", "inpaint", "controlnet"])
def test_company_changes_nothing(kandinsky: Kandinsky, task: str) -> None:
    """The others have other dials, steps, sizes and numbers of pictures."""
    made = {
        "text2img": lambda how: text2img("a ring", **how),
        "img2img": lambda how: img2img("a ring", image=PHOTO, strength=0.7, **how),
        "inpaint": lambda how: inpaint("a ring", image=PHOTO, mask_image=HOLE, **how),
        "controlnet": lambda how: controlnet("a ring", hint=PHOTO, **how),
    }[task]
    requests = {name: made(FEW | dials) for name, dials in DIALS.items()}
    requests["exact"] = made(FEW | {"num_inference_steps": 9, "num_images": 2})
    together = {k: e.pictures for k, e in kandinsky.stream_many(requests) if isinstance(e, Result)}
    for name, request in requests.items():
        assert apart(painted(kandinsky, request), together[name][0]) <= 1, name
    assert apart(together["reuse"][0], together["interval"][0]) > 2


def test_a_picture_says_its_dials_and_is_painted_from_what_it_says(kandinsky: Kandinsky, tmp_path: Path) -> None:
    picture = painted(kandinsky, text2img("a ring", **FEW, speed="turbo", guidance_interval=(0.2, 0.8), reuse=4))
    said, sampler = picture.request.decoder, kandinsky.defaults.decoder.sampler
    assert said == Sampling(sampler=sampler, steps=6, guidance_scale=3.0, guidance_interval=(0.2, 0.8), reuse=4)
    recipe = read_recipe(picture.save(tmp_path / "turbo.png"))
    shown = f"{sampler}, 6 steps, guidance 3.0 from 0.2 to 0.8, deeper levels at every 4 calls"
    assert described(recipe)["decoder"] == shown
    assert recipe.request == picture.request and "speed" not in json.loads(recipe.request.to_json())
    assert apart(painted(kandinsky, recipe.request), picture) == 0
    exact = painted(kandinsky, text2img("a ring", **FEW)).request.decoder
    assert (exact.guidance_interval, exact.reuse, exact.exact) == ((0.0, 1.0), 1, True) and not said.exact


def test_a_picture_of_an_earlier_version_which_says_no_dials_is_exact(kandinsky: Kandinsky) -> None:
    request = painted(kandinsky, text2img("a ring", **FEW)).request
    values = json.loads(request.to_json())
    for name in ("guidance_interval", "reuse"):
        del values["decoder"][name]
    assert kandinsky.resolved(Request.from_json(json.dumps(values))) == request


OWN = Sampling(sampler="ddpm", steps=20, guidance_scale=3.0, guidance_interval=(0, 1), reuse=1)
PUBLISHED = Defaults(
    height=512,
    width=512,
    prior=Sampling(sampler="unclip", steps=25, guidance_scale=4.0),
    decoder=replace(OWN, steps=50),
)


def test_a_speeds_steps_are_a_share_of_the_models_own() -> None:
    dials = Dials(steps=0.3, sampling=Sampling(sampler="euler", reuse=2))
    assert [dials.of(replace(OWN, steps=n)).steps for n in (50, 20, 5, 1)] == [15, 6, 2, 1]
    assert dials.of(OWN) == Sampling(sampler="euler", steps=6, reuse=2)
    assert Dials(sampling=Sampling(reuse=2)).of(OWN) == Sampling(reuse=2)


def test_a_speed_is_resolved_into_its_dials_and_fills_only_what_is_not_said() -> None:
    for name, speed in SPEEDS.items():
        request = text2img("a ring", speed=name).resolved(PUBLISHED)  # type: ignore[arg-type]
        assert request.speed is None
        assert request.decoder == speed.decoder.of(PUBLISHED.decoder).filled(PUBLISHED.decoder)
        assert request.prior == speed.prior.of(PUBLISHED.prior).filled(PUBLISHED.prior)
        own = text2img("a ring", speed=name, num_inference_steps=7, guidance_interval=(0, 1), prior="linear")  # type: ignore[arg-type]
        done = own.resolved(PUBLISHED)
        assert done.decoder == replace(request.decoder, steps=7, guidance_interval=(0, 1)) and done.prior.linear
    assert text2img("a ring", speed="exact") == text2img("a ring") == replace(text2img("a ring"), speed="exact")
    assert parameters(text2img)["speed"].choices == tuple(SPEEDS)
    assert text2img("a ring", speed="exact", seed=1).resolved(PUBLISHED).decoder == PUBLISHED.decoder
    work = {
        name: Work.of(text2img("a ring", speed=name).resolved(PUBLISHED).decoder, DECODER_SCHEDULE) for name in SPEEDS
    }  # type: ignore[arg-type]
    assert work["exact"].deep > work["fast"].deep >= work["turbo"].deep


def test_an_open_request_keeps_its_speed_for_another_process() -> None:
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
def test_what_no_dial_can_be_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        text2img("a ring", **options)
    assert "\n" not in str(refused.value)


def test_the_prior_has_no_such_dials() -> None:
    for dial in ({"guidance_interval": (0.2, 0.8)}, {"reuse": 2}):
        with pytest.raises(ValueError, match="are the decoder's; leave them out of the prior"):
            replace(text2img("a ring"), prior=Sampling(**dial))


def test_numbers_of_an_interval_may_be_numpys() -> None:
    request = text2img("a", guidance_interval=np.array([0.25, 0.5]), reuse=np.int64(2))  # type: ignore[arg-type]
    assert request == text2img("a", guidance_interval=(0.25, 0.5), reuse=2)
    assert Request.from_json(request.to_json()) == request


def test_dials_are_remarked_on_where_nobody_has_tried_them(kandinsky: Kandinsky) -> None:
    def notices(**dials: Any) -> list[str]:
        events = kandinsky.stream(text2img("a ring", **FEW | dials))
        return [event.text for event in events if isinstance(event, Notice) and "untested" in event.text]

    assert len(notices(reuse=2)) == len(notices(guidance_interval=(0, 0.5))) == len(notices(speed="turbo")) == 1
    assert notices() == notices(speed="exact") == notices(reuse=1, guidance_interval=(0, 1)) == []
