"""Embeddings as values: their arithmetic, the great circle, files, and spaces that do not mix."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from kandinsky22.request import Embedding
from kandinsky22.request.embedding import mix, slerp

RNG = np.random.default_rng(3)


def drawn(length: float = 1.0, encoder: str = "clip") -> Embedding:
    return Embedding.of(RNG.standard_normal(64), encoder).normalised(length)


def close(a: Embedding, b: Embedding, error: float = 1e-5) -> bool:
    return bool(np.abs(a.vector - b.vector).max() < error)


def angle(a: Embedding, b: Embedding) -> float:
    return math.acos(float(a.normalised().vector @ b.normalised().vector))


def test_a_mix_is_a_weighted_sum_and_its_ends_are_its_ends() -> None:
    a, b, c = drawn(2), drawn(3), drawn(1)
    assert mix((a, b), (1, 0)) == a and mix((a, b), (0, 1)) == b
    expected = 0.3 * a.vector.astype(float) + 0.5 * b.vector - 0.2 * c.vector
    assert np.allclose(mix((a, b, c), (0.3, 0.5, -0.2)).vector, expected, atol=1e-6)
    assert close(a.subtract(b, 0.5), a - b * 0.5)
    assert close(a + b - b, a)


def test_slerp_goes_evenly_along_the_great_circle() -> None:
    a, b = drawn(2), drawn(5)
    whole = angle(a, b)
    for t in (0.1, 0.5, 0.9):
        between = a.slerp(b, t)
        assert angle(a, between) == pytest.approx(t * whole, abs=1e-3)
        assert angle(between, b) == pytest.approx((1 - t) * whole, abs=1e-3)
        assert between.length == pytest.approx(2 + 3 * t, abs=1e-4)
    assert close(slerp(a, b, 0), a) and close(slerp(a, b, 1), b)
    assert close(a.slerp(b, 0.3), b.slerp(a, 0.7))


def test_where_there_is_no_one_circle_the_way_is_straight() -> None:
    a = drawn()
    assert close(a.slerp(a, 0.4), a)
    assert a.slerp(a * -1, 0.25).length == pytest.approx(0.5, abs=1e-5)


def test_normalised_has_the_length_that_is_asked_for() -> None:
    assert drawn(7).normalised().length == pytest.approx(1)
    assert drawn(7).normalised(3.5).length == pytest.approx(3.5)
    with pytest.raises(ValueError, match="zero embedding"):
        Embedding.of(np.zeros(3), "clip").normalised()


def test_a_file_gives_the_same_bits_back(tmp_path: Path) -> None:
    a = Embedding.of(RNG.standard_normal(64), "clip", {"request": "a кот"})
    path = a.save(tmp_path / "folder" / "a.safetensors")
    again = Embedding.load(path)
    assert again == a and again.made_by == {"request": "a кот"}
    assert path.stat().st_size < 1000
    assert Embedding.from_dict(json.loads(json.dumps(a.to_dict()))) == a


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="holds no embedding"):
        Embedding.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="holds no embedding"):
        Embedding.load(path)


def test_spaces_do_not_mix() -> None:
    with pytest.raises(ValueError, match=r"two encoders \(clip, other\)"):
        _ = drawn() + drawn(encoder="other")
    with pytest.raises(ValueError, match="as many weights"):
        mix((drawn(),), (1, 2))
    with pytest.raises(ValueError, match="finite"):
        Embedding.of([1.0, math.nan], "clip")
    with pytest.raises(ValueError, match="one vector"):
        Embedding.of(np.zeros((2, 3)), "clip")
