"""A file of the cache is read as it was written, and not at all once it was changed."""

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kandinsky22.checkpoints import tensor_cache
from kandinsky22.engine.embedding_cache import EmbeddingCache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_written_tensor_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.arange(6).reshape(2, 3).T.to(dtype)
    tensor_cache.write(tmp_path / "a", value)
    read = tensor_cache.read(tmp_path / "a")
    assert read is not None and read.dtype == dtype and torch.equal(read, value)
    assert tensor_cache.read(tmp_path / "b") is None


def test_every_changed_bit_of_a_file_is_noticed(tmp_path: Path) -> None:
    path, value = tmp_path / "a", torch.ones(2, 3)
    tensor_cache.write(path, value)
    content = path.read_bytes()
    for k in range(8, len(content)):
        path.write_bytes(content[:k] + bytes([content[k] ^ 1]) + content[k + 1 :])
        read = tensor_cache.read(path)
        assert read is None or torch.equal(read, value)
    for k in range(len(content) - value.nbytes, len(content)):
        path.write_bytes(content[:k] + bytes([content[k] ^ 1]) + content[k + 1 :])
        assert tensor_cache.read(path) is None


def test_a_tensor_of_the_same_shape_is_not_taken_for_the_right_one(tmp_path: Path) -> None:
    """Neither without a checksum, as older versions wrote, nor with that of another key."""
    cache = EmbeddingCache(tmp_path)
    cache.put("a", torch.ones(1, 3))
    (first,) = tmp_path.iterdir()
    cache.put("b", torch.zeros(1, 3))
    second = next(path for path in tmp_path.iterdir() if path != first)
    first.write_bytes(second.read_bytes())
    save_file({"value": torch.ones(1, 3)}, second)
    reopened = EmbeddingCache(tmp_path)
    assert reopened.get("a") is None and reopened.get("b") is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_in_the_cache_is_ignored(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    assert tensor_cache.read(tmp_path / "a") is None
