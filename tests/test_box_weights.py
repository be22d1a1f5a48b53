"""The shipped model: its size, its vocabulary, that it follows captions, and that diffusers paints the same from it."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from kandinsky22 import (
    Kandinsky,
    Request,
    controlnet,
    img2img,
    inpaint,
    interpolate,
    outpaint,
    pipelines,
    text2img,
    variations,
)
from kandinsky22.checkpoints import catalog, locate, zero_image
from kandinsky22.checkpoints.network import Stored
from kandinsky22.compositions import (
    GROUNDS,
    OPPOSITES,
    Group,
    Scene,
    caption,
    foreground,
    judge,
    layers,
    read,
    render,
    sample,
)
from kandinsky22.models.clip import CLIPVision, CLIPVisionConfig
from kandinsky22.request.events import Result
from kandinsky22.training.data import to_bytes

FOLDER = locate.model_folder(catalog.BOX)
FRESH_SEED, PICTURES = 33, 24  # no training and no score draws from this seed


@pytest.fixture(scope="module")
def box() -> Kandinsky:
    return Kandinsky.load(device="cpu", dtype="float32")


def test_the_box_is_smaller_than_sixty_megabytes(box: Kandinsky) -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 60e6


def test_the_shipped_zero_image_embedding_is_the_encoders(box: Kandinsky) -> None:
    encoder = Stored(FOLDER / catalog.PRIOR / "image_encoder", CLIPVision, CLIPVisionConfig)
    assert torch.allclose(zero_image.compute(encoder), box.prior.zero_image_embed, atol=1e-5)


def test_commas_capitals_and_foreign_letters_change_no_other_token(box: Kandinsky) -> None:
    plain = [i for i in box.prior.tokenizer(["two red circles"]).ids[0].tolist() if i != box.prior.tokenizer.end]
    for text in ("Two RED circles", "two red circles, ", "two red circles привет"):
        ids = box.prior.tokenizer([text]).ids[0].tolist()
        assert ids[: len(plain)] == plain
        assert box.prior.tokenizer.end not in ids[: len(plain)]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Scenes that no training and no tuning used."""
    return [sample(np.random.default_rng([FRESH_SEED, i])) for i in range(PICTURES)]


@pytest.fixture(scope="module")
def captioned_images(box: Kandinsky, scenes: list[Scene]) -> list[Image.Image]:
    """Text-to-image pictures of the scenes' captions."""
    return paint(box, [text2img(caption(scene), seed=i) for i, scene in enumerate(scenes)])


def paint(box: Kandinsky, requests: list[Request]) -> list[Image.Image]:
    """The first picture of each request."""
    events = box.stream_many(dict(enumerate(requests)))
    found = {key: event.pictures[0].image for key, event in events if isinstance(event, Result)}
    return [found[key] for key in range(len(requests))]


def rates(images: list[Image.Image], scenes: list[Scene]) -> dict[str, float]:
    """The rate at which the oracle reads each attribute of a scene in its picture."""
    readings = [judge(read(np.asarray(image)), scene) for image, scene in zip(images, scenes, strict=True)]
    names = set().union(*readings)
    matched = {name: [verdict[name] for verdict in readings if name in verdict] for name in names}
    return {name: float(np.mean(values)) for name, values in matched.items() if values}


def shifted(scenes: list[Scene]) -> list[Scene]:
    """The scenes shifted by one, as a control: each picture is compared with another scene."""
    return [*scenes[1:], scenes[0]]


def test_text_to_image_follows_its_captions(captioned_images: list[Image.Image], scenes: list[Scene]) -> None:
    """Attributes read by the oracle, for captions that nothing was tuned on, against the control of shifted scenes."""
    matched, other = rates(captioned_images, scenes), rates(captioned_images, shifted(scenes))
    floors = {"ground": 0.85, "present": 0.8, "colors": 0.75, "shape": 0.4, "count": 0.45, "relation": 0.75}
    for name, floor in floors.items():
        assert matched[name] >= floor, (name, matched)
        assert other[name] < 0.75 * floor, (name, other)


def test_the_linear_prior_follows_its_captions(box: Kandinsky, scenes: list[Scene]) -> None:
    chosen = scenes[:12]
    images = paint(box, [text2img(caption(scene), prior="linear", seed=i) for i, scene in enumerate(chosen)])
    matched, other = rates(images, chosen), rates(images, shifted(chosen))
    for name in ("ground", "present", "relation"):
        assert matched[name] >= 0.75 and other[name] < 0.5, (name, matched, other)


