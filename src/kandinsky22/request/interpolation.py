"""Requests for the frames of an interpolation between embeddings, for a strip or a film. Imports no torch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from kandinsky22.request import limits
from kandinsky22.request.embedding import Embedding
from kandinsky22.request.request import Request

FULL_ROTATION = 4.0  # a variation strength of 1 rotates the noise by a quarter circle; 4 is back at the first noise
Path = Literal["slerp", "line"]


def embeddings(
    keyframes: Sequence[Embedding], frames: int, *, loop: bool = False, path: Path = "slerp"
) -> list[Embedding]:
    """`frames` embeddings, evenly spaced along the path through all `keyframes`.

    A frame that falls on a keyframe is that keyframe. loop: the path returns to the first keyframe, whose frame is not
    repeated at the end, so that the frames can be played in a loop. Raises `ValueError` for fewer than two keyframes or
    frames.
    """
    if len(keyframes) < 2:
        raise ValueError(f"an interpolation needs at least two embeddings, got {len(keyframes)}")
    if frames < 2:
        raise ValueError(f"an interpolation needs at least two frames, got {frames}")
    limits.check_count("frames", frames, limits.MAX_FRAMES)
    stops = [*keyframes, keyframes[0]] if loop else [*keyframes]
    segments = len(stops) - 1
    result = []
    for k in range(frames):
        position = k * segments / (frames if loop else frames - 1)
        segment = min(int(position), segments - 1)
        result.append(_interpolate(stops[segment], stops[segment + 1], position - segment, path))
    return result


def requests(
    keyframes: Sequence[Embedding],
    frames: int,
    template: Request,
    *,
    loop: bool = False,
    path: Path = "slerp",
    noise: Literal["fixed", "rotating"] = "fixed",
) -> list[Request]:
    """One request per frame: `template`, which must have a seed, with the frame's embedding as its condition.

    noise: "fixed" uses the same initial noise for every frame; "rotating" rotates it towards the noise of the next
    seed, with `loop` through a full circle, so that the composition changes too.
    """
    if template.seed is None:
        raise ValueError("all frames share one seed; set the seed of the template request")
    frame_embeddings = embeddings(keyframes, frames, loop=loop, path=path)
    if noise == "fixed":
        return [replace(template, condition=embedding) for embedding in frame_embeddings]
    step = FULL_ROTATION / frames if loop else 1 / (frames - 1)
    return [
        replace(template, condition=embedding, variation_seed=template.seed + 1, variation_strength=k * step)
        for k, embedding in enumerate(frame_embeddings)
    ]


def _interpolate(first: Embedding, second: Embedding, t: float, path: Path) -> Embedding:
    if t == 0:
        return first
    if t == 1:
        return second
    return first.slerp(second, t) if path == "slerp" else first * (1 - t) + second * t
