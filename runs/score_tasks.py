"""How well the model in the box does the other tasks: new scenes, scored by the oracle, each with a control.

    python runs/score_tasks.py [--model FOLDER] [--scenes 200] [--pictures FOLDER] [--output SCORES.md]

CLIP by itself (retrieval, flipped relations); depth hints; inpainting; mixtures; and whether a depth hint with the
picture preserves more of it than the hint alone. Scenes come from a seed that no training uses. `--pictures` saves the
first pictures of each task.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scoring import FRESH_SEED, fresh, image_grid, mean, painted, rate, verdicts
from torch.nn import functional as F

from kandinsky22 import Kandinsky, controlnet, inpaint, interpolate, text2img
from kandinsky22.compositions import (
    COLORS,
    HELD_OUT_PAIRS,
    OPPOSITES,
    SHAPES,
    Group,
    Scene,
    Seen,
    caption,
    foreground,
    layers,
    read,
    render,
)
from kandinsky22.training.data import to_bytes

RETRIEVED = 1000
AROUND = 0.06  # margin of a hole around its piece, as a share of the picture's side
Row = tuple[str, str, str]
"""What is measured, how often it was right, and a control."""
Save = Callable[[str, Sequence[Image.Image]], None]


def clip(kandinsky: Kandinsky) -> Iterable[Row]:
    """Retrieval of captions for pictures and of pictures for captions, and of a relation against its opposite."""
    scenes = fresh(RETRIEVED, 2)
    captions = [caption(scene, np.random.default_rng([FRESH_SEED, 2, i]), whole=True) for i, scene in enumerate(scenes)]
    related = [i for i, scene in enumerate(scenes) if scene.relation]
    flipped = [replace(scenes[i], relation=OPPOSITES[str(scenes[i].relation)]) for i in related]
    wrong = [caption(s, np.random.default_rng([FRESH_SEED, 3, i]), whole=True) for i, s in enumerate(flipped)]
    prior = kandinsky.prior
    with torch.inference_mode():
        rendered = [Image.fromarray(render(scene)) for scene in scenes]
        images = F.normalize(
            torch.cat([prior.encode_images(rendered[i : i + 50]) for i in range(0, len(rendered), 50)]), dim=-1
        )
        texts, wrongs = (
            F.normalize(torch.cat([prior.encode_text(of[i : i + 50]).embed for i in range(0, len(of), 50)]), dim=-1)
            for of in (captions, wrong)
        )
    similar = (images @ texts.T).numpy()
    best_caption, best_picture = similar.argmax(1), similar.argmax(0)
    of = [described(scene) for scene in scenes]
    yield (
        f"retrieval: the caption that CLIP ranks first for a picture, of {len(scenes)}, is true of it",
        rate(of[f] == of[i] for i, f in enumerate(best_caption)),
        f"{100 / len(scenes):.1f}",
    )
    yield (
        "retrieval: the picture it ranks first for a caption shows it",
        rate(of[f] == of[i] for i, f in enumerate(best_picture)),
        f"{100 / len(scenes):.1f}",
    )
    right, other = similar[related, related], (images[related] * wrongs).sum(-1).numpy()
    yield (
        f"a relation is distinguished from its opposite ({len(related)} pictures)",
        rate(right > other),
        "50",
    )


def described(scene: Scene) -> tuple[object, ...]:
    """The content of a scene's full caption: scenes with equal content have the same caption."""
    groups, relation = list(scene.groups), scene.relation
    if relation and repr(groups[0]) > repr(groups[1]):
        groups, relation = groups[::-1], OPPOSITES[relation]
    return scene.ground, scene.decoration, scene.style, tuple(groups), relation


def overlap(picture: Image.Image, expected: np.ndarray) -> float:
    """Intersection over union of the shapes in a picture and where they should be."""
    seen = foreground(np.asarray(picture))
    return float((seen & expected).sum() / max(1, (seen | expected).sum()))


