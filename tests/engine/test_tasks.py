"""Every task on a small random model: what each column of a request does, and that columns combine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kandinsky22 import (
    Embedding,
    Kandinsky,
    Mask,
    Mix,
    Painting,
    Picture,
    Request,
    Start,
    Text,
    controlnet,
    img2img,
    inpaint,
    interpolate,
    outpaint,
    text2img,
    variations,
)
from kandinsky22.models.prior import PriorTransformer
from kandinsky22.request.tasks import CommonOptions

FEW: CommonOptions = {"num_inference_steps": 6, "prior_num_inference_steps": 4, "seed": 3, "guidance_scale": 2.0}
RNG = np.random.default_rng(2)
PHOTO = Image.fromarray(RNG.integers(0, 256, (64, 96, 3), dtype=np.uint8))
HOLE = np.zeros((64, 96), np.float32)
HOLE[8:40, 24:60] = 1


@pytest.fixture(scope="module")
def kandinsky(tiny_model: Path) -> Kandinsky:
    return Kandinsky.load(tiny_model)


def pixels(picture: Painting | Image.Image) -> np.ndarray:
    return np.asarray(picture if isinstance(picture, Image.Image) else picture.image).astype(int)


def apart(a: Painting, b: Painting) -> int:
    return int(np.abs(pixels(a) - pixels(b)).max())


def painted(kandinsky: Kandinsky, request: Request) -> Painting:
    (picture,) = kandinsky(request)
    return picture


def test_img2img_has_the_pictures_ratio_and_less_strength_stays_nearer(kandinsky: Kandinsky) -> None:
    """A random network's steps are large, so nearness is looked at in what it starts from."""
    photo = Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 50)
    little, much = (
        kandinsky.start_state(kandinsky.resolved(img2img("a ring", image=photo, strength=s, **FEW))) for s in (0.2, 0.9)
    )
    laid = np.pad(pixels(photo.convert("RGB")), ((0, 0), (16, 16), (0, 0)), mode="edge") / 127.5 - 1
    z = kandinsky.decoder("decoder").encode(torch.from_numpy(laid).float()[None].movedim(-1, 1))
    assert painted(kandinsky, img2img("a ring", image=PHOTO, **FEW, strength=0.5)).image.size == (96, 64)
    assert len(little.timesteps) == 1 and len(much.timesteps) == 5
    assert little.x.shape == much.x.shape == z.shape
    near, far = (float(torch.corrcoef(torch.stack([b.x.flatten(), z.flatten()]))[0, 1]) for b in (little, much))
    assert near > far + 0.1


def test_a_picture_asked_for_in_another_shape_comes_out_in_it(kandinsky: Kandinsky) -> None:
    for height, width in ((64, 128), (128, 64), (70, 100)):
        request = img2img("a ring", image=PHOTO, strength=0.5, height=height, width=width, **FEW)
        assert painted(kandinsky, request).image.size == (width, height)


def test_the_ends_of_a_mix_are_its_ends(kandinsky: Kandinsky) -> None:
    """All weight on a text is that text; on a picture, its variation; on a saved embedding, that."""
    parts = ["a ring", Picture.of(PHOTO), kandinsky.embedding(text2img("a star", **FEW))]
    alone = [
        text2img("a ring", **FEW),
        variations(image=PHOTO, **FEW),
        Request(**{**vars_of(text2img("", **FEW)), "condition": parts[2]}),
    ]
    for k, request in enumerate(alone):
        weights = [float(k == j) for j in range(3)]
        mixed = interpolate(parts, weights=weights, **FEW)  # type: ignore[arg-type]
        ours, expected = kandinsky.embed(kandinsky.resolved(mixed)), kandinsky.embed(kandinsky.resolved(request))
        assert torch.allclose(ours.image, expected.image, atol=1e-5)


def vars_of(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in ("seed", "prior", "decoder", "model", "num_images")}