def test_clip_matches_pictures_with_captions_and_distinguishes_left_from_right(box: Kandinsky) -> None:
    fresh = [sample(np.random.default_rng([FRESH_SEED, 1, i])) for i in range(60)]
    flipped = [replace(s, relation=OPPOSITES[s.relation]) if s.relation else None for s in fresh]
    with torch.inference_mode():
        images = F.normalize(box.prior.encode_images([Image.fromarray(render(s)) for s in fresh]), dim=-1)
        texts = F.normalize(box.prior.encode_text([caption(s, whole=True) for s in fresh]).embed, dim=-1)
        wrong = F.normalize(box.prior.encode_text([caption(s, whole=True) for s in flipped if s]).embed, dim=-1)
    similar = images @ texts.T
    assert (similar.argmax(dim=1) == torch.arange(60)).float().mean() > 0.9
    assert (similar.argmax(dim=1) == torch.arange(60).roll(1)).float().mean() < 0.1
    related = [i for i, other in enumerate(flipped) if other]
    assert (similar[related, related] > (images[related] * wrong).sum(dim=-1)).float().mean() > 0.9


def test_variations_keep_the_content_of_the_picture(box: Kandinsky, scenes: list[Scene]) -> None:
    pictures = [render(scene) for scene in scenes[:12]]
    images = paint(box, [variations(image=picture, seed=i) for i, picture in enumerate(pictures)])
    matched, other = rates(images, scenes[:12]), rates(images, shifted(scenes[:12]))
    for name in ("ground", "present"):
        assert matched[name] > 0.75, (name, matched)
        assert other[name] < matched[name] - 0.35, (name, other)


def overlap(image: Image.Image, scene: Scene) -> float:
    """Intersection over union of the foreground of a picture and of a scene."""
    expected, visible = layers(scene).ids > 0, foreground(np.asarray(image))
    return float((visible & expected).sum() / (visible | expected).sum())


def overlaps(images: list[Image.Image], scenes: list[Scene]) -> float:
    """The mean of `overlap`."""
    return float(np.mean([overlap(image, scene) for image, scene in zip(images, scenes, strict=True)]))


def test_image_to_image_keeps_the_layout_at_low_strength_and_follows_the_prompt_at_high(
    box: Kandinsky, scenes: list[Scene]
) -> None:
    """Each picture is changed towards the next scene's caption."""
    pairs = list(pairwise(scenes[:11]))
    slightly_changed, strongly_changed = (
        paint(
            box,
            [
                img2img(caption(wanted), image=render(scene), strength=strength, seed=i)
                for i, (scene, wanted) in enumerate(pairs)
            ],
        )
        for strength in (0.15, 0.95)
    )
    assert overlaps(slightly_changed, scenes[:10]) > 0.6
    assert overlaps(strongly_changed, scenes[:10]) < overlaps(slightly_changed, scenes[:10]) - 0.2
    followed, ignored = rates(strongly_changed, scenes[1:11]), rates(strongly_changed, scenes[:10])
    assert followed["ground"] > 0.7 and followed["present"] > 0.6
    assert ignored["ground"] < 0.6 and ignored["present"] < 0.4


def test_interpolation_blends_the_colours_of_two_prompts(box: Kandinsky) -> None:
    """A red and a blue circle: the ends show one colour each, and some picture between shows both or purple."""
    texts = ["a red circle on a white ground", "a blue circle on a white ground"]
    weights = (0.0, 0.35, 0.5, 0.65, 1.0)
    images = paint(box, [interpolate(texts, weights=[1 - w, w], seed=s) for w in weights for s in range(3)])
    colors_seen = [{piece.color for piece in read(np.asarray(image)).pieces} for image in images]
    assert all("red" in colors and "blue" not in colors for colors in colors_seen[:3])
    assert all("blue" in colors and "red" not in colors for colors in colors_seen[-3:])
    middle = set().union(*colors_seen[3:-3])
    assert middle & {"purple"} or {"red", "blue"} <= middle


HOLE = (slice(8, 120), slice(8, 120))


def test_inpainting_paints_the_prompt_into_the_mask_and_keeps_the_rest(box: Kandinsky) -> None:
    """A scene of one shape, repainted with the caption of the same scene with another shape."""
    rng = np.random.default_rng([FRESH_SEED, 2])
    originals = [Scene.of((Group(1, "red", "circle"),), None, g, "", rng) for g in GROUNDS for _ in range(2)]
    wanted = [replace(s, groups=(Group(1, "blue", "star"),)) for s in originals]
    mask = np.zeros((128, 128), np.uint8)
    mask[HOLE] = 255
    pictures = [render(scene) for scene in originals]
    images = paint(
        box,
        [
            inpaint(caption(scene), image=picture, mask_image=Image.fromarray(mask), seed=i)
            for i, (scene, picture) in enumerate(zip(wanted, pictures, strict=True))
        ],
    )
    for image, picture in zip(images, pictures, strict=True):
        assert np.array_equal(np.asarray(image)[mask == 0], picture[mask == 0])
    matched = rates(images, wanted)
    assert matched["present"] >= 0.8 and matched["shape"] >= 0.5, matched
    assert rates([Image.fromarray(picture) for picture in pictures], wanted)["present"] == 0


