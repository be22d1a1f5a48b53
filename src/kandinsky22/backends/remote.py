"""A server of kandinsky22 as a backend: requests are painted there, and their events come back. Imports no torch.

It needs the standard library alone. A connection that breaks is resumed, also while the server is started again.
"""

import base64
import io
import json
import os
import queue
import secrets
import threading
from collections import deque
from collections.abc import Callable, Generator, Hashable, Mapping
from contextlib import closing, suppress
from typing import Any, Generic, Self, TypeVar
from urllib.parse import quote

from kandinsky22.backends import event_json
from kandinsky22.backends.http_client import Client, HttpError, Stopped
from kandinsky22.request import Embedding, Picture, Request
from kandinsky22.request.events import Event, Failed, Preview, is_last, stream

K = TypeVar("K", bound=Hashable)
SERVER, KEY = "KANDINSKY22_SERVER", "KANDINSKY22_SERVER_KEY"  # variables of the environment
API = "/api/v1"
CONNECTIONS = 8  # requests that are followed at a time; the others wait here


class Remote:
    """The protocol `Backend` over the interface `/api/v1` of `kandinsky22 serve`.

    url: such as "http://127.0.0.1:8022". key: what `kandinsky22 serve --add-key` printed. Pictures of requests are
    uploaded if the server lacks them. Raises `ValueError` for an address that is none; its methods raise `ValueError`
    where no server answers, or where it refuses the key.

    for event in stream(Remote("http://127.0.0.1:8022"), text2img("a red star", seed=1)):
        ...
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url, self.key = url, key
        Client(url, key).close()  # raises for a bad address

    @classmethod
    def of_environment(cls, url: str) -> Self:
        """The server at a URL, with the key in `KANDINSKY22_SERVER_KEY`, if any."""
        return cls(url, os.environ.get(KEY) or None)

    def stream(self, request: Request, preview: Preview | None = None) -> Generator[Event, None, None]:
        """The events of one request; see `request.events.stream`."""
        return stream(self, request, preview)

    def stream_many(
        self, requests: Mapping[K, Request], preview: Preview | None = None, *, together: bool = False
    ) -> Generator[tuple[K, Event], None, None]:
        """See `request.events.Backend`.

        together: makes no difference. Each request is a job that the server paints beside those of other clients, so
        its pictures are those it gets alone up to rounding, and not the same bytes each time.
        """
        follower: _Follower[K] = _Follower(self, requests, preview)
        try:
            yield from follower.events()
        finally:
            follower.stop()

    def resolve(self, request: Request) -> Request:
        """The request with every open field filled in. Raises `ValueError` for what cannot be carried out."""
        answer = self._ask("resolve", request)
        return Request.from_json(json.dumps(answer)).with_pictures(request.pictures)

    def describe(self, request: Request) -> dict[str, Any]:
        """What decides the pixels of a resolved request besides the request."""
        return dict(self._ask("describe", request))

    def embedding(self, request: Request) -> Embedding:
        """The image embedding of a resolved request's first picture."""
        answer = self._ask("embedding", request)
        return Embedding(base64.b64decode(answer["data"]), answer["encoder"], answer["made_by"])

    def _ask(self, method: str, request: Request) -> Any:
        with closing(Client(self.url, self.key)) as client:
            try:
                if method == "embedding":
                    upload_pictures(client, request)
                return client.json("POST", f"{API}/{method}", {"request": json.loads(request.to_json())})
            except HttpError as error:
                raise ValueError(error.message) from None


class _Follower(Generic[K]):
    """Submits requests and collects their events, a few at a time, each in a thread with a connection of its own."""

    def __init__(self, remote: Remote, requests: Mapping[K, Request], preview: Preview | None) -> None:
        self._left = deque(requests.items())
        self._count, self._preview = len(requests), preview
        self._inbox: queue.SimpleQueue[tuple[K, Event] | Exception] = queue.SimpleQueue()
        self._clients = [Client(remote.url, remote.key) for _ in range(min(CONNECTIONS, len(requests)))]
        self._threads = [threading.Thread(target=self._run, args=(client,), daemon=True) for client in self._clients]

    def events(self) -> Generator[tuple[K, Event], None, None]:
        """All events, by key. Raises what stops everything."""
        for thread in self._threads:
            thread.start()
        while self._count:
            item = self._inbox.get()
            if isinstance(item, Exception):
                raise item
            self._count -= is_last(item[1])
            yield item

    def stop(self) -> None:
        """Cancel what has not ended, and wait for the threads."""
        self._left.clear()
        for client in self._clients:
            client.stop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _run(self, client: Client) -> None:
        try:
            while True:
                try:
                    key, request = self._left.popleft()
                except IndexError:
                    return
                for event in self._follow(client, request):
                    self._inbox.put((key, event))
        except Stopped:
            pass
        except Exception as error:  # the thread that called raises it
            self._inbox.put(error)
        finally:
            client.close()

    def _follow(self, client: Client, request: Request) -> Generator[Event, None, None]:
        wish = None if self._preview is None else {"every": self._preview.every, "side": self._preview.side}
        body = {"request": json.loads(request.to_json()), "preview": wish}
        once = {"Idempotency-Key": secrets.token_hex(16)}  # a job is added once, even if its answer is lost
        try:
            upload_pictures(client, request)
        except HttpError as error:
            yield _refused(error)
            return
        try:
            job = client.json("POST", f"{API}/jobs", body, once)["id"]
            for sent in client.events(f"{API}/jobs/{quote(job)}/events"):
                values = json.loads(sent.data)
                if values["event"] == "result":
                    client.close()  # the stream, since pictures are read over the same connection
                event = _event(values, client.file)
                yield event
                if is_last(event):
                    client.close()
                    return
        except HttpError as error:
            yield _refused(error)
        except Stopped:
            with closing(client.again()) as other, suppress(HttpError, ValueError):  # it has ended, or the server has
                job = other.json("POST", f"{API}/jobs", body, once)["id"]  # known by its key, even if its id is not
                other.json("POST", f"{API}/jobs/{quote(job)}/cancel")
            raise


def _refused(error: HttpError) -> Failed:
    """The event of a request that the server does not accept. Raises `ValueError` if it would accept none."""
    if error.status in (401, 403, 404, 405):  # no server of ours, or a key that it does not know
        raise ValueError(error.message) from None
    return Failed("refused" if error.status in (400, 413) else "error", error.message)


def upload_pictures(client: Client, request: Request) -> None:
    """Upload the pictures of a request that the server lacks."""
    for picture in {picture.sha256: picture for picture in request.pictures.values()}.values():
        if picture.pixels is not None and not client.exists(f"{API}/uploads/{picture.sha256}"):
            client.upload(f"{API}/uploads", "picture.png", _png(picture))


def _png(picture: Picture) -> bytes:
    file = io.BytesIO()
    picture.image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _event(values: dict[str, Any], file: Callable[[str], bytes]) -> Event:
    """An event of the server. file: reads the file at a path."""
    preview = values.pop("preview", None)
    pictures = [] if preview is None else [base64.b64decode(preview)]
    if values["event"] == "result":
        pictures = [file(picture["url"]) for picture in values.pop("pictures")]
    return event_json.from_json(values, pictures)