def test_a_mix_is_the_weighted_sum_of_its_parts(kandinsky: Kandinsky) -> None:
    texts = [kandinsky.embed(kandinsky.resolved(text2img(text, **FEW))).image for text in ("a ring", "two stars")]
    mixed = kandinsky.embed(kandinsky.resolved(interpolate(["a ring", "two stars"], weights=[0.3, -0.5], **FEW)))
    assert torch.allclose(mixed.image, 0.3 * texts[0] - 0.5 * texts[1], atol=1e-4)


def test_an_embedding_of_another_clip_is_refused_before_anything_runs(kandinsky: Kandinsky) -> None:
    stranger = Embedding.of(np.ones(32), "another")
    with pytest.raises(ValueError, match="made with another CLIP"):
        kandinsky(interpolate(["a ring", stranger], **FEW))


def test_inpainting_keeps_the_pixels_that_are_not_repainted_to_the_bit(kandinsky: Kandinsky) -> None:
    for feather in (0, 5):
        (first, second) = kandinsky(
            inpaint("a ring", image=PHOTO, mask_image=HOLE, feather=feather, num_images=2, **FEW)
        )
        for picture in (first, second):
            assert (pixels(picture)[HOLE == 0] == pixels(PHOTO)[HOLE == 0]).all()
            assert np.abs(pixels(picture) - pixels(PHOTO))[HOLE == 1].mean() > 5
        assert apart(first, second) > 10


def test_black_can_be_what_is_repainted(kandinsky: Kandinsky) -> None:
    white = painted(kandinsky, inpaint("a ring", image=PHOTO, mask_image=HOLE, **FEW))
    black = painted(kandinsky, inpaint("a ring", image=PHOTO, mask_image=1 - HOLE, mask_mode="black", **FEW))
    assert apart(white, black) == 0


def test_a_mask_that_repaints_nothing_is_refused_and_one_that_repaints_most_is_remarked_on(
    kandinsky: Kandinsky,
) -> None:
    with pytest.raises(ValueError, match="repaints nothing"):
        kandinsky(inpaint("a ring", image=PHOTO, mask_image=HOLE * 0, **FEW))
    with pytest.warns(UserWarning, match="white"):
        kandinsky(inpaint("a ring", image=PHOTO, mask_image=1 - HOLE, **FEW))


def test_a_small_hole_in_a_large_picture_is_painted_in_a_window(kandinsky: Kandinsky) -> None:
    large = PHOTO.resize((480, 320))
    hole = np.zeros((320, 480), np.float32)
    hole[100:130, 200:240] = 1
    request = kandinsky.resolved(inpaint("a ring", image=large, mask_image=hole, **FEW))
    assert (request.height, request.width) == (320, 480)
    canvas = kandinsky.canvas(request)
    assert canvas.height * canvas.width <= 1.2 * 64 * 64
    picture = painted(kandinsky, request)
    assert (pixels(picture)[hole == 0] == pixels(large)[hole == 0]).all()
    assert np.abs(pixels(picture) - pixels(large))[hole == 1].mean() > 5


def test_a_start_lies_where_the_window_is_and_where_room_was_added(kandinsky: Kandinsky) -> None:
    """Starting from the very picture is starting from what is known of it."""
    large, hole = PHOTO.resize((480, 320)), np.zeros((320, 480), np.float32)
    hole[100:130, 200:240] = 1
    for request in (
        inpaint("a ring", image=large, mask_image=hole, **FEW),
        outpaint("a ring", image=PHOTO, left=32, **FEW),
    ):
        assert request.mask is not None
        resolved = kandinsky.resolved(replace(request, start=Start(request.mask.image, 0.7)))
        canvas = kandinsky.canvas(resolved)
        assert canvas.inpaint_input is not None and resolved.start is not None
        assert np.abs(canvas.place_start(resolved.start.image.rgb) - canvas.inpaint_input[0]).max() < 1e-6


