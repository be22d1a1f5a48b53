"""A backend that paints flat colours in the place of every model, to test what the command line prints and writes."""

from collections.abc import Generator, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kandinsky22.backends.fake import Fake
from kandinsky22.cli import paint
from kandinsky22.request import Request
from kandinsky22.request.events import Event, Notice, Preview, Progress, Started

K = TypeVar("K", bound=Hashable)


class FakeBackend(Fake):
    """Records requests and options.

    notices: texts of `Notice` events. error: raised after the first stage, if given.
    """

    def __init__(self, *, notices: tuple[str, ...] = (), error: BaseException | None = None) -> None:
        self.notices, self.error = notices, error
        self.requests: list[Request] = []
        self.options: dict[str, Any] = {}

    def stream_many(
        self, requests: Mapping[K, Request], preview: Preview | None = None, *, together: bool = False
    ) -> Generator[tuple[K, Event], None, None]:
        self.requests += requests.values()
        for key, event in super().stream_many(requests, preview, together=together):
            if isinstance(event, Progress) and event.stage == "decoder" and self.error is not None:
                raise self.error
            yield key, event
            if isinstance(event, Started):
                yield from ((key, Notice(text)) for text in self.notices)

    def install(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> "FakeBackend":
        """Replace every model by this backend, and change to `folder`."""
        monkeypatch.chdir(folder)
        monkeypatch.setattr(paint, "load", lambda _, options, request=None: self.options.update(options) or self)
        return self


def files(folder: Path) -> list[str]:
    """The paths of all files below a folder, relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
