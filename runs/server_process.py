"""`kandinsky22 serve` as a process for the checks of this folder: started, asked, killed and started again."""

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ENDED = ("succeeded", "failed", "cancelled")
SERVE = (sys.executable, "-m", "kandinsky22", "serve")
PATIENCE = 300.0  # seconds that anything may take at most


class Answer(NamedTuple):
    """An HTTP answer. content: JSON values or bytes."""

    status: int
    content: Any
    headers: dict[str, str]


class Server:
    """A server that paints. command: without `--data` and `--port`. folder: of its data."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command, self.folder, self.url = command, folder, f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it paints."""
        places = ["--data", str(self.folder), "--port", str(self.port)]
        with tempfile.TemporaryFile() as log:
            self.process = subprocess.Popen([*self.command, *places], stderr=log)

            def is_ready() -> bool:
                if self.process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"the server did not start: {log.read().decode(errors='replace')}")
                with contextlib.suppress(OSError):
                    return urllib.request.urlopen(f"{self.url}/readyz", timeout=5).status == 200
                return False

            wait_until(is_ready)

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """The answer to a request whose body is bytes, or JSON values. Raises `OSError` if there is none."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        kind = {"content-type": "application/json"} if data else {}
        request = urllib.request.Request(self.url + path, data, kind | (headers or {}), method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                status, content, found = answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            status, content, found = error.code, error.read(), error.headers
        except http.client.HTTPException as error:  # the answer broke off
            raise ConnectionError(str(error)) from error
        is_json = found.get("content-type", "").startswith("application/json")
        return Answer(status, json.loads(content) if is_json else content, {k.lower(): v for k, v in found.items()})

    def job(self, job: str) -> dict[str, Any]:
        """A job when it has ended."""

        def ended() -> Any:
            values = self.call("GET", f"/api/v1/jobs/{job}").content
            return values if values["state"] in ENDED else None

        values: dict[str, Any] = wait_until(ended)
        return values

    def workers(self) -> list[int]:
        """The processes that paint: children of the web process that multiprocessing spawned."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").parent.parent.glob("*/children")
        found = []
        for thread in children:  # a process is listed as a child of the thread that started it
            with contextlib.suppress(OSError):
                found += [int(pid) for pid in thread.read_text().split()]
        return [pid for pid in found if b"spawn_main" in read_if_there(Path(f"/proc/{pid}/cmdline"))]

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def end(self) -> float:
        """SIGTERM; the seconds until it has ended."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        return time.monotonic() - start


@contextlib.contextmanager
def serving(command: Sequence[str], folder: Path | None = None) -> Iterator[Server]:
    """A server; without a folder, with an empty one."""
    with tempfile.TemporaryDirectory() as empty:
        server = Server(command, folder or Path(empty))
        try:
            yield server
        finally:
            if server.process.poll() is None:
                server.end()


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What a condition returns once that is true. Raises `TimeoutError`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"nothing happened for {seconds:.0f} s")
        time.sleep(0.02)
    return value


def read_if_there(path: Path) -> bytes:
    """A file's bytes, b"" if it is gone."""
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


def small_job(seed: int, steps: int = 2) -> dict[str, Any]:
    """The body of a job that is painted fast."""
    sizes = {"width": 64, "height": 64, "num_inference_steps": steps, "prior_num_inference_steps": 2}
    return {"options": {"prompt": "a red circle", "seed": seed, **sizes}}
