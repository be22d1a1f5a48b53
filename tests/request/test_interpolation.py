"""The way from one embedding to the next: evenly, through its stops, and round without a seam."""

from itertools import pairwise

import numpy as np
import pytest

from kandinsky22.request import Embedding, interpolation
from kandinsky22.request.tasks import text2img

RNG = np.random.default_rng(4)
STOPS = [Embedding.of(RNG.standard_normal(32), "clip").normalised(5) for _ in range(3)]
LIKE = text2img("", seed=5)


def steps(way: list[Embedding]) -> np.ndarray:
    """The distance of every two neighbours."""
    return np.array([(b - a).length for a, b in pairwise(way)])


def test_it_begins_and_ends_at_its_ends_and_passes_its_stops() -> None:
    way = interpolation.embeddings(STOPS, 9)
    assert (way[0], way[4], way[8]) == tuple(STOPS)
    assert steps(way)[:4].std() < 0.05 * steps(way)[:4].mean()


def test_a_loop_comes_back_without_repeating_a_frame() -> None:
    way = interpolation.embeddings(STOPS, 12, loop=True)
    assert len(way) == 12 and way[0] == STOPS[0] and way[4] == STOPS[1] and way[8] == STOPS[2]
    seam = (way[0] - way[-1]).length
    assert seam == pytest.approx(float(steps(way)[8:].mean()), rel=0.1)


def test_a_line_is_straight_and_a_slerp_is_not() -> None:
    a, b = STOPS[:2]
    middle = interpolation.embeddings([a, b], 3, path="line")[1]
    assert np.allclose(middle.vector, (a.vector + b.vector) / 2, atol=1e-6)
    assert interpolation.embeddings([a, b], 3)[1].length > middle.length


def test_noise_is_held_or_turned_and_a_loop_turns_it_all_the_way_round() -> None:
    held = interpolation.requests(STOPS, 4, LIKE)
    assert {(r.seed, r.variation_seed) for r in held} == {(5, None)}
    turned = [r.variation_strength for r in interpolation.requests(STOPS, 5, LIKE, noise="turned")]
    assert turned == [0, 0.25, 0.5, 0.75, 1]
    looped = [r.variation_strength for r in interpolation.requests(STOPS, 8, LIKE, noise="turned", loop=True)]
    assert looped == [k * 0.5 for k in range(8)]  # 8 would be 4, the first again


def test_what_is_no_journey_is_refused() -> None:
    with pytest.raises(ValueError, match="two embeddings or more"):
        interpolation.embeddings(STOPS[:1], 4)
    with pytest.raises(ValueError, match="two frames or more"):
        interpolation.embeddings(STOPS, 1)
    with pytest.raises(ValueError, match="give one"):
        interpolation.requests(STOPS, 3, text2img(""))
