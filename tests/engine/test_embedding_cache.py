"""`EmbeddingCache` returns what it stored, in memory and from its folder, and stays within its limits."""

from pathlib import Path

import pytest
import torch

from kandinsky22 import Kandinsky, text2img
from kandinsky22.engine import embedder, embedding_cache
from kandinsky22.engine.embedding_cache import EmbeddingCache
from kandinsky22.models.prior import PriorTransformer


def test_cache_keeps_the_latest_embeddings_in_memory_and_all_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_cache, "IN_MEMORY", 2)
    values = {f"key {k}": torch.full((1, 3), float(k)) for k in range(4)}
    memory, both = EmbeddingCache(), EmbeddingCache(tmp_path / "new")
    for key, value in values.items():
        memory.put(key, value)
        both.put(key, value)
    assert [key for key in values if memory.get(key) is not None] == ["key 2", "key 3"]
    reopened = EmbeddingCache(tmp_path / "new")
    assert all(torch.equal(reopened.get(key), value) for key, value in values.items())  # type: ignore[arg-type]
    assert reopened.get("key 9") is None


def test_cache_deletes_its_oldest_files_and_ignores_broken_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_cache, "ON_DISK", 3)
    cache = EmbeddingCache(tmp_path)
    for k in range(6):
        cache.put(k, torch.zeros(1))
    assert len(list(tmp_path.iterdir())) == 3
    for path in tmp_path.iterdir():
        path.write_bytes(b"nonsense")
    assert EmbeddingCache(tmp_path).get(5) is None
    EmbeddingCache(tmp_path / "file" / "below").put(1, torch.zeros(1))
    (tmp_path / "plain").touch()
    EmbeddingCache(tmp_path / "plain" / "below").put(1, torch.zeros(1))  # a folder that cannot be created: no error


def test_embeddings_of_a_large_prior_are_reused_by_the_next_load(
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
