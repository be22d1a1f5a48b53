"""A batch on a small random model: every picture is the one of its request alone, whoever else comes, goes or fails."""

import gc
import io
import random
import re
import weakref
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kandinsky22 import (
    Kandinsky,
    Painting,
    Request,
    controlnet,
    img2img,
    inpaint,
    interpolate,
    outpaint,
    text2img,
    variations,
)
from kandinsky22.engine import calls as calls_module
from kandinsky22.engine import embedding_cache, memory
from kandinsky22.engine import kandinsky as kandinsky_module
from kandinsky22.engine.batch import Batch
from kandinsky22.engine.runs import InpaintCondition
from kandinsky22.engine.stages import DecoderStage
from kandinsky22.models import movq as movq_module
from kandinsky22.models.clip import CLIPText
from kandinsky22.models.movq import MoVQ
from kandinsky22.models.prior import PriorTransformer
from kandinsky22.models.unet import UNet
from kandinsky22.request.events import (
    Cancelled,
    Event,
    Failed,
    Notice,
    Preview,
    Progress,
    Queued,
    Result,
    Started,
    is_last,
)
from kandinsky22.request.parts import SAMPLERS

FEW_STEPS: dict[str, Any] = {"num_inference_steps": 3, "prior_num_inference_steps": 2}
PHOTO = Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 96, 3), dtype=np.uint8))
HOLE = np.zeros((64, 96), np.float32)
HOLE[8:40, 24:60] = 1
SIZES = ((64, 64), (64, 128), (128, 64), (70, 100))


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANDINSKY22_CACHE", str(cache_folder))


@pytest.fixture(scope="module")
def kandinsky(tiny_model: Path) -> Kandinsky:
    return Kandinsky.load(tiny_model)


def finish(batch: Batch[Any], most: int = 2000) -> list[tuple[Any, Event]]:
    """All events until the batch is empty."""
    events = []
    for _ in range(most):
        if not len(batch):
            return events
        events += batch.step()
    raise AssertionError(f"requests are left after {most} steps")


def lasts(events: list[tuple[Any, Event]]) -> dict[Any, Event]:
    """The last event of each request; it has exactly one."""
    found = [(key, event) for key, event in events if is_last(event)]
    assert Counter(key for key, _ in found) == Counter({key for key, _ in events})
    return dict(found)


def pictures(event: Event) -> list[Painting]:
    assert isinstance(event, Result), event
    return event.pictures


def max_difference(some: list[Painting], others: list[Painting]) -> int:
    """The largest difference in levels of 255."""
    pairs = [[np.asarray(p.image).astype(int) for p in pair] for pair in zip(some, others, strict=True)]
    return max(int(np.abs(a - b).max()) for a, b in pairs)


def assert_as_alone(event: Event, kandinsky: Kandinsky) -> None:
    """A result's pictures are those of its request by itself, to one level of 255."""
    assert isinstance(event, Result), event
    *_, (_, alone) = kandinsky.stream_many({0: event.request})
    assert max_difference(event.pictures, pictures(alone)) <= 1, event.request


