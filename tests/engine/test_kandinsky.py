"""The engine on a small random model: seeds, sizes, batches, stages, events. tests/oracle checks what it computes."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kandinsky22 import Kandinsky, Painting, Request, text2img
from kandinsky22.checkpoints import zero_image
from kandinsky22.checkpoints.catalog import DECODER
from kandinsky22.checkpoints.json_files import read_json, write_json
from kandinsky22.checkpoints.network import save
from kandinsky22.engine import memory
from kandinsky22.models.clip import CLIPVision
from kandinsky22.models.unet import UNet, UNetConfig
from kandinsky22.request.events import Failed, Notice, Progress, Queued, Result, Started
from kandinsky22.request.parts import SAMPLERS

FEW_STEPS = {"num_inference_steps": 4, "prior_num_inference_steps": 3}


@pytest.fixture(scope="module")
def kandinsky(tiny_model: Path) -> Kandinsky:
    return Kandinsky.load(tiny_model)


def pixels(picture: Painting) -> np.ndarray:
    return np.asarray(picture.image).astype(int)


def max_difference(a: Painting, b: Painting) -> int:
    """The largest difference in levels of 255."""
    return int(np.abs(pixels(a) - pixels(b)).max())


def test_a_seed_gives_the_same_picture_and_another_seed_another(kandinsky: Kandinsky) -> None:
    (first,), (repeated,), (other,) = (kandinsky("a red circle", seed=s, **FEW_STEPS) for s in (3, 3, 4))
    assert max_difference(first, repeated) == 0
    assert max_difference(first, other) > 20


def test_picture_k_of_a_batch_is_the_picture_of_seed_plus_k(kandinsky: Kandinsky) -> None:
    batch = kandinsky("a red circle", negative_prompt="a star", seed=7, num_images=3, **FEW_STEPS)
    for k, picture in enumerate(batch):
        (alone,) = kandinsky(picture.request)
        assert picture.request.seed == 7 + k
        assert max_difference(picture, alone) <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_gives_the_same_picture_alone_and_in_a_batch(kandinsky: Kandinsky, sampler: str) -> None:
    """The other requests of the batch differ in prompt, guidance, steps, sampler, size and number of pictures."""
    request = text2img("two blue stars", seed=1, sampler=sampler, guidance_scale=3.0, **FEW_STEPS)
    others = {
        "unguided": text2img("a ring", seed=2, guidance_scale=1.0, prior_guidance_scale=1.0, num_inference_steps=7),
        "negative": text2img("a cross", negative_prompt="black", seed=3, num_images=2, sampler="heun"),
        "wide": text2img("three squares", seed=4, width=128, sampler="dpmpp_2m", guidance_scale=6.0),
    }
    (alone,) = kandinsky(request)
    finished = {
        key: event.pictures
        for key, event in kandinsky.stream_many({"tested": request, **others})
        if isinstance(event, Result)
    }
    assert max_difference(finished["tested"][0], alone) <= 1
    for key, other in others.items():
        for in_batch, separate in zip(finished[key], kandinsky(other), strict=True):
            assert max_difference(in_batch, separate) <= 1


def test_requests_in_a_batch_share_network_calls(kandinsky: Kandinsky, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = kandinsky.decoder(DECODER).unet.forward
    monkeypatch.setattr(kandinsky.decoder(DECODER).unet, "forward", lambda *a: calls.append(len(a[2])) or forward(*a))
    requests = {s: text2img("a ring", seed=s, guidance_scale=g, **FEW_STEPS) for s, g in ((0, 1.0), (1, 4.0))}
    list(kandinsky.stream_many(requests))
    assert calls == [3] * 4  # one row unguided, two guided, together at each of four steps


@pytest.mark.parametrize(("height", "width"), [(64, 128), (70, 100), (65, 64)])
def test_other_sizes_are_cropped_from_the_middle_of_the_next_multiple_of_64(
    kandinsky: Kandinsky, height: int, width: int
) -> None:
    request = text2img("a red circle", seed=5, height=height, width=width, **FEW_STEPS)
    if (height, width) == (64, 128):
        (picture,) = kandinsky(request)
    else:
        with pytest.warns(UserWarning, match=f"and cropped to {width}x{height}, so the edges may cut things"):
            (picture,) = kandinsky(request)
    assert picture.image.size == (width, height)
    uncropped_request = replace(request, height=-(-height // 64) * 64, width=-(-width // 64) * 64)
    (uncropped,) = kandinsky(uncropped_request)
    top, left = (pixels(uncropped).shape[0] - height) // 2, (pixels(uncropped).shape[1] - width) // 2
    assert (pixels(uncropped)[top : top + height, left : left + width] == pixels(picture)).all()


def test_prompts_are_taken_where_requests_are(kandinsky: Kandinsky) -> None:
    (picture,) = kandinsky("a red circle", seed=3, **FEW_STEPS)
    *_, last = kandinsky.stream("a red circle", seed=3, **FEW_STEPS)
    assert isinstance(last, Result) and max_difference(picture, last.pictures[0]) == 0
    prior_steps = FEW_STEPS["prior_num_inference_steps"]
    one = kandinsky.embedding("a red circle", seed=3, prior_num_inference_steps=prior_steps)
    other = kandinsky.embedding(text2img("a red circle", seed=3, prior_num_inference_steps=prior_steps))
    assert one == other
    with pytest.raises(ValueError, match=r"have keys, by which their events are known: dict\(enumerate\(requests\)\)"):
        kandinsky.stream_many([text2img("a")])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give a prompt or a request, such as text2img"):
        kandinsky(3)  # type: ignore[arg-type]


def test_a_painting_and_an_embedding_are_shown_in_a_line(kandinsky: Kandinsky) -> None:
    (picture,) = kandinsky("a red circle", seed=3, **FEW_STEPS)
    assert repr(picture) == "<Painting of 'a red circle', 64x64, seed 3>"
    assert len(repr(kandinsky.embedding("a red circle", seed=3))) < 100


def test_calling_the_stages_one_by_one_gives_the_same_picture(kandinsky: Kandinsky) -> None:
    request = kandinsky.resolve(text2img("a red circle", seed=9, **FEW_STEPS))
    start = kandinsky.start_state(request)
    finished = kandinsky.sample(request, kandinsky.embed(request), start)
    (image,) = kandinsky.decode(request, finished)
    assert (np.asarray(image) == pixels(kandinsky(request)[0])).all()


def test_stream_yields_its_events_in_order(kandinsky: Kandinsky) -> None:
    events = list(kandinsky.stream(text2img("a red zebra", seed=1, num_images=2, **FEW_STEPS)))
    kinds = [type(event) for event in events]
    assert kinds == [Queued, Started, Notice, *[Progress] * 7, Result]
    queued, started, notice, *steps, result = events
    assert queued == Queued(0)
    assert isinstance(started, Started) and (started.request.width, started.process) == (64, os.getpid())
    assert isinstance(notice, Notice) and "zebra" in notice.text
    assert [(s.stage, s.i, s.n) for s in steps if isinstance(s, Progress)] == [
        *(("prior", i, 3) for i in (1, 2, 3)),
        *(("decoder", i, 4) for i in (1, 2, 3, 4)),
    ]
    assert isinstance(result, Result) and len(result.pictures) == 2


def test_closing_the_stream_stops_the_network_calls(kandinsky: Kandinsky, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = kandinsky.decoder(DECODER).unet.forward
    monkeypatch.setattr(kandinsky.decoder(DECODER).unet, "forward", lambda *a: calls.append(1) or forward(*a))
    stream = kandinsky.stream(text2img("a ring", seed=1, **FEW_STEPS))
    for event in stream:
        if isinstance(event, Progress) and event.stage == "decoder":
            break
    stream.close()
    assert len(calls) == 1


def test_text_to_image_never_loads_the_image_encoder(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CLIPVision, "forward", lambda *_: pytest.fail("the image encoder ran"))
    monkeypatch.setattr(zero_image, "compute", lambda _: pytest.fail("the image encoder was loaded"))
    model = Kandinsky.load(tiny_model)
    assert model("a red circle", seed=1, **FEW_STEPS)
    assert "image_encoder" not in vars(model)


def test_a_folder_without_an_image_encoder_uses_its_stored_zero_image_embedding(
    tiny_model: Path, tmp_path: Path, kandinsky: Kandinsky
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("image_encoder"))
    assert (
        max_difference(
            Kandinsky.load(folder)("a ring", seed=1, **FEW_STEPS)[0], kandinsky("a ring", seed=1, **FEW_STEPS)[0]
        )
        <= 1
    )
    (folder / "prior" / zero_image.SHIPPED).unlink()
    assert Kandinsky.load(folder)("a ring", seed=1, guidance_scale=1, **FEW_STEPS)  # without guidance it is not needed
    with pytest.raises(ValueError, match="image_encoder"):
        Kandinsky.load(folder)("a ring", seed=1, **FEW_STEPS)


def test_painting_works_when_the_cache_cannot_be_written(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns(zero_image.SHIPPED))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KANDINSKY22_CACHE", str(tmp_path / "file" / "cache"))
    assert Kandinsky.load(folder)("a ring", seed=1, **FEW_STEPS)


@pytest.mark.parametrize(
    ("path", "change", "sentence"),
    [
        ("decoder/kandinsky22.json", {"defaults": {"decoder": {"stepz": 3}}}, "kandinsky22.json is invalid"),
        ("decoder/kandinsky22.json", {"words": ["red"]}, "kandinsky22.json is invalid"),
        ("prior/tokenizer/tokenizer_config.json", {"model_max_length": 12}, "are not of one model"),
        ("prior/tokenizer/tokenizer_config.json", {"model_max_length": 10**30}, "model_max_length"),
    ],
)
def test_loading_refuses_a_folder_whose_parts_do_not_fit(
    tiny_model: Path, tmp_path: Path, path: str, change: dict[str, Any], sentence: str
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    write_json(folder / path, {**read_json(folder / path), **change})
    with pytest.raises(ValueError, match=sentence):
        Kandinsky.load(folder)


def test_loading_refuses_the_weights_of_another_task(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = UNetConfig.from_dict(read_json(folder / "decoder" / "unet" / "config.json"))
    save(folder / "decoder" / "unet", UNet(replace(config, in_channels=9)), dtype=torch.float32)
    with pytest.raises(ValueError, match="decoder contains weights for inpainting, not for painting from words"):
        Kandinsky.load(folder)


def test_painting_refuses_a_request_for_another_model(kandinsky: Kandinsky) -> None:
    with pytest.raises(ValueError, match=r"the request is for 'kandinsky-2\.2'"):
        kandinsky("a ring", model="kandinsky-2.2")


def test_start_state_refuses_a_request_without_a_seed(kandinsky: Kandinsky) -> None:
    with pytest.raises(ValueError, match=r"kandinsky\.resolve\(request\)"):
        kandinsky.start_state(text2img("a ring"))


def test_guidance_barely_above_one_is_like_no_guidance(kandinsky: Kandinsky) -> None:
    (unguided,) = kandinsky("a ring", seed=1, guidance_scale=1, prior_guidance_scale=1, **FEW_STEPS)
    (guided_barely,) = kandinsky("a ring", seed=1, guidance_scale=1 + 1e-9, prior_guidance_scale=1 + 1e-9, **FEW_STEPS)
    assert max_difference(unguided, guided_barely) <= 1


def test_networks_loaded_while_painting_can_be_trained(kandinsky: Kandinsky) -> None:
    assert kandinsky("a ring", seed=1, **FEW_STEPS)
    assert not any(parameter.is_inference() for parameter in kandinsky.decoder(DECODER).unet.parameters())


def test_stream_many_refuses_what_exceeds_the_memory_and_paints_the_others_in_turn(
    kandinsky: Kandinsky, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = (text2img("a ring", seed=1, height=side, width=side, **FEW_STEPS) for side in (1024, 128))
    config = kandinsky.stored.first.unet.config, kandinsky.stored.first.movq.config
    kandinsky(small)  # loads everything
    monkeypatch.setattr(memory, "free", lambda _: 2 * memory.needed(*config, [(1, 128, 128)], 0, 4))
    events = list(kandinsky.stream_many({"large": large, **dict.fromkeys(range(5), small)}))
    ends = {key: event for key, event in events if isinstance(event, Result | Failed)}
    failed = ends.pop("large")
    assert isinstance(failed, Failed) and failed.reason == "refused" and "fewer at a time" in failed.error
    assert len(ends) == 5 and all(isinstance(event, Result) for event in ends.values())


def test_the_folders_scheduler_config_decides_the_sampling(
    tiny_model: Path, tmp_path: Path, kandinsky: Kandinsky
) -> None:
    """Prediction type, clipping and betas are read from the folder; a config without its class name is refused."""
    (published,) = kandinsky("a red circle", seed=1, **FEW_STEPS)
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    path = folder / "decoder" / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    for change in ({"prediction_type": "v_prediction"}, {"clip_sample": False}, {"beta_end": 0.02}):
        write_json(path, {**config, **change})
        (picture,) = Kandinsky.load(folder)("a red circle", seed=1, **FEW_STEPS)
        assert max_difference(picture, published) > 3, change
    write_json(path, {key: value for key, value in config.items() if key != "_class_name"})
    with pytest.raises(ValueError, match="_class_name"):
        Kandinsky.load(folder)


def test_a_request_resolves_to_the_folders_defaults(kandinsky: Kandinsky, tiny_model: Path) -> None:
    resolved = kandinsky.resolve(text2img("a red circle"))
    about = json.loads((tiny_model / "decoder" / "kandinsky22.json").read_text())["defaults"]
    assert resolved.decoder.steps == about["decoder"]["steps"]
    assert (resolved.decoder.sampler, resolved.prior.sampler) == ("ddpm", "unclip")
    assert (resolved.height, resolved.width) == (64, 64)
    assert resolved.seed is not None
    assert Request.from_json(resolved.to_json()) == resolved


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"height": 60_000, "width": 60_000}, "make it smaller"),
        ({"num_inference_steps": 1000}, "past the last timestep"),
    ],
)
def test_impossible_requests_are_refused_before_any_network_runs(
    kandinsky: Kandinsky, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], sentence: str
) -> None:
    monkeypatch.setattr(kandinsky.embedder, "embed", lambda *_: pytest.fail("the prior ran"))
    with pytest.raises(ValueError, match=sentence):
        kandinsky("a red circle", **options)


def test_non_finite_latents_are_reported(tiny_model: Path) -> None:
    model = Kandinsky.load(tiny_model)
    with torch.no_grad():
        model.decoder(DECODER).unet.conv_out.bias.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="decoder's result is not finite"):
        model("a red circle", seed=1, **FEW_STEPS)


def test_notices_become_warnings_in_python(kandinsky: Kandinsky) -> None:
    with pytest.warns(UserWarning, match="does not see"):
        kandinsky(" ".join(["a red circle over"] * 12), seed=1, **FEW_STEPS)


def test_options_beside_a_request_are_refused(kandinsky: Kandinsky) -> None:
    with pytest.raises(ValueError, match="options belong in the request"):
        kandinsky(text2img("a red circle"), seed=1)


def test_bfloat16_gives_nearly_the_same_picture(kandinsky: Kandinsky, tiny_model: Path) -> None:
    (exact,) = kandinsky("a red circle", seed=1, **FEW_STEPS)
    (rounded,) = Kandinsky.load(tiny_model, dtype="bfloat16")("a red circle", seed=1, **FEW_STEPS)
    assert np.abs(pixels(exact) - pixels(rounded)).mean() < 25
