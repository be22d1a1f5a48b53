"""A hub on this machine that Hugging Face's client can talk to, with a log of requests."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from kandinsky22.checkpoints.catalog import File, Repository

LARGE = 4096  # bytes from which a file is served under its SHA-256, from another host


@dataclass
class LocalHub:
    """Repositories by name, each with the content of files by path.

    gated: repositories that need a login. breaks_after: bytes of a large file after which the connection is closed,
    once. sent: bytes of large files sent so far; log: the requests.
    """

    repositories: Mapping[str, Mapping[str, bytes]]
    revision: str = "c0ffee" * 6 + "c0ff"
    gated: set[str] = field(default_factory=set)
    breaks_after: int | None = None
    sent: int = 0
    log: list[str] = field(default_factory=list)
    endpoint: str = ""
    elsewhere: str = ""

    def repository(self, name: str) -> Repository:
        """A repository with all its files, as the catalog lists the published ones."""
        files = self.repositories[name].items()
        listed = (File(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in files)
        return Repository(name, self.revision, tuple(listed))

    def large(self, sha256: str) -> bytes:
        """A large file's content."""
        contents = (content for files in self.repositories.values() for content in files.values())
        return next(content for content in contents if hashlib.sha256(content).hexdigest() == sha256)


@contextmanager
def serving(hub: LocalHub) -> Iterator[LocalHub]:
    """The hub, answering at its `endpoint`; large files are on another host, as with the real one."""

    class Bound(Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    hub.elsewhere = f"http://localhost:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    served: LocalHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.respond(body=False)

    def do_GET(self) -> None:
        self.respond(body=True)

    def respond(self, *, body: bool) -> None:
        hub, path = self.served, self.path.partition("?")[0].strip("/")
        hub.log.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if path.startswith("content/"):
            assert "Authorization" not in self.headers, "the token was sent to another host"
            self.send_large(path.removeprefix("content/"), body)
            return
        name = "/".join(path.removeprefix("api/models/").split("/")[:2])
        if name in hub.gated and "Authorization" not in self.headers:
            self.send_content(
                401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to it is restricted."}, body
            )
        elif name not in hub.repositories:
            self.send_content(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
        elif path.startswith("api/models/"):
            self.send_content(
                200, json.dumps(self.model_info(name)).encode(), {"Content-Type": "application/json"}, body
            )
        else:
            _, _, file = path.partition("/resolve/")[2].partition("/")
            content = hub.repositories[name][file]
            digest = hashlib.sha256(content).hexdigest()
            headers = {"X-Repo-Commit": hub.revision, "ETag": f'"{digest[:40]}"'}
            if len(content) < LARGE:
                self.send_content(200, content, headers, body)
            else:
                elsewhere = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
                self.send_content(
                    302, b"", {**headers, **elsewhere, "Location": f"{hub.elsewhere}/content/{digest}"}, body
                )

    def model_info(self, name: str) -> dict[str, object]:
        """What the hub's API returns for a repository."""
        files = self.served.repository(name).files
        lfs = {file.path: {"sha256": file.sha256, "size": file.bytes, "pointerSize": 1} for file in files}
        siblings = [
            {"rfilename": f.path, "size": f.bytes, "blobId": "0", **({"lfs": lfs[f.path]} if f.bytes >= LARGE else {})}
            for f in files
        ]
        return {
            "id": name,
            "sha": self.served.revision,
            "siblings": siblings,
            "private": False,
            "downloads": 0,
            "tags": [],
        }

    def send_large(self, sha256: str, body: bool) -> None:
        """A large file, or the rest of one."""
        content, hub = self.served.large(sha256), self.served
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        rest = content[start:]
        if hub.breaks_after is not None:
            headers["Content-Length"] = str(len(rest))
            rest, hub.breaks_after = rest[: hub.breaks_after], None
            self.close_connection = True
        hub.sent += len(rest) if body else 0
        self.send_content(206 if start else 200, rest, headers, body)

    def send_content(self, status: int, content: bytes, headers: Mapping[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""
