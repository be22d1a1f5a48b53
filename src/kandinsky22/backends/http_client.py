"""HTTP with the standard library alone: JSON, multipart and server-sent events over one connection."""

import http.client
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 330.0  # a server that has just started loads its model first
SILENT_SECONDS = 60.0  # a server sends something more often, also while a job waits
PATIENCE = 60.0  # seconds for which a server that has answered before may be gone, to be started again
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0  # seconds between attempts


class ServerEvent(NamedTuple):
    """A server-sent event."""

    id: str
    data: str


class HttpError(Exception):
    """An answer that is not a success. message: in one sentence. retry_after: seconds to wait, None: no use."""

    def __init__(self, status: int, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after


class Stopped(Exception):  # noqa: N818  # not an error: the caller asked for it
    """The client was stopped while it waited."""


class Client:
    """One connection to a server, for one thread; `stop` may be called by any. Raises `ValueError` for a bad URL."""

    def __init__(self, url: str, key: str | None) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise ValueError(f"a server's address looks like http://127.0.0.1:8022, got {url!r}")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.url, self.key, self._path = url, key, parts.path.rstrip("/")
        self._connection = kind(parts.hostname, port, timeout=CONNECT_SECONDS)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._stop = threading.Event()
        self._has_answered = False

    def again(self) -> "Client":
        """Another connection to the same server."""
        return Client(self.url, self.key)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def stop(self) -> None:
        """End what another thread waits for: it raises `Stopped`."""
        self._stop.set()
        connected = self._connection.sock
        if connected is not None:
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    def json(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """The answer to a request with a JSON body, as JSON values; it waits while the server is too busy."""
        content = None if body is None else json.dumps(body).encode()
        given = {**(headers or {}), **({"Content-Type": "application/json"} if body is not None else {})}
        return json.loads(self._patiently(lambda: self._call(method, path, content, given).read()))

    def file(self, path: str) -> bytes:
        """The file at a path."""
        return self._patiently(lambda: self._call("GET", path).read())

    def exists(self, path: str) -> bool:
        """Whether the server has something at a path."""
        try:
            self._patiently(lambda: self._call("HEAD", path).read())
        except HttpError as error:
            if error.status != 404:
                raise
            return False
        return True

    def upload(self, path: str, name: str, content: bytes) -> Any:
        """Send a file as the form field "file"; returns the answer as JSON values."""
        boundary = secrets.token_hex(16)
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return json.loads(self._patiently(lambda: self._call("POST", path, body, headers).read()))

    def events(self, path: str) -> Generator[ServerEvent, None, None]:
        """The server-sent events at a path; a connection that breaks is resumed after the last event.

        It does not end: the caller knows which event is the last one.
        """
        last = ""
        while True:
            headers = {"Last-Event-ID": last} if last else {}
            answer = self._patiently(partial(self._call, "GET", path, headers=headers))
            with suppress(http.client.HTTPException, OSError):
                self._set_timeout(SILENT_SECONDS)
                for event in _events(answer):
                    last = event.id or last
                    yield event
            self._connection.close()
            self.wait(FIRST_WAIT)

    def wait(self, seconds: float) -> None:
        """Wait. Raises `Stopped`."""
        if self._stop.wait(seconds):
            raise Stopped

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Repeat a call while the server is busy, or for a short time gone."""
        gone_since, wait = time.monotonic(), FIRST_WAIT
        while True:
            if self._stop.is_set():
                raise Stopped
            try:
                return call()
            except HttpError as error:
                if error.retry_after is None or (error.status != 429 and time.monotonic() - gone_since > PATIENCE):
                    raise
                seconds = error.retry_after
            except (http.client.HTTPException, OSError) as error:
                self._connection.close()
                if self._stop.is_set():
                    raise Stopped from None
                if not self._has_answered or time.monotonic() - gone_since > PATIENCE:
                    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                    raise ValueError(
                        f"no server answers at {self.url} ({reason}); start one with: kandinsky22 serve"
                    ) from None
                seconds, wait = wait, min(2 * wait, LONGEST_WAIT)
            self.wait(seconds)

    def _call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        if self._connection.sock is None:
            self._connection.timeout = CONNECT_SECONDS
            self._connection.connect()
            self._set_timeout(ANSWER_SECONDS)
        self._connection.request(method, self._path + path, body, {**self._headers, **(headers or {})})
        answer = self._connection.getresponse()
        self._has_answered = True
        if answer.status >= 300:
            raise _error(answer, answer.read())
        return answer

    def _set_timeout(self, seconds: float) -> None:
        if self._connection.sock is not None:
            self._connection.sock.settimeout(seconds)


def _error(answer: http.client.HTTPResponse, body: bytes) -> HttpError:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answers {answer.status} {answer.reason}; is this the address of kandinsky22 serve?"
    waits = answer.getheader("retry-after")
    return HttpError(answer.status, message, float(waits) if waits and waits.isdecimal() else None)


def _events(lines: http.client.HTTPResponse) -> Generator[ServerEvent, None, None]:
    """The events in a `text/event-stream`: https://html.spec.whatwg.org/multipage/server-sent-events.html."""
    event_id = ""
    data: list[str] = []
    while line := lines.readline():
        field, _, value = line.decode().rstrip("\r\n").partition(":")
        value = value.removeprefix(" ")
        if not field and data:
            yield ServerEvent(event_id, "\n".join(data))
            data = []
        elif field == "id":
            event_id = value
        elif field == "data":
            data.append(value)
