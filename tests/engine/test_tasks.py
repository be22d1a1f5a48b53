"""Every task on a small random model: the effect of each part of a request, and that the parts combine."""

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

FEW_STEPS: CommonOptions = {"num_inference_steps": 6, "prior_num_inference_steps": 4, "seed": 3, "guidance_scale": 2.0}
RNG = np.random.default_rng(2)
PHOTO = Image.fromarray(RNG.integers(0, 256, (64, 96, 3), dtype=np.uint8))
HOLE = np.zeros((64, 96), np.float32)
HOLE[8:40, 24:60] = 1


@pytest.fixture(scope="module")
def kandinsky(tiny_model: Path) -> Kandinsky:
    return Kandinsky.load(tiny_model)


def pixels(picture: Painting | Image.Image) -> np.ndarray:
    return np.asarray(picture if isinstance(picture, Image.Image) else picture.image).astype(int)


def max_difference(a: Painting, b: Painting) -> int:
    return int(np.abs(pixels(a) - pixels(b)).max())


def paint(kandinsky: Kandinsky, request: Request) -> Painting:
    (picture,) = kandinsky(request)
    return picture


def test_img2img_keeps_the_ratio_and_stays_nearer_at_less_strength(kandinsky: Kandinsky) -> None:
    """A random network's steps are large, so the comparison is made on the start states."""
    photo = Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 50)
    weak, strong = (
        kandinsky.start_state(kandinsky.resolve(img2img("a ring", image=photo, strength=s, **FEW_STEPS)))
        for s in (0.2, 0.9)
    )
    extended = np.pad(pixels(photo.convert("RGB")), ((0, 0), (16, 16), (0, 0)), mode="edge") / 127.5 - 1
    z = kandinsky.decoder("decoder").encode(torch.from_numpy(extended).float()[None].movedim(-1, 1))
    assert paint(kandinsky, img2img("a ring", image=PHOTO, **FEW_STEPS, strength=0.5)).image.size == (96, 64)
    assert len(weak.timesteps) == 1 and len(strong.timesteps) == 5
    assert weak.x.shape == strong.x.shape == z.shape
    near, far = (float(torch.corrcoef(torch.stack([b.x.flatten(), z.flatten()]))[0, 1]) for b in (weak, strong))
    assert near > far + 0.1


def test_img2img_returns_the_requested_size(kandinsky: Kandinsky) -> None:
    for height, width in ((64, 128), (128, 64), (70, 100)):
        request = img2img("a ring", image=PHOTO, strength=0.5, height=height, width=width, **FEW_STEPS)
        assert paint(kandinsky, request).image.size == (width, height)


def test_a_mix_with_all_weight_on_one_part_is_that_part(kandinsky: Kandinsky) -> None:
    """All weight on a text gives its embedding; on a picture, its variation's; on a saved embedding, itself."""
    parts = ["a ring", Picture.of(PHOTO), kandinsky.embedding(text2img("a star", **FEW_STEPS))]
    alone = [
        text2img("a ring", **FEW_STEPS),
        variations(image=PHOTO, **FEW_STEPS),
        Request(**{**shared_fields(text2img("", **FEW_STEPS)), "condition": parts[2]}),
    ]
    for k, request in enumerate(alone):
        weights = [float(k == j) for j in range(3)]
        mixed = interpolate(parts, weights=weights, **FEW_STEPS)  # type: ignore[arg-type]
        ours, expected = kandinsky.embed(kandinsky.resolve(mixed)), kandinsky.embed(kandinsky.resolve(request))
        assert torch.allclose(ours.image, expected.image, atol=1e-5)


def shared_fields(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in ("seed", "prior", "decoder", "model", "num_images")}