def depth(kandinsky: Kandinsky, count: int, save: Save) -> Iterable[Row]:
    """Captions with the depth of their picture as a hint, without a hint, and with that of another picture."""
    scenes = fresh(count, 4)
    maps = [layers(scene, kandinsky.defaults.height) for scene in scenes]
    hints = [Image.fromarray(to_bytes(of.depth)) for of in maps]
    captions = [caption(scene, whole=True) for scene in scenes]
    requests = [controlnet(s, hint=h, seed=i) for i, (s, h) in enumerate(zip(captions, hints, strict=True))]
    hinted = painted(kandinsky, requests, "hints")
    free = painted(kandinsky, [text2img(s, seed=i) for i, s in enumerate(captions)], "no hints")
    expected = [of.ids > 0 for of in maps]
    same = [overlap(picture, place) for picture, place in zip(hinted, expected, strict=True)]
    other = [overlap(picture, place) for picture, place in zip(hinted, [*expected[1:], expected[0]], strict=True)]
    without = [overlap(picture, place) for picture, place in zip(free, expected, strict=True)]
    yield (
        "depth hint: shapes where the hint has them (intersection over union)",
        mean(same),
        f"no hint: {mean(without)}; another scene's: {mean(other)}",
    )
    yield (
        "depth hint: the whole caption except the style is right as well",
        rate(v["plain"] for v in verdicts(hinted, scenes)),
        f"no hint: {rate(v['plain'] for v in verdicts(free, scenes))}",
    )
    save("depth", [picture for i in range(8) for picture in (hints[i].convert("RGB"), hinted[i], free[i])])


def edited(scene: Scene, rng: np.random.Generator) -> tuple[Scene, np.ndarray]:
    """The scene with one single piece of another colour and shape, and the hole [128, 128] (bool) around the old
    one."""
    place = next(i for i, group in enumerate(scene.groups) if group.count == 1)
    taken = {group.color for group in scene.groups}
    while True:
        color, shape = str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))
        if color not in taken and shape != scene.groups[place].shape and (color, shape) not in HELD_OUT_PAIRS:
            break
    groups = list(scene.groups)
    groups[place] = Group(1, color, shape)
    (piece,) = (piece for piece in scene.pieces if piece.group == place)
    middle, reach = np.array((piece.y, piece.x)), piece.r + AROUND
    (top, left), (bottom, right) = ((np.clip(middle + way * reach, 0, 1) * 128).round().astype(int) for way in (-1, 1))
    hole = np.zeros((128, 128), bool)
    hole[top:bottom, left:right] = True
    return replace(scene, groups=tuple(groups)), hole


def within(piece: Seen, hole: np.ndarray) -> bool:
    """Whether a piece's centre is in the hole."""
    return bool(hole[min(127, int(piece.y * 128)), min(127, int(piece.x * 128))])


def fill(kandinsky: Kandinsky, count: int, save: Save) -> Iterable[Row]:
    """One piece of a picture repainted, with the caption of the picture with another piece in its place."""
    scenes = [s for s in fresh(6 * count, 5) if any(group.count == 1 for group in s.groups)][:count]
    pairs = [edited(scene, np.random.default_rng([FRESH_SEED, 6, i])) for i, scene in enumerate(scenes)]
    rendered = [render(scene) for scene in scenes]
    masks = [Image.fromarray(hole.astype(np.uint8) * 255) for _, hole in pairs]
    requests = [
        inpaint(caption(wanted, whole=True), image=picture, mask_image=mask, seed=i)
        for i, ((wanted, _), picture, mask) in enumerate(zip(pairs, rendered, masks, strict=True))
    ]
    pictures = painted(kandinsky, requests, "inpainting")

    def shows_new_piece(picture: np.ndarray, wanted: Scene, before: Scene, hole: np.ndarray) -> bool:
        (new,) = set(wanted.groups) - set(before.groups)
        return any(
            (piece.color, piece.shape) == (new.color, new.shape) and within(piece, hole)
            for piece in read(picture).pieces
        )

    after = [
        shows_new_piece(np.asarray(picture), wanted, scene, hole)
        for picture, (wanted, hole), scene in zip(pictures, pairs, scenes, strict=True)
    ]
    before = [
        shows_new_piece(picture, wanted, scene, hole)
        for picture, (wanted, hole), scene in zip(rendered, pairs, scenes, strict=True)
    ]
    same = [
        bool((np.asarray(picture)[~hole] == old[~hole]).all())
        for picture, old, (_, hole) in zip(pictures, rendered, pairs, strict=True)
    ]
    yield (
        "inpainting: the requested colour and shape are in the hole",
        rate(after),
        f"before: {rate(before)}",
    )
    yield (
        "inpainting: no pixel outside the hole has changed",
        rate(same),
        "",
    )
    save("inpaint", [p for i in range(8) for p in (Image.fromarray(rendered[i]), masks[i].convert("RGB"), pictures[i])])


def content(picture: Image.Image) -> set[tuple[str, str]]:
    """What the oracle sees in a picture, as (kind, value)."""
    reading = read(np.asarray(picture))
    pieces = {(kind, getattr(piece, kind)) for piece in reading.pieces for kind in ("color", "shape")}
    return pieces | {("ground", reading.ground)}


