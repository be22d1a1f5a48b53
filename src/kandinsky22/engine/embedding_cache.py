"""A cache of tensors in memory, and for expensive ones also in a folder. Knows only keys and tensors."""

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path

from torch import Tensor

from kandinsky22.checkpoints import tensor_cache

IN_MEMORY, ON_DISK = 256, 10_000  # how many values; the oldest are removed


class EmbeddingCache:
    """Tensors by key: the `IN_MEMORY` last used ones in memory and, with a folder, all of them in files named after the
    key's hash.

    A key's `repr` must identify it, in every process. A folder that cannot be read or written only costs time.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._latest: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable) -> Tensor | None:
        """The value, or None."""
        if key not in self._latest and self.folder is not None:
            value = tensor_cache.read(self._path(key))
            if value is not None:
                self._remember(key, value)
        if key in self._latest:
            self._latest.move_to_end(key)
        return self._latest.get(key)

    def put(self, key: Hashable, value: Tensor) -> None:
        """Store a value."""
        self._remember(key, value)
        if self.folder is not None:
            with contextlib.suppress(OSError):
                tensor_cache.write(self._path(key), value)
                files = sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime)
                for path in files[: max(0, len(files) - ON_DISK)]:
                    path.unlink(missing_ok=True)

    def _remember(self, key: Hashable, value: Tensor) -> None:
        self._latest[key] = value
        if len(self._latest) > IN_MEMORY:
            self._latest.popitem(last=False)

    def _path(self, key: Hashable) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.safetensors"