def test_a_mix_is_the_weighted_sum_of_its_parts(kandinsky: Kandinsky) -> None:
    texts = [kandinsky.embed(kandinsky.resolve(text2img(text, **FEW_STEPS))).image for text in ("a ring", "two stars")]
    mixed = kandinsky.embed(kandinsky.resolve(interpolate(["a ring", "two stars"], weights=[0.3, -0.5], **FEW_STEPS)))
    assert torch.allclose(mixed.image, 0.3 * texts[0] - 0.5 * texts[1], atol=1e-4)


def test_an_embedding_of_another_clip_is_refused(kandinsky: Kandinsky) -> None:
    foreign = Embedding.of(np.ones(32), "another")
    with pytest.raises(ValueError, match="made with another CLIP"):
        kandinsky(interpolate(["a ring", foreign], **FEW_STEPS))


def test_inpainting_keeps_pixels_outside_the_mask_bit_for_bit(kandinsky: Kandinsky) -> None:
    for feather in (0, 5):
        (first, second) = kandinsky(
            inpaint("a ring", image=PHOTO, mask_image=HOLE, feather=feather, num_images=2, **FEW_STEPS)
        )
        for picture in (first, second):
            assert (pixels(picture)[HOLE == 0] == pixels(PHOTO)[HOLE == 0]).all()
            assert np.abs(pixels(picture) - pixels(PHOTO))[HOLE == 1].mean() > 5
        assert max_difference(first, second) > 10


def test_mask_mode_black_repaints_the_black_pixels(kandinsky: Kandinsky) -> None:
    white = paint(kandinsky, inpaint("a ring", image=PHOTO, mask_image=HOLE, **FEW_STEPS))
    black = paint(kandinsky, inpaint("a ring", image=PHOTO, mask_image=1 - HOLE, mask_mode="black", **FEW_STEPS))
    assert max_difference(white, black) == 0


def test_inpainting_refuses_an_empty_mask_and_warns_of_one_that_covers_most(
    kandinsky: Kandinsky,
) -> None:
    with pytest.raises(ValueError, match="repaints nothing"):
        kandinsky(inpaint("a ring", image=PHOTO, mask_image=HOLE * 0, **FEW_STEPS))
    with pytest.warns(UserWarning, match="white"):
        kandinsky(inpaint("a ring", image=PHOTO, mask_image=1 - HOLE, **FEW_STEPS))


def test_a_small_mask_in_a_large_picture_is_painted_in_a_crop(kandinsky: Kandinsky) -> None:
    large_photo = PHOTO.resize((480, 320))
    hole = np.zeros((320, 480), np.float32)
    hole[100:130, 200:240] = 1
    request = kandinsky.resolve(inpaint("a ring", image=large_photo, mask_image=hole, **FEW_STEPS))
    assert (request.height, request.width) == (320, 480)
    canvas = kandinsky.canvas(request)
    assert canvas.height * canvas.width <= 1.2 * 64 * 64
    picture = paint(kandinsky, request)
    assert (pixels(picture)[hole == 0] == pixels(large_photo)[hole == 0]).all()
    assert np.abs(pixels(picture) - pixels(large_photo))[hole == 1].mean() > 5


def test_a_start_picture_is_placed_like_the_inpainted_one(kandinsky: Kandinsky) -> None:
    """A start from the picture to inpaint is placed exactly where the model input has that picture."""
    large_photo, hole = PHOTO.resize((480, 320)), np.zeros((320, 480), np.float32)
    hole[100:130, 200:240] = 1
    for request in (
        inpaint("a ring", image=large_photo, mask_image=hole, **FEW_STEPS),
        outpaint("a ring", image=PHOTO, left=32, **FEW_STEPS),
    ):
        assert request.mask is not None
        resolved = kandinsky.resolve(replace(request, start=Start(request.mask.image, 0.7)))
        canvas = kandinsky.canvas(resolved)
        assert canvas.inpaint_input is not None and resolved.start is not None
        assert np.abs(canvas.place_start(resolved.start.image.rgb) - canvas.inpaint_input[0]).max() < 1e-6


