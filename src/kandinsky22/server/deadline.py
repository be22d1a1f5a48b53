"""A protocol for uvicorn that closes connections of clients that are too slow to send a request.

Only sending is timed: a client may wait for its answer as long as painting takes.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 5.0  # from connecting, or from the end of the answer before, to the end of the headers
BODY_SECONDS = 30.0  # for the body, and as much again for each `BODY_STEP` bytes of it that have come
BODY_STEP = 1 << 20


class Deadline(HttpToolsProtocol):
    """uvicorn's protocol for HTTP/1.1 with deadlines for headers and bodies."""

    _timer: asyncio.TimerHandle | None = None
    _received = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait(HEADER_SECONDS)

    def on_headers_complete(self) -> None:
        self._received = 0
        self._wait(BODY_SECONDS)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        before, self._received = self._received // BODY_STEP, self._received + len(body)
        if self._received // BODY_STEP > before:
            self._wait(BODY_SECONDS)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop()
        super().on_message_complete()

    def _wait(self, seconds: float) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, self._close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()
