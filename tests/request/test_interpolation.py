"""Frames between embeddings: evenly spaced, through all keyframes, and in loops without a visible seam."""

from itertools import pairwise

import numpy as np
import pytest

from kandinsky22.request import Embedding, interpolation
from kandinsky22.request.tasks import text2img

RNG = np.random.default_rng(4)
KEYFRAMES = [Embedding.of(RNG.standard_normal(32), "clip").normalised(5) for _ in range(3)]
TEMPLATE = text2img("", seed=5)


def step_lengths(frames: list[Embedding]) -> np.ndarray:
    """The distance between each frame and the next."""
    return np.array([(b - a).length for a, b in pairwise(frames)])


def test_interpolation_passes_through_every_keyframe() -> None:
    frames = interpolation.embeddings(KEYFRAMES, 9)
    assert (frames[0], frames[4], frames[8]) == tuple(KEYFRAMES)
    assert step_lengths(frames)[:4].std() < 0.05 * step_lengths(frames)[:4].mean()


def test_loop_returns_to_the_first_keyframe_without_repeating_it() -> None:
    frames = interpolation.embeddings(KEYFRAMES, 12, loop=True)
    assert len(frames) == 12
    assert (frames[0], frames[4], frames[8]) == tuple(KEYFRAMES)
    seam = (frames[0] - frames[-1]).length
    assert seam == pytest.approx(float(step_lengths(frames)[8:].mean()), rel=0.1)


def test_line_path_is_straight_and_slerp_path_is_not() -> None:
    a, b = KEYFRAMES[:2]
    middle = interpolation.embeddings([a, b], 3, path="line")[1]
    assert np.allclose(middle.vector, (a.vector + b.vector) / 2, atol=1e-6)
    assert interpolation.embeddings([a, b], 3)[1].length > middle.length


def test_noise_is_fixed_or_rotates_and_a_loop_rotates_it_full_circle() -> None:
    fixed = interpolation.requests(KEYFRAMES, 4, TEMPLATE)
    assert {(r.seed, r.variation_seed) for r in fixed} == {(5, None)}
    rotating = [r.variation_strength for r in interpolation.requests(KEYFRAMES, 5, TEMPLATE, noise="rotating")]
    assert rotating == [0, 0.25, 0.5, 0.75, 1]
    looped = interpolation.requests(KEYFRAMES, 8, TEMPLATE, noise="rotating", loop=True)
    assert [r.variation_strength for r in looped] == [k * 0.5 for k in range(8)]  # 4 would be the first noise again


def test_interpolation_refuses_too_few_keyframes_or_frames_and_a_missing_seed() -> None:
    with pytest.raises(ValueError, match="at least two embeddings"):
        interpolation.embeddings(KEYFRAMES[:1], 4)
    with pytest.raises(ValueError, match="at least two frames"):
        interpolation.embeddings(KEYFRAMES, 1)
    with pytest.raises(ValueError, match="set the seed"):
        interpolation.requests(KEYFRAMES, 3, text2img(""))
