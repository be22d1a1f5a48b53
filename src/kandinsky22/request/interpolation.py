"""From one embedding to the next: the requests whose pictures make a strip or a film. Imports no torch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from kandinsky22.request.embedding import Embedding
from kandinsky22.request.request import Request

FULL_TURN = 4.0  # a variation strength of 1 is a quarter of a circle; four of them come back to where they began
Path = Literal["slerp", "line"]


def embeddings(stops: Sequence[Embedding], frames: int, *, loop: bool = False, path: Path = "slerp") -> list[Embedding]:
    """`frames` embeddings, evenly along the way through all `stops`, each stop among them if the numbers allow.

    loop: the way goes back to the first stop, whose frame is not repeated at the end, so that played again and again it is
    seamless. Raises `ValueError` for fewer than two stops or frames.
    """
    if len(stops) < 2:
        raise ValueError(f"a journey goes between two embeddings or more, got {len(stops)}")
    if frames < 2:
        raise ValueError(f"a journey has two frames or more, got {frames}")
    way = [*stops, stops[0]] if loop else [*stops]
    legs = len(way) - 1
    found = []
    for k in range(frames):
        place = k * legs / (frames if loop else frames - 1)
        leg = min(int(place), legs - 1)
        found.append(_between(way[leg], way[leg + 1], place - leg, path))
    return found


def requests(
    stops: Sequence[Embedding],
    frames: int,
    like: Request,
    *,
    loop: bool = False,
    path: Path = "slerp",
    noise: Literal["held", "turned"] = "held",
) -> list[Request]:
    """A request for each frame, `like` another one with a seed in all but the embedding.

    noise: "held" paints every frame from the same noise; "turned" turns it to that of the next seed (with `loop` all the way
    round and back), which lets the composition drift, too.
    """
    if like.seed is None:
        raise ValueError("the frames of a journey share a seed; give one")
    along = embeddings(stops, frames, loop=loop, path=path)
    if noise == "held":
        return [replace(like, condition=embedding) for embedding in along]
    turned = FULL_TURN / frames if loop else 1 / (frames - 1)
    return [
        replace(like, condition=embedding, variation_seed=like.seed + 1, variation_strength=k * turned)
        for k, embedding in enumerate(along)
    ]


def _between(first: Embedding, second: Embedding, t: float, path: Path) -> Embedding:
    if t == 0:
        return first
    if t == 1:
        return second
    return first.slerp(second, t) if path == "slerp" else first * (1 - t) + second * t