def test_outpainting_continues_the_background(box: Kandinsky) -> None:
    """The colour of the new strip is nearest to that of the adjacent strip, among all pictures."""
    rng = np.random.default_rng([FRESH_SEED, 3])
    originals = [Scene.of((Group(2, "red", "circle"),), None, g, "", rng) for g in GROUNDS]
    pictures = [Image.fromarray(render(scene)) for scene in originals]
    requests = [
        outpaint(caption(scene), image=image, right=64, seed=i)
        for i, (scene, image) in enumerate(zip(originals, pictures, strict=True))
    ]
    images = paint(box, requests)
    assert {image.size for image in images} == {(192, 128)}
    for image, picture in zip(images, pictures, strict=True):
        assert np.array_equal(np.asarray(image)[:, :128], np.asarray(picture))
    new_colors = np.array([np.median(np.asarray(image)[:, 136:], axis=(0, 1)) for image in images])
    border_colors = np.array([np.median(np.asarray(image)[:, 100:128], axis=(0, 1)) for image in pictures])
    distance = np.abs(new_colors[:, None] - border_colors[None]).mean(axis=-1)
    assert (distance.argmin(axis=1) == np.arange(len(pictures))).mean() >= 0.8
    assert np.median(distance.diagonal()) < 12


def hint_of(scene: Scene) -> Image.Image:
    """The exact depth of a scene as a hint; near is bright."""
    return Image.fromarray(to_bytes(layers(scene).depth))


def test_controlnet_places_shapes_where_the_depth_hint_has_them(
    box: Kandinsky, scenes: list[Scene], captioned_images: list[Image.Image]
) -> None:
    hinted = paint(box, [controlnet(caption(s), hint=hint_of(s), seed=i) for i, s in enumerate(scenes[:12])])
    assert overlaps(hinted, scenes[:12]) > 0.65
    assert overlaps(hinted, shifted(scenes[:12])) < 0.4
    assert overlaps(captioned_images[:12], scenes[:12]) < 0.4
    assert rates(hinted, scenes[:12])["present"] > 0.7


def test_controlnet_with_the_picture_keeps_more_of_it_than_the_hint_alone(box: Kandinsky, scenes: list[Scene]) -> None:
    """The model card's claim, tested with the caption of another picture."""
    pairs = list(pairwise(scenes[:11]))
    alone = paint(box, [controlnet(caption(o), hint=hint_of(s), seed=i) for i, (s, o) in enumerate(pairs)])
    both = paint(
        box, [controlnet(caption(o), hint=hint_of(s), image=render(s), seed=i) for i, (s, o) in enumerate(pairs)]
    )
    pictures = [render(s).astype(float) for s in scenes[:10]]
    change_with, change_without = (
        np.mean([np.abs(np.asarray(image) - picture).mean() for image, picture in zip(images, pictures, strict=True)])
        for images in (both, alone)
    )
    assert change_with < 0.8 * change_without, (change_with, change_without)


@pytest.mark.parametrize(("height", "width"), [(128, 256), (256, 128), (128, 192)])
def test_other_aspect_ratios_follow_their_captions(
    box: Kandinsky, scenes: list[Scene], height: int, width: int
) -> None:
    """Pictures that are not square, compared like the square ones."""
    images = paint(
        box, [text2img(caption(scene), seed=i, height=height, width=width) for i, scene in enumerate(scenes[:8])]
    )
    assert {image.size for image in images} == {(width, height)}
    matched, other = rates(images, scenes[:8]), rates(images, shifted(scenes[:8]))
    assert matched["ground"] > 0.7 and matched["present"] > 0.7
    assert other["ground"] < 0.7 and other["present"] < 0.4


def test_diffusers_paints_the_same_picture_from_the_same_folder(box: Kandinsky) -> None:
    """With the diffusers-compatible pipelines, which draw their noise in diffusers' order."""

    def run(library: Any) -> np.ndarray:
        prior = library.KandinskyV22PriorPipeline.from_pretrained(FOLDER / "prior", dtype=torch.float32)
        decoder = library.KandinskyV22Pipeline.from_pretrained(FOLDER / "decoder", dtype=torch.float32)
        for pipeline in (prior, decoder):
            pipeline.set_progress_bar_config(disable=True)
        generator, side = torch.Generator().manual_seed(1), box.defaults.height
        out = prior("three red circles over a blue triangle", num_inference_steps=10, generator=generator)
        options = {"num_inference_steps": 20, "guidance_scale": 4.0, "output_type": "np"}
        return np.asarray(decoder(**out, **options, height=side, width=side, generator=generator).images[0])

    assert np.abs(run(pipelines) - run(diffusers)).max() < 1e-3