def test_one_pixel_is_enough_to_be_repainted(kandinsky: Kandinsky) -> None:
    """Between the pixels that a nearest-neighbour look at the mask would see."""
    dot = np.zeros((64, 96), np.float32)
    dot[29, 43] = 1
    picture = painted(kandinsky, inpaint("a ring", image=PHOTO, mask_image=dot, **FEW))
    changed = (pixels(picture) != pixels(PHOTO)).any(axis=2)
    assert changed.sum() == 1 and changed[29, 43]


def test_outpainting_adds_what_it_says_and_keeps_the_picture(kandinsky: Kandinsky) -> None:
    picture = painted(kandinsky, outpaint("a ring", image=PHOTO, left=30, bottom=10, **FEW))
    assert picture.image.size == (126, 74)
    assert (pixels(picture)[:64, 30:] == pixels(PHOTO)).all()
    everywhere = painted(kandinsky, outpaint("a ring", image=PHOTO, **FEW))
    assert everywhere.image.size == (96 + 48, 64 + 48)


def test_a_hint_is_followed_resized_and_shared(kandinsky: Kandinsky) -> None:
    ramp = np.tile(np.linspace(0, 1, 128, dtype=np.float32), (64, 1))
    with_ramp, again, flipped = (
        kandinsky(controlnet("a ring", hint=hint, height=64, width=128, num_images=2, **FEW))
        for hint in (ramp, Image.fromarray((ramp * 255).round().astype(np.uint8)).resize((256, 128)), ramp[:, ::-1])
    )
    assert apart(with_ramp[0], flipped[0]) > 5
    assert apart(with_ramp[0], again[0]) < apart(with_ramp[0], flipped[0]) / 2
    assert with_ramp[0].image.size == (128, 64)


def test_controlnet_from_a_picture_starts_prior_and_decoder_from_it(kandinsky: Kandinsky) -> None:
    request = kandinsky.resolved(controlnet("a ring", hint=PHOTO, image=PHOTO, strength=0.5, prior_strength=0.5, **FEW))
    assert painted(kandinsky, request).image.size == (96, 64)
    free = replace(request, condition=Text("a ring"), start=None)
    assert float((kandinsky.embed(request).image - kandinsky.embed(free).image).abs().max()) > 1e-3
    assert len(kandinsky.start_state(request).timesteps) == 3


@pytest.mark.parametrize(
    "columns",
    [
        {"start": Start(Picture.of(PHOTO), 0.5)},
        {"mask": Mask(image=Picture.of(PHOTO), area=Picture.of(HOLE))},
        {"mask": Mask(image=Picture.of(PHOTO), area=Picture.of(HOLE)), "start": Start(Picture.of(PHOTO), 0.7)},
        {"hint": Picture.of(PHOTO)},
        {"hint": Picture.of(PHOTO), "start": Start(Picture.of(PHOTO), 0.5)},
    ],
    ids=["img2img", "inpaint", "inpaint from the picture", "depth", "depth from the picture"],
)
def test_a_mix_goes_with_every_column(kandinsky: Kandinsky, columns: dict[str, Any]) -> None:
    """And each depends on the mix."""
    mixes = [Mix((Text("a ring"), Picture.of(PHOTO)), (w, 1 - w)) for w in (0.2, 0.9)]
    first, second = (
        painted(kandinsky, replace(interpolate(["a ring"], **FEW), condition=mixed, **columns)) for mixed in mixes
    )
    assert apart(first, second) > 3


def test_a_hint_with_a_mask_is_refused_in_one_sentence() -> None:
    mask = Mask(image=Picture.of(PHOTO), area=Picture.of(HOLE))
    with pytest.raises(ValueError, match="no weights take both"):
        replace(text2img("a ring"), hint=Picture.of(PHOTO), mask=mask)


def test_different_tasks_in_company_are_as_alone(kandinsky: Kandinsky) -> None:
    requests = {
        "text": text2img("a ring", **FEW),
        "hole": inpaint("a ring", image=PHOTO, mask_image=HOLE, **FEW),
        "depth": controlnet("a ring", hint=PHOTO, **FEW),
        "mix": interpolate(["a ring", PHOTO], **FEW),
    }
    together = {key: event.pictures[0] for key, event in kandinsky.stream_many(requests) if hasattr(event, "pictures")}
    for key, request in requests.items():
        assert apart(together[key], painted(kandinsky, request)) <= 1