def test_a_mask_of_one_pixel_repaints_one_pixel(kandinsky: Kandinsky) -> None:
    """The pixel lies between those that nearest-neighbour sampling of the mask would read."""
    dot = np.zeros((64, 96), np.float32)
    dot[29, 43] = 1
    picture = paint(kandinsky, inpaint("a ring", image=PHOTO, mask_image=dot, **FEW_STEPS))
    changed = (pixels(picture) != pixels(PHOTO)).any(axis=2)
    assert changed.sum() == 1 and changed[29, 43]


def test_outpainting_adds_the_requested_margins_and_keeps_the_picture(kandinsky: Kandinsky) -> None:
    picture = paint(kandinsky, outpaint("a ring", image=PHOTO, left=30, bottom=10, **FEW_STEPS))
    assert picture.image.size == (126, 74)
    assert (pixels(picture)[:64, 30:] == pixels(PHOTO)).all()
    all_sides = paint(kandinsky, outpaint("a ring", image=PHOTO, **FEW_STEPS))
    assert all_sides.image.size == (96 + 48, 64 + 48)


def test_controlnet_follows_its_hint_at_any_size_for_every_picture(kandinsky: Kandinsky) -> None:
    ramp = np.tile(np.linspace(0, 1, 128, dtype=np.float32), (64, 1))
    with_ramp, resized, flipped = (
        kandinsky(controlnet("a ring", hint=hint, height=64, width=128, num_images=2, **FEW_STEPS))
        for hint in (ramp, Image.fromarray((ramp * 255).round().astype(np.uint8)).resize((256, 128)), ramp[:, ::-1])
    )
    assert max_difference(with_ramp[0], flipped[0]) > 5
    assert max_difference(with_ramp[0], resized[0]) < max_difference(with_ramp[0], flipped[0]) / 2
    assert with_ramp[0].image.size == (128, 64)


def test_controlnet_with_a_picture_starts_prior_and_decoder_from_it(kandinsky: Kandinsky) -> None:
    request = kandinsky.resolve(
        controlnet("a ring", hint=PHOTO, image=PHOTO, strength=0.5, prior_strength=0.5, **FEW_STEPS)
    )
    assert paint(kandinsky, request).image.size == (96, 64)
    free = replace(request, condition=Text("a ring"), start=None)
    assert float((kandinsky.embed(request).image - kandinsky.embed(free).image).abs().max()) > 1e-3
    assert len(kandinsky.start_state(request).timesteps) == 3


@pytest.mark.parametrize(
    "parts_of_request",
    [
        {"start": Start(Picture.of(PHOTO), 0.5)},
        {"mask": Mask(image=Picture.of(PHOTO), area=Picture.of(HOLE))},
        {"mask": Mask(image=Picture.of(PHOTO), area=Picture.of(HOLE)), "start": Start(Picture.of(PHOTO), 0.7)},
        {"hint": Picture.of(PHOTO)},
        {"hint": Picture.of(PHOTO), "start": Start(Picture.of(PHOTO), 0.5)},
    ],
    ids=["img2img", "inpaint", "inpaint from the picture", "depth", "depth from the picture"],
)
def test_a_mix_combines_with_every_other_part_of_a_request(
    kandinsky: Kandinsky, parts_of_request: dict[str, Any]
) -> None:
    """Each combination runs, and its picture depends on the mix."""
    mixes = [Mix((Text("a ring"), Picture.of(PHOTO)), (w, 1 - w)) for w in (0.2, 0.9)]
    first, second = (
        paint(kandinsky, replace(interpolate(["a ring"], **FEW_STEPS), condition=mixed, **parts_of_request))
        for mixed in mixes
    )
    assert max_difference(first, second) > 3


def test_a_hint_together_with_a_mask_is_refused() -> None:
    mask = Mask(image=Picture.of(PHOTO), area=Picture.of(HOLE))
    with pytest.raises(ValueError, match="no weights take both"):
        replace(text2img("a ring"), hint=Picture.of(PHOTO), mask=mask)