class CountedCalls:
    """Counts the calls of every network of a model; MoVQ's are tiles, or pictures that have none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts = Counter[str]()
        for name, network, method in (
            ("text", CLIPText, "forward"),
            ("prior", PriorTransformer, "forward"),
            ("unet", UNet, "forward"),
            ("unet", UNet, "forward_cached"),
        ):
            monkeypatch.setattr(network, method, self._counted(name, getattr(network, method)))
        decode = MoVQ.decode_in_tiles

        def counted_tiles(*arguments: Any, **options: Any) -> Iterator[None]:
            tiles = decode(*arguments, **options)
            while True:
                self.counts["movq"] += 1
                try:
                    next(tiles)
                except StopIteration as stop:
                    return stop.value
                yield

        monkeypatch.setattr(MoVQ, "decode_in_tiles", counted_tiles)

    def _counted(self, name: str, function: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.counts[name] += 1
            return function(*arguments, **options)

        return counted

    @property
    def total(self) -> int:
        return self.counts.total()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> CountedCalls:
    return CountedCalls(monkeypatch)


def random_request(rng: random.Random) -> Request:
    """A request of any task, with any sampling."""
    height, width = rng.choice(SIZES)
    options: dict[str, Any] = {
        "seed": rng.randrange(1000),
        "num_images": rng.choice([1, 1, 2]),
        "num_inference_steps": rng.randint(2, 6),
        "prior_num_inference_steps": rng.randint(2, 3),
        "guidance_scale": rng.choice([0.5, 1.0, 2.0, 4.0]),
        "prior_guidance_scale": rng.choice([1.0, 2.0]),
        "sampler": rng.choice(SAMPLERS),
        "prior_sampler": rng.choice(SAMPLERS),
        "guidance_interval": rng.choice([None, (0.2, 0.8), (0.0, 0.5)]),
        "reuse": rng.choice([1, 1, 2, 3]),
        "negative_prompt": rng.choice([None, "a star"]),
        "prior_seed": rng.choice([None, 5]),
    }
    prompt, sized = rng.choice(["a ring", "two stars", "a red circle"]), {"height": height, "width": width}
    strength = rng.choice([0.5, 0.7, 1.0])
    task = rng.choice(["text", "text", "image", "mix", "variation", "hole", "wider", "depth", "both"])
    match task:
        case "text":
            return text2img(prompt, **sized, **options)
        case "image":
            return img2img(prompt, image=PHOTO, strength=strength, **sized, **options)
        case "mix":
            return interpolate([prompt, PHOTO], weights=[0.3, 0.7], **sized, **options)
        case "variation":
            return variations(image=PHOTO, **sized, **options)
        case "hole":
            return inpaint(prompt, image=PHOTO, mask_image=HOLE, paste_back=rng.random() < 0.5, **options)
        case "wider":
            return outpaint(prompt, image=PHOTO, left=20, **options)
        case "depth":
            return controlnet(prompt, hint=PHOTO, **sized, **options)
    return controlnet(prompt, hint=PHOTO, image=PHOTO, strength=strength, prior_strength=0.6, **sized, **options)


@pytest.mark.parametrize("seed", range(2))
def test_requests_that_join_and_leave_at_random_get_the_pictures_they_get_alone(
    kandinsky: Kandinsky, seed: int
) -> None:
    rng, events = random.Random(seed), []
    batch = kandinsky.batch(max_rows=rng.choice([3, 6, 16]))
    requests = {key: random_request(rng) for key in range(15)}
    cancelled, to_come = set(), list(requests)
    while to_come or len(batch):
        if to_come and rng.random() < 0.3:
            key = to_come.pop(0)
            batch.submit(key, requests[key])
        if rng.random() < 0.02:
            seen = {key for key, event in events if is_last(event)}
            if running := set(requests) - set(to_come) - seen - cancelled:
                cancelled.add(key := rng.choice(sorted(running)))
                batch.cancel(key)
        events += batch.step()
    ends = lasts(events)
    assert set(ends) == set(requests)
    assert {key for key, event in ends.items() if isinstance(event, Cancelled)} == cancelled
    for key in sorted(set(requests) - cancelled):
        assert_as_alone(ends[key], kandinsky)


def test_a_request_is_delivered_when_it_is_ready(kandinsky: Kandinsky, calls: CountedCalls) -> None:
    batch = kandinsky.batch()
    batch.submit("long", text2img("a ring", seed=1, num_inference_steps=40, prior_num_inference_steps=2))
    batch.submit("short", text2img("a star", seed=2, num_inference_steps=2, prior_num_inference_steps=2))
    events = []
    while not any(isinstance(event, Result) for _, event in events):
        events += batch.step()
    assert (events[-1][0], len(batch)) == ("short", 1)
    assert calls.counts["unet"] < 8
    assert_as_alone(finish(batch)[-1][1], kandinsky)


def test_requests_of_a_batch_share_their_calls_also_where_one_joins_late(
    kandinsky: Kandinsky, calls: CountedCalls
) -> None:
    batch = kandinsky.batch()
    batch.submit("a", text2img("two black rings", seed=1, num_inference_steps=8, prior_num_inference_steps=2))
    for _ in range(6):
        batch.step()
    batch.submit("b", text2img("two black rings", seed=1, num_inference_steps=3, prior_num_inference_steps=2))
    finish(batch)
    assert calls.counts["unet"] == 8 and calls.counts["prior"] == 2  # the text's embedding was known


def test_the_length_of_a_batch_is_the_number_of_its_requests(kandinsky: Kandinsky) -> None:
    batch = kandinsky.batch()
    assert len(batch) == 0
    for key in "ab":
        batch.submit(key, text2img("a ring", seed=1, **FEW_STEPS))
    assert len(batch) == 2
    batch.cancel("a")
    assert len(batch) == 2  # its last event has not been returned
    batch.step()
    assert len(batch) == 1
    finish(batch)
    assert (len(batch), batch.step()) == (0, [])


def test_a_key_in_use_and_a_request_that_cannot_be_painted_are_refused(
    kandinsky: Kandinsky, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = kandinsky.batch()
    batch.submit("a", text2img("a ring", seed=1, **FEW_STEPS))
    with pytest.raises(ValueError, match="'a' is already in this batch"):
        batch.submit("a", text2img("a star"))
    monkeypatch.setattr(memory, "free", lambda _: 10**9)
    with pytest.raises(ValueError, match="GB of memory"):
        batch.submit("b", text2img("a star", height=8192, width=8192))
    with pytest.raises(ValueError, match="max_rows must be"):
        kandinsky.batch(max_rows=0)
    assert [key for key, event in finish(batch) if isinstance(event, Result)] == ["a"]


def test_cancelling_an_unknown_key_does_nothing(kandinsky: Kandinsky) -> None:
    batch = kandinsky.batch()
    batch.cancel("never there")
    assert (batch.step(), len(batch)) == ([], 0)


def is_at(stage: str) -> Any:
    return lambda event: isinstance(event, Progress) and event.stage == stage


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_a_request_cancelled_in_a_stage_is_gone_before_the_next_call(
    tiny_model: Path, calls: CountedCalls, stage: str
) -> None:
    kandinsky = Kandinsky.load(tiny_model)
    batch = kandinsky.batch()
    batch.submit("a", text2img("a ring", seed=1, num_inference_steps=9, prior_num_inference_steps=9))
    while not any(is_at(stage)(event) for _, event in batch.step()):
        pass
    before = calls.total
    batch.cancel("a")
    assert batch.step() == [("a", Cancelled())]
    assert (len(batch), calls.total) == (0, before)


def test_a_request_cancelled_beside_another_takes_part_in_no_further_call(
    kandinsky: Kandinsky, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, forward = [], UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda *a: rows.append(len(a[1])) or forward(*a))
    batch = kandinsky.batch()
    for key, seed in (("a", 1), ("b", 2)):
        batch.submit(key, text2img("a ring", seed=seed, prior_seed=1, num_inference_steps=9))
    while len(rows) < 3:
        batch.step()
    batch.cancel("a")
    assert_as_alone(lasts(finish(batch))["b"], kandinsky)
    assert rows[:9] == [2, 2, 2, *[1] * 6]


def test_a_queued_request_is_cancelled_without_having_started(kandinsky: Kandinsky) -> None:
    batch = kandinsky.batch(max_rows=1)
    for key in "abc":
        batch.submit(key, text2img("a ring", seed=1, **FEW_STEPS))
    assert batch.step()[:3] == [("a", Queued(0)), ("b", Queued(1)), ("c", Queued(2))]
    batch.cancel("b")
    assert batch.step()[-1] == ("b", Cancelled()) or True
    events = finish(batch)
    assert not any(key == "b" for key, _ in events)
    assert [key for key, event in events if isinstance(event, Result)] == ["a", "c"]


def test_a_request_cancelled_between_the_tiles_of_its_decoding_is_gone(
    kandinsky: Kandinsky, calls: CountedCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movq_module, "MAX_UNTILED_PIXELS", 64 * 64 - 1)
    monkeypatch.setattr(movq_module, "TILE_PIXELS", 64 * 16)
    batch = kandinsky.batch()
    batch.submit("a", text2img("a ring", seed=1, **FEW_STEPS))
    while calls.counts["movq"] < 4:
        assert not any(is_last(event) for _, event in batch.step())
    before = calls.total
    batch.cancel("a")
    assert (batch.step(), calls.total) == ([("a", Cancelled())], before)


def test_closing_a_batch_frees_everything(kandinsky: Kandinsky, calls: CountedCalls) -> None:
    batch = kandinsky.batch()
    for key in range(3):
        batch.submit(key, text2img("a ring", seed=key, **FEW_STEPS))
    for _ in range(4):
        batch.step()
    before = calls.total
    batch.close()
    assert (len(batch), batch.step(), calls.total) == (0, [], before)


def break_runs(kandinsky: Kandinsky, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Make a model's latents infinite at the end of runs of so many steps."""
    prepare = DecoderStage.prepare_run

    def prepare_broken(self: DecoderStage, *arguments: Any, **options: Any) -> Any:
        if self.networks is kandinsky.networks and len(arguments[3].timesteps) == steps:
            options["constrain"] = lambda x, t: x * (torch.inf if t < 0 else 1)
        return prepare(self, *arguments, **options)

    monkeypatch.setattr(DecoderStage, "prepare_run", prepare_broken)