def mixtures(kandinsky: Kandinsky, count: int, save: Save) -> Iterable[Row]:
    """Two captions of single groups, blended: at the ends and halfway."""
    scenes = [scene for scene in fresh(8 * count, 7) if scene.relation is None]
    pairs = [
        (one, other)
        for one, other in zip(scenes[::2], scenes[1::2], strict=False)
        if one.groups[0].color != other.groups[0].color
    ][:count]
    captions = [(caption(one), caption(other)) for one, other in pairs]
    rows = []
    for w in (0.0, 0.5, 1.0):
        requests = [interpolate(two, weights=[1 - w, w], seed=i) for i, two in enumerate(captions)]
        rows.append(painted(kandinsky, requests, f"blend {w:g}"))
    alone = painted(kandinsky, [text2img(one, seed=i) for i, (one, _) in enumerate(captions)], "one alone")
    ends = [
        np.abs(np.asarray(end, int) - np.asarray(by_itself, int)).max() <= 1
        for end, by_itself in zip(rows[0], alone, strict=True)
    ]
    contents = [
        [{("ground", s.ground), ("color", s.groups[0].color), ("shape", s.groups[0].shape)} for s in pair]
        for pair in pairs
    ]
    first, halves = (
        [
            bool(content(p) & (a - b)) and bool(content(p) & (b - a))
            for p, (a, b) in zip(pictures, contents, strict=True)
        ]
        for pictures in rows[:2]
    )
    yield (
        "mixing: each end equals what its text alone paints, to one grey level",
        rate(ends),
        "",
    )
    yield (
        f"mixing: halfway shows something of each text that the other lacks ({len(pairs)} pairs)",
        rate(halves),
        f"at an end: {rate(first)}",
    )
    save("mixing", [picture for i in range(8) for picture in (rows[0][i], rows[1][i], rows[2][i])])


def preserved(kandinsky: Kandinsky, count: int, save: Save) -> Iterable[Row]:
    """The card's claim: a hint with the picture preserves more of the picture than the hint alone, whatever the
    prompt."""
    scenes = fresh(count, 8)
    prompts = [caption(scene) for scene in fresh(count, 9)]
    side = kandinsky.defaults.height
    rendered = [render(scene, side) for scene in scenes]
    hints = [Image.fromarray(to_bytes(layers(scene, side).depth)) for scene in scenes]
    alone = painted(
        kandinsky, [controlnet(p, hint=h, seed=i) for i, (p, h) in enumerate(zip(prompts, hints, strict=True))], "hint"
    )
    both = painted(
        kandinsky,
        [
            controlnet(p, hint=h, image=picture, seed=i)
            for i, (p, h, picture) in enumerate(zip(prompts, hints, rendered, strict=True))
        ],
        "hint and picture",
    )
    results = [verdicts(pictures, scenes) for pictures in (both, alone)]
    for name, meaning in (("ground", "ground is"), ("present", "colours are")):
        with_picture, without = (rate(v[name] for v in verdict) for verdict in results)
        yield (
            f"hint and picture: the picture's {meaning} preserved under another prompt",
            with_picture,
            f"hint alone: {without}",
        )
    with torch.inference_mode():
        source, *seen = (
            kandinsky.prior.encode_images([p if isinstance(p, Image.Image) else Image.fromarray(p) for p in pictures])
            for pictures in (rendered, both, alone)
        )
    similarity = [F.cosine_similarity(source, of).tolist() for of in seen]
    yield (
        "hint and picture: cosine similarity to the picture in CLIP's space",
        mean(similarity[0]),
        f"hint alone: {mean(similarity[1])}",
    )
    save("preserved", [p for i in range(8) for p in (Image.fromarray(rendered[i]), both[i], alone[i])])


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the other tasks of the model in the box.")
    parser.add_argument("--model", default="box")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--only", nargs="*", help="some of: clip depth fill mixtures preserved")
    parser.add_argument("--pictures", type=Path, help="a folder for sheets of the first eight of each")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    kandinsky = Kandinsky.load(chosen.model, device="cpu", dtype="float32")

    def save(name: str, pictures: Sequence[Image.Image]) -> None:
        if chosen.pictures:
            chosen.pictures.mkdir(parents=True, exist_ok=True)
            image_grid(pictures, 12).save(chosen.pictures / f"{name}.png")

    lines = ["| task, on new scenes | % (95% interval) | control |", "|---|---|---|"]
    print(*lines, sep="\n")
    jobs: dict[str, Callable[[], Iterable[Row]]] = {"clip": lambda: clip(kandinsky)}
    for job in (depth, fill, mixtures, preserved):
        jobs[job.__name__] = lambda job=job: job(kandinsky, chosen.scenes, save)  # type: ignore[misc]
    for name in chosen.only or jobs:
        for row in jobs[name]():
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
    if chosen.output:
        chosen.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