def test_a_known_text_does_not_run_the_prior_again(kandinsky: Kandinsky, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another seed of the decoder, size or hint: the same embedding. Another text, seed or guidance: the prior."""
    request = text2img("two green squares", prior_seed=5, **FEW)
    painted(kandinsky, request)
    calls: list[int] = []
    forward = PriorTransformer.forward
    monkeypatch.setattr(PriorTransformer, "forward", lambda *a: calls.append(1) or forward(*a))
    for change in ({"seed": 9}, {"width": 128}, {"hint": Picture.of(PHOTO)}, {"num_images": 3, "seed": 1}):
        kandinsky(replace(request, **change))  # type: ignore[arg-type]
    assert calls == []
    for change in (
        {"prior_seed": 6},
        {"condition": Text("a star")},
        {"prior": replace(request.prior, guidance_scale=3.0)},
    ):
        kandinsky(replace(request, **change))  # type: ignore[arg-type]
    assert len(calls) == 3 * 4


def test_variation_turns_one_seeds_noise_to_anothers(kandinsky: Kandinsky) -> None:
    def start(**how: Any) -> torch.Tensor:
        return kandinsky.start_state(kandinsky.resolved(text2img("a ring", **{**FEW, **how}))).x

    first, second = start(seed=3), start(seed=4)
    assert torch.allclose(start(seed=3, variation_seed=4, variation_strength=1.0), second, atol=1e-6)
    assert torch.allclose(start(seed=3, variation_seed=4, variation_strength=0.0), first)
    assert torch.allclose(start(seed=3, variation_seed=4, variation_strength=4.0), first, atol=1e-5)
    half = start(seed=3, variation_seed=4, variation_strength=0.5)
    assert torch.allclose(half, (first + second) / 2**0.5, atol=1e-5)


def test_guidance_of_one_or_less_is_none_and_a_negative_prompt_still_has_its_embedding(kandinsky: Kandinsky) -> None:
    off = [painted(kandinsky, text2img("a ring", **{**FEW, "guidance_scale": g})) for g in (1.0, 0.5, 0.0)]
    assert apart(off[0], off[1]) == apart(off[0], off[2]) == 0
    request = kandinsky.resolved(text2img("a ring", negative_prompt="a star", prior_guidance_scale=1.0, **FEW))
    embeds = kandinsky.embed(request)
    assert embeds.negative is not None
    plain = kandinsky.embed(replace(request, negative=None))
    assert plain.negative is not None and not torch.allclose(embeds.negative, plain.negative)
    literal = kandinsky.embed(replace(request, negative=Text("")))
    assert literal.negative is not None and not torch.allclose(literal.negative, plain.negative)


def test_a_missing_picture_is_told_of_before_anything_runs(kandinsky: Kandinsky) -> None:
    request = Request.from_json(img2img("a ring", image=PHOTO, **FEW).to_json())
    with pytest.raises(ValueError, match="a request holds no pixels"):
        kandinsky(request)
    again = request.with_pictures({"start": Picture.of(PHOTO)})
    assert painted(kandinsky, again).request.start == request.start


def test_a_painting_is_a_picture_for_the_next(kandinsky: Kandinsky) -> None:
    first = painted(kandinsky, text2img("a ring", **FEW))
    assert painted(kandinsky, variations(image=first, **FEW)).image.size == (64, 64)  # type: ignore[arg-type]


def test_a_model_without_the_weights_says_which_folder_it_lacks(tiny_model: Path, tmp_path: Path) -> None:
    for part in ("prior", "decoder"):
        (tmp_path / part).symlink_to(tiny_model / part)
    with pytest.raises(ValueError, match="no weights for inpainting: it lacks the folder decoder-inpaint/"):
        Kandinsky.load(tmp_path)(inpaint("a ring", image=PHOTO, mask_image=HOLE, **FEW))
