"""A job of a running server, with its events."""

import asyncio
import secrets
from dataclasses import dataclass, field, replace

from kandinsky22.request.events import Event, Preview, Progress, is_last
from kandinsky22.server.store import Job, StoredPicture

PREVIEWS = 8  # the latest of a job, for clients that are a little behind


@dataclass(eq=False)
class LiveJob:
    """A job of this process: its events so far, numbered from 1, and how to wait for more.

    Events hold no pixels but the latest previews. id: of this list of events; after a restart there is another one.
    pictures: what it painted. asked_to_cancel: whether its owner cancelled it.
    """

    job: Job
    preview: Preview | None
    events: list[tuple[int, Event]] = field(default_factory=list)
    count: int = 0
    pictures: list[StoredPicture] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    asked_to_cancel: bool = False
    is_running: bool = False
    id: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def last(self) -> Event | None:
        """The latest event."""
        return self.events[-1][1] if self.events else None

    @property
    def has_ended(self) -> bool:
        """Whether no event follows."""
        return self.last is not None and is_last(self.last)

    def add(self, event: Event) -> None:
        """Add an event, and wake up everyone who waits for one."""
        self.count += 1
        self.events.append((self.count, event))
        previews = [(k, n, old) for k, (n, old) in enumerate(self.events) if isinstance(old, Progress) and old.preview]
        for k, number, progress in previews[:-PREVIEWS]:
            self.events[k] = number, replace(progress, preview=None)
        self.wake_up()

    def wake_up(self) -> None:
        """Wake up everyone who waits for an event."""
        self.changed.set()
        self.changed = asyncio.Event()