def three(kandinsky: Kandinsky) -> list[tuple[Any, Event]]:
    """The events of three requests in a batch, of seeds 1, 2 and 3, with 3, 4 and 3 steps."""
    batch = kandinsky.batch()
    for seed, steps in ((1, 3), (2, 4), (3, 3)):
        batch.submit(seed, text2img("a ring", seed=seed, prior_seed=1, num_inference_steps=steps))
    return finish(batch)


def test_a_request_that_is_not_finite_fails_alone(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kandinsky = Kandinsky.load(tiny_model)
    with monkeypatch.context() as patch:
        break_runs(kandinsky, patch, 4)
        ends = lasts(three(kandinsky))
    failed = ends.pop(2)
    assert isinstance(failed, Failed) and failed.reason == "not finite" and "decoder's result" in failed.error
    for end in ends.values():
        assert_as_alone(end, kandinsky)


def test_a_network_that_is_not_finite_in_half_precision_is_tried_again_in_float32(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, half = Kandinsky.load(tiny_model), Kandinsky.load(tiny_model, dtype="bfloat16")
    again = []
    in_float32 = Kandinsky.in_float32
    monkeypatch.setattr(Kandinsky, "in_float32", lambda self: again.append(model := in_float32(self)) or model)
    with monkeypatch.context() as patch:
        break_runs(half, patch, 4)
        events = three(half)
    notices = [(key, event.text) for key, event in events if isinstance(event, Notice)]
    assert [key for key, text in notices if text.endswith("it is painted again in float32")] == [2]
    ends = lasts(events)
    assert_as_alone(ends[2], exact)
    assert pictures(ends[2])[0].made_by["dtype"] == "float32"
    for seed in (1, 3):
        assert_as_alone(ends[seed], half)
        assert pictures(ends[seed])[0].made_by["dtype"] == "bfloat16"
    assert len(again) == 1


def test_the_model_in_float32_is_freed_when_no_request_needs_it(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, models = Kandinsky.load(tiny_model, dtype="bfloat16"), []
    in_float32 = Kandinsky.in_float32

    def weakly(self: Kandinsky) -> Kandinsky:
        model = in_float32(self)
        models.append(weakref.ref(model.networks))
        return model

    monkeypatch.setattr(Kandinsky, "in_float32", weakly)
    break_runs(half, monkeypatch, 4)
    batch = half.batch()
    for steps in (3, 4):
        batch.submit(steps, text2img("a ring", seed=1, num_inference_steps=steps))
    finish(batch)
    gc.collect()
    assert len(models) == 1 and models[0]() is None


def test_a_request_that_stays_not_finite_fails_after_the_second_try(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Kandinsky.load(tiny_model, dtype="bfloat16")
    constraint = InpaintCondition.constraint
    monkeypatch.setattr(
        InpaintCondition, "constraint", lambda *a: lambda x, t: constraint(*a)(x, t) * (torch.inf if t < 0 else 1)
    )
    batch = half.batch()
    batch.submit("hole", inpaint("a ring", image=PHOTO, mask_image=HOLE, seed=1, **FEW_STEPS))
    batch.submit("ring", text2img("a ring", seed=1, **FEW_STEPS))
    ends = lasts(events := finish(batch))
    assert isinstance(ends["hole"], Failed) and ends["hole"].reason == "not finite"
    assert len([event for key, event in events if key == "hole" and isinstance(event, Started)]) == 2
    assert_as_alone(ends["ring"], half)


def test_an_exception_in_a_constraint_fails_its_request_alone(
    kandinsky: Kandinsky, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_late(x: torch.Tensor, t: int) -> torch.Tensor:
        raise ZeroDivisionError("in a constraint")

    monkeypatch.setattr(InpaintCondition, "constraint", lambda *_: raise_late)
    batch = kandinsky.batch()
    batch.submit("hole", inpaint("a ring", image=PHOTO, mask_image=HOLE, seed=1, **FEW_STEPS))
    batch.submit("ring", text2img("a ring", seed=1, **FEW_STEPS))
    ends = lasts(finish(batch))
    assert ends["hole"] == Failed("error", "ZeroDivisionError: in a constraint")
    assert_as_alone(ends["ring"], kandinsky)


@pytest.mark.parametrize("broken", ["missing", "truncated"])
def test_a_picture_that_breaks_after_it_was_submitted_fails_its_request_alone(
    kandinsky: Kandinsky, broken: str
) -> None:
    batch, file = kandinsky.batch(), io.BytesIO()
    PHOTO.save(file, "PNG")
    truncated = Image.open(io.BytesIO(file.getvalue()[:-2000]))
    requests = {
        "start": img2img("a ring", image=PHOTO, strength=0.9, seed=1, **FEW_STEPS),
        "hole": inpaint("a ring", image=PHOTO, mask_image=HOLE, seed=1, **FEW_STEPS),
        "variation": variations(image=PHOTO, seed=1, **FEW_STEPS),
    }
    batch.submit("ring", text2img("a ring", seed=1, **FEW_STEPS))
    for key, request in requests.items():
        batch.submit(key, request)
        for picture in request.pictures.values():
            object.__setattr__(picture, "pixels", truncated if broken == "truncated" else None)
    ends = lasts(finish(batch))
    reason = "error" if broken == "truncated" else "refused"
    assert [getattr(ends[key], "reason", None) for key in requests] == [reason] * 3
    assert_as_alone(ends["ring"], kandinsky)


def test_a_call_that_does_not_fit_into_memory_is_split(kandinsky: Kandinsky, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, forward = [], UNet.forward

    def small(self: UNet, x: torch.Tensor, *others: Any) -> torch.Tensor:
        rows.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x, *others)

    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", small)
        events = three(kandinsky)
        batch = kandinsky.batch()
        batch.submit("many", text2img("a ring", seed=1, num_images=5, **FEW_STEPS))
        many = finish(batch)
    ends = lasts(events)
    notices = {event.text for _, event in events if isinstance(event, Notice)}
    assert notices >= {"memory ran out, so at most 2 pictures are computed at once"}
    assert rows[:3] == [3, 2, 1] and rows.count(3) <= 2
    for end in (*ends.values(), lasts(many)["many"]):
        assert_as_alone(end, kandinsky)


def test_only_a_request_that_does_not_fit_into_memory_alone_fails(
    kandinsky: Kandinsky, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = UNet.forward

    def small(self: UNet, x: torch.Tensor, *others: Any) -> torch.Tensor:
        if x.shape[-1] > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x, *others)

    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", small)
        batch = kandinsky.batch()
        batch.submit("large", text2img("a ring", seed=1, width=128, **FEW_STEPS))
        batch.submit("small", text2img("a ring", seed=1, **FEW_STEPS))
        ends = lasts(finish(batch))
    assert isinstance(ends["large"], Failed) and ends["large"].reason == "out of memory"
    assert "ask for smaller pictures" in ends["large"].error
    assert_as_alone(ends["small"], kandinsky)


def tensors() -> int:
    """How many tensors there are."""
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def resident_memory() -> int:
    """Megabytes of this process in memory."""
    gc.collect()
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) >> 10  # type: ignore[index]


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_many_requests_through_one_batch_leave_memory_flat(
    tiny_model: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every task, with cached features; some are cancelled."""
    monkeypatch.setattr(embedding_cache, "IN_MEMORY", 8)
    rng, batch, found = random.Random(0), Kandinsky.load(tiny_model).batch(), []
    for key in range(count):
        batch.submit(key, random_request(rng))
        while len(batch) > 8:
            batch.step()
        if key % 20 == 0:
            batch.cancel(key)
        if key + 1 in (count // 4, count // 2, count):
            finish(batch)
            found.append((tensors(), resident_memory()))
    assert found[2][0] <= max(found[0][0], found[1][0])
    assert found[2][1] <= found[1][1] + 16, found


def test_a_finished_request_is_not_referenced_any_more(kandinsky: Kandinsky) -> None:
    batch = kandinsky.batch()
    batch.submit("a", text2img("a ring", seed=1, reuse=2, **FEW_STEPS))
    batch.submit("b", text2img("a ring", seed=2, num_inference_steps=30))
    events = []
    while not any(isinstance(event, Result) for _, event in events):
        events += batch.step()
    image = weakref.ref(pictures(events[-1][1])[0].image)
    events.clear()
    gc.collect()
    assert image() is None
    batch.close()


def test_max_rows_limits_the_pictures_of_a_call_and_others_wait(
    kandinsky: Kandinsky, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, forward = [], UNet.forward
    batch = kandinsky.batch(max_rows=2)
    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", lambda *a: rows.append(len(a[1])) or forward(*a))
        batch.submit("many", text2img("a ring", seed=1, num_images=5, **FEW_STEPS))
        for key in range(3):
            batch.submit(key, text2img("a ring", seed=key, **FEW_STEPS))
        events = finish(batch)
    assert rows[:3] == [2, 2, 1] and max(rows) == 2
    assert [key for key, event in events if isinstance(event, Started)] == ["many", 0, 1, 2]
    for end in lasts(events).values():
        assert_as_alone(end, kandinsky)


def test_requests_start_only_as_far_as_memory_is_free(kandinsky: Kandinsky, monkeypatch: pytest.MonkeyPatch) -> None:
    request = text2img("a ring", seed=1, height=128, width=128, **FEW_STEPS)
    config = kandinsky.stored.first.unet.config, kandinsky.stored.first.movq.config
    two = memory.needed(*config, [(1, 128, 128)] * 2, 0, 4)
    list(kandinsky.stream_many({"loads everything": request}))
    monkeypatch.setattr(memory, "free", lambda _: two)
    batch, active, most = kandinsky.batch(), set(), 0
    for key in range(5):
        batch.submit(key, request)
    while len(batch):
        for key, event in batch.step():
            if isinstance(event, Started):
                active.add(key)
            most = max(most, len(active))
            if isinstance(event, Result):
                active.discard(key)
    assert most == 2


def painted_together(kandinsky: Kandinsky) -> dict[int, bytes]:
    requests = {
        k: text2img("a ring", seed=k, num_inference_steps=2 + k % 3, reuse=1 + k % 2, prior_num_inference_steps=2)
        for k in range(5)
    }
    return {
        key: event.pictures[0].to_png()
        for key, event in kandinsky.stream_many(requests, together=True)
        if isinstance(event, Result)
    }


def test_together_gives_the_same_bytes_whatever_was_painted_before(tiny_model: Path, calls: CountedCalls) -> None:
    fresh = painted_together(Kandinsky.load(tiny_model))
    kandinsky = Kandinsky.load(tiny_model)
    for k in range(3):
        kandinsky("a ring", seed=k, num_inference_steps=2, prior_num_inference_steps=2)
    assert painted_together(kandinsky) == fresh
    before = calls.counts["prior"]
    assert painted_together(kandinsky) == fresh
    assert calls.counts["prior"] == before + 2  # nothing was taken from the cache


def test_previews_are_small_png_files_at_the_wanted_steps(kandinsky: Kandinsky) -> None:
    batch = kandinsky.batch()
    options = {"num_inference_steps": 7, "prior_num_inference_steps": 2, "width": 128}
    batch.submit("every third", text2img("a ring", seed=1, **options), Preview(every=3))
    batch.submit("small", text2img("a ring", seed=2, **options), Preview(side=5))
    batch.submit("none", text2img("a ring", seed=3, **options))
    events = finish(batch)

    def previews(key: str) -> dict[int, tuple[int, int]]:
        found = {}
        for other, event in events:
            if other == key and isinstance(event, Progress) and event.preview is not None:
                assert event.stage == "decoder"
                with Image.open(io.BytesIO(event.preview), formats=("PNG",)) as image:
                    found[event.i] = image.size
        return found

    assert previews("every third") == dict.fromkeys((3, 6, 7), (16, 8))
    assert previews("small") == dict.fromkeys(range(1, 8), (5, 3))
    assert previews("none") == {}


def test_a_preview_changes_no_picture(kandinsky: Kandinsky) -> None:
    request = text2img("a ring", seed=1, **FEW_STEPS)
    *_, watched = kandinsky.stream(request, Preview())
    assert max_difference(pictures(watched), kandinsky(request)) == 0


def test_networks_are_loaded_once_for_a_batch_where_they_are_offloaded(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network has its turn until all have gone on."""
    kandinsky, loaded = Kandinsky.load(tiny_model, placement="offload"), []
    read = kandinsky_module.Networks._read
    monkeypatch.setattr(
        kandinsky_module.Networks, "_read", lambda self, stored: loaded.append(stored.folder.name) or read(self, stored)
    )
    batch = kandinsky.batch()
    for key in range(3):
        batch.submit(key, text2img(["a ring", "a star", "a cross"][key], seed=key, **FEW_STEPS))
    ends = lasts(finish(batch))
    counts = Counter(loaded)
    assert counts["unet"] == counts["movq"] == 1 and counts["prior"] <= 2
    for end in ends.values():
        assert_as_alone(end, kandinsky)


def test_tiles_of_one_request_and_steps_of_another_alternate(
    kandinsky: Kandinsky, calls: CountedCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movq_module, "MAX_UNTILED_PIXELS", 64 * 64 - 1)
    monkeypatch.setattr(movq_module, "TILE_PIXELS", 64 * 16)
    monkeypatch.setattr(calls_module, "TILE_PIXELS", 64 * 16)
    batch = kandinsky.batch()
    batch.submit("a", text2img("a ring", seed=1, prior_seed=1, num_inference_steps=2))
    batch.submit("b", text2img("a ring", seed=2, prior_seed=1, num_inference_steps=40))
    order, events = [], []
    while not any(isinstance(event, Result) for _, event in events):
        before = calls.counts["movq"]
        events = batch.step()
        order.append(calls.counts["movq"] > before)
    changes = sum(one != other for one, other in pairwise(order))
    assert changes > 4  # between runs of tiles and of steps
    batch.close()