def test_different_tasks_give_the_same_pictures_alone_and_in_a_batch(kandinsky: Kandinsky) -> None:
    requests = {
        "text": text2img("a ring", **FEW_STEPS),
        "hole": inpaint("a ring", image=PHOTO, mask_image=HOLE, **FEW_STEPS),
        "depth": controlnet("a ring", hint=PHOTO, **FEW_STEPS),
        "mix": interpolate(["a ring", PHOTO], **FEW_STEPS),
    }
    together = {key: event.pictures[0] for key, event in kandinsky.stream_many(requests) if hasattr(event, "pictures")}
    for key, request in requests.items():
        assert max_difference(together[key], paint(kandinsky, request)) <= 1


def test_the_embedding_of_a_known_text_is_reused(kandinsky: Kandinsky, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another decoder seed, size or hint does not run the prior; another text, prior seed or guidance does."""
    request = text2img("two green squares", prior_seed=5, **FEW_STEPS)
    paint(kandinsky, request)
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


def test_variation_strength_blends_the_noise_of_two_seeds(kandinsky: Kandinsky) -> None:
    def noise_of(**options: Any) -> torch.Tensor:
        return kandinsky.start_state(kandinsky.resolve(text2img("a ring", **{**FEW_STEPS, **options}))).x

    first, second = noise_of(seed=3), noise_of(seed=4)
    assert torch.allclose(noise_of(seed=3, variation_seed=4, variation_strength=1.0), second, atol=1e-6)
    assert torch.allclose(noise_of(seed=3, variation_seed=4, variation_strength=0.0), first)
    assert torch.allclose(noise_of(seed=3, variation_seed=4, variation_strength=4.0), first, atol=1e-5)
    half = noise_of(seed=3, variation_seed=4, variation_strength=0.5)
    assert torch.allclose(half, (first + second) / 2**0.5, atol=1e-5)


def test_guidance_of_one_or_less_is_off_and_keeps_the_negative_embedding(kandinsky: Kandinsky) -> None:
    off = [paint(kandinsky, text2img("a ring", **{**FEW_STEPS, "guidance_scale": g})) for g in (1.0, 0.5, 0.0)]
    assert max_difference(off[0], off[1]) == max_difference(off[0], off[2]) == 0
    request = kandinsky.resolve(text2img("a ring", negative_prompt="a star", prior_guidance_scale=1.0, **FEW_STEPS))
    embeds = kandinsky.embed(request)
    assert embeds.negative is not None
    plain = kandinsky.embed(replace(request, negative=None))
    assert plain.negative is not None and not torch.allclose(embeds.negative, plain.negative)
    literal = kandinsky.embed(replace(request, negative=Text("")))
    assert literal.negative is not None and not torch.allclose(literal.negative, plain.negative)


def test_a_request_without_its_pixels_is_refused_until_they_are_given(kandinsky: Kandinsky) -> None:
    request = Request.from_json(img2img("a ring", image=PHOTO, **FEW_STEPS).to_json())
    with pytest.raises(ValueError, match="a request holds no pixels"):
        kandinsky(request)
    restored = request.with_pictures({"start": Picture.of(PHOTO)})
    assert paint(kandinsky, restored).request.start == request.start


def test_a_painting_is_accepted_as_an_input_picture(kandinsky: Kandinsky) -> None:
    first = paint(kandinsky, text2img("a ring", **FEW_STEPS))
    assert paint(kandinsky, variations(image=first, **FEW_STEPS)).image.size == (64, 64)  # type: ignore[arg-type]


def test_inpainting_without_its_weights_names_the_missing_folder(tiny_model: Path, tmp_path: Path) -> None:
    for part in ("prior", "decoder"):
        (tmp_path / part).symlink_to(tiny_model / part)
    with pytest.raises(ValueError, match="no weights for inpainting: it lacks the folder decoder-inpaint/"):
        Kandinsky.load(tmp_path)(inpaint("a ring", image=PHOTO, mask_image=HOLE, **FEW_STEPS))
