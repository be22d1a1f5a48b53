"""What downloading needs from a hub: a protocol, and the ways in which a hub fails. `hugging_face.py` implements it."""

from pathlib import Path
from typing import Protocol

from kandinsky22.checkpoints.catalog import File, Repository


class UnreachableError(Exception):
    """No hub answers; the message is why."""


class AccessDeniedError(Exception):
    """A hub answers, but refuses this user; the message is why."""


class Hub(Protocol):
    """A server of repositories, and a local cache of their files."""

    @property
    def folder(self) -> Path:
        """Where the cache is."""
        ...

    def cached(self, repository: Repository, path: str) -> Path | None:
        """A file in the cache, or None. Sends no request."""
        ...

    def partial_bytes(self, repository: Repository, file: File) -> int:
        """How many bytes of a file an interrupted download has left, to be continued."""
        ...

    def list(self, name: str, revision: str) -> Repository:
        """A repository at a commit, with all its files.

        Raises `UnreachableError`, `AccessDeniedError` and `CheckpointError`.
        """
        ...

    def download(self, repository: Repository, file: File, twin: Path | None) -> Path:
        """Download a file to the cache, showing progress; `twin` is a local file with the same content.

        Raises like `list`.
        """
        ...
