"""What is kept comes back, in this process and in the next, and no more of it than there is room for."""

from pathlib import Path

import pytest
import torch

from kandinsky22 import Kandinsky, text2img
from kandinsky22.engine import embedder, embedding_cache
from kandinsky22.engine.embedding_cache import EmbeddingCache
from kandinsky22.models.prior import PriorTransformer


def test_the_latest_are_in_memory_and_all_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_cache, "IN_MEMORY", 2)
    values = {f"key {k}": torch.full((1, 3), float(k)) for k in range(4)}
    memory, both = EmbeddingCache(), EmbeddingCache(tmp_path / "new")
    for key, value in values.items():
        memory.put(key, value)
        both.put(key, value)
    assert [key for key in values if memory.get(key) is not None] == ["key 2", "key 3"]
    again = EmbeddingCache(tmp_path / "new")
    assert all(torch.equal(again.get(key), value) for key, value in values.items())  # type: ignore[arg-type]
    assert again.get("key 9") is None


def test_the_oldest_files_go_and_broken_ones_are_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_cache, "ON_DISK", 3)
    there = EmbeddingCache(tmp_path)
    for k in range(6):
        there.put(k, torch.zeros(1))
    assert len(list(tmp_path.iterdir())) == 3
    for path in tmp_path.iterdir():
        path.write_bytes(b"nonsense")
    assert EmbeddingCache(tmp_path).get(5) is None
    EmbeddingCache(tmp_path / "file" / "below").put(1, torch.zeros(1))
    (tmp_path / "plain").touch()
    EmbeddingCache(tmp_path / "plain" / "below").put(1, torch.zeros(1))  # cannot be made; costs nothing


def test_a_large_priors_embeddings_serve_the_next_process_too(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder, "LARGE", 10)
    monkeypatch.setenv("KANDINSKY22_CACHE", str(tmp_path))
    request = text2img("a red circle", seed=4, prior_seed=4, num_inference_steps=2, prior_num_inference_steps=2)
    (first,) = Kandinsky.load(tiny_model)(request)
    assert len(list((tmp_path / "embeddings").rglob("*.safetensors"))) == 1
    assert b"red circle" not in next((tmp_path / "embeddings").rglob("*.safetensors")).read_bytes()
    monkeypatch.setattr(PriorTransformer, "forward", lambda *_: pytest.fail("the prior ran"))
    (second,) = Kandinsky.load(tiny_model)(request)
    assert second.image.tobytes() == first.image.tobytes()
