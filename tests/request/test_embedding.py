"""Embeddings as values: arithmetic, spherical interpolation, files, and the check that encoders match."""

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from kandinsky22.request import Embedding
from kandinsky22.request.embedding import KEY, mix, slerp

RNG = np.random.default_rng(3)


def random_embedding(length: float = 1.0, encoder: str = "clip") -> Embedding:
    return Embedding.of(RNG.standard_normal(64), encoder).normalised(length)


def close(a: Embedding, b: Embedding, error: float = 1e-5) -> bool:
    return bool(np.abs(a.vector - b.vector).max() < error)


def angle(a: Embedding, b: Embedding) -> float:
    return math.acos(float(a.normalised().vector @ b.normalised().vector))


def test_mix_is_a_weighted_sum() -> None:
    a, b, c = random_embedding(2), random_embedding(3), random_embedding(1)
    assert mix((a, b), (1, 0)) == a and mix((a, b), (0, 1)) == b
    expected = 0.3 * a.vector.astype(float) + 0.5 * b.vector - 0.2 * c.vector
    assert np.allclose(mix((a, b, c), (0.3, 0.5, -0.2)).vector, expected, atol=1e-6)
    assert close(a.subtract(b, 0.5), a - b * 0.5)
    assert close(a + b - b, a)


def test_slerp_divides_angle_and_length_evenly() -> None:
    a, b = random_embedding(2), random_embedding(5)
    full = angle(a, b)
    for t in (0.1, 0.5, 0.9):
        between = a.slerp(b, t)
        assert angle(a, between) == pytest.approx(t * full, abs=1e-3)
        assert angle(between, b) == pytest.approx((1 - t) * full, abs=1e-3)
        assert between.length == pytest.approx(2 + 3 * t, abs=1e-4)
    assert close(slerp(a, b, 0), a) and close(slerp(a, b, 1), b)
    assert close(a.slerp(b, 0.3), b.slerp(a, 0.7))


def test_slerp_of_parallel_or_opposite_embeddings_is_linear() -> None:
    a = random_embedding()
    assert close(a.slerp(a, 0.4), a)
    assert a.slerp(a * -1, 0.25).length == pytest.approx(0.5, abs=1e-5)


def test_normalised_embedding_has_the_requested_length() -> None:
    assert random_embedding(7).normalised().length == pytest.approx(1)
    assert random_embedding(7).normalised(3.5).length == pytest.approx(3.5)
    with pytest.raises(ValueError, match="zero embedding"):
        Embedding.of(np.zeros(3), "clip").normalised()


def test_saved_embedding_is_restored_bit_for_bit(tmp_path: Path) -> None:
    a = Embedding.of(RNG.standard_normal(64), "clip", {"request": "a кот"})
    path = a.save(tmp_path / "folder" / "a.safetensors")
    again = Embedding.load(path)
    assert again == a and again.made_by == {"request": "a кот"}
    assert path.stat().st_size < 1000
    assert Embedding.from_dict(json.loads(json.dumps(a.to_dict()))) == a


def test_load_refuses_files_without_an_embedding(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="is not an embedding saved by kandinsky22"):
        Embedding.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is not an embedding saved by kandinsky22"):
        Embedding.load(path)


def test_embeddings_refuse_other_encoders_and_malformed_values() -> None:
    with pytest.raises(ValueError, match=r"two encoders \(clip, other\)"):
        _ = random_embedding() + random_embedding(encoder="other")
    with pytest.raises(ValueError, match="as many weights"):
        mix((random_embedding(),), (1, 2))
    with pytest.raises(ValueError, match="finite"):
        Embedding.of([1.0, math.nan], "clip")
    with pytest.raises(ValueError, match="one vector"):
        Embedding.of(np.zeros((2, 3)), "clip")


def write_tensor(path: Path, dtype: str, data: bytes, **metadata: str) -> Path:
    """A file of one tensor of a row."""
    shape = [1, len(data) * 8 // int(dtype[-2:])]
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}
    header = json.dumps({"__metadata__": metadata, KEY: tensor}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def test_embeddings_of_every_floating_point_dtype_are_read_exactly(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0, 0.0, 2.0**-20], "<f4")  # exact in all
    upper_halves = (values.view("<u4") >> 16).astype("<u2")
    for dtype, data in (
        ("F64", values.astype("<f8")),
        ("F32", values),
        ("F16", values.astype("<f2")),
        ("BF16", upper_halves),
    ):
        path = write_tensor(tmp_path / dtype, dtype, data.tobytes(), encoder="clip")
        assert Embedding.load(path) == Embedding.of(values, "clip")


def test_a_file_with_other_numbers_or_foreign_metadata_is_refused(tmp_path: Path) -> None:
    one, huge = np.ones(4, "<f4").tobytes(), np.full(2, 1e300).tobytes()
    nan = np.array([0x7FC0], "<u2").tobytes()
    for k, (dtype, data, metadata) in enumerate(
        (
            ("I32", one, {"encoder": "clip"}),
            ("F64", huge, {"encoder": "clip"}),
            ("BF16", nan, {"encoder": "clip"}),
            ("F32", one, {}),
            *(("F32", one, {"encoder": "clip", "made_by": text}) for text in ("[]", "3", "null", "{", "[" * 10**5)),
        )
    ):
        path = write_tensor(tmp_path / str(k), dtype, data, **metadata)
        with pytest.raises(ValueError, match=f"{path} is not an embedding saved by kandinsky22") as refused:
            Embedding.load(path)
        assert len(str(refused.value).splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_or_a_device_is_not_read_as_an_embedding(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="is a pipe or a device"):
            Embedding.load(path)
