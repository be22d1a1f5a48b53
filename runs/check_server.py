"""Checks a server as a whole: python runs/check_server.py [schema] [faults] [load] [speed] (default: all of them).

schema   schemathesis over the whole OpenAPI: no answer of 5xx, and only documented ones
faults   kill -9 of the processes that paint and of the web process: no job is lost, wrong or painted twice
load     24 clients against a queue of 8: every request is painted or refused with the time to wait
speed    pictures a second, p50 and p99 with 1, 4 and 16 clients, against a plain FastAPI program around diffusers

The figures in docs/serving.md: python runs/check_server.py --cases 20000 --jobs 1000 --kills 200 --restarts 20
"""

import argparse
import base64
import contextlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from kandinsky22.imaging.images import Painting

ENDED = ("succeeded", "failed", "cancelled")
STEPS, PRIOR_STEPS = 10, 5
SERVE = (sys.executable, "-m", "kandinsky22", "serve")
CHECKS = ("schema", "faults", "load", "speed")


class Server:
    """A server as a process. command: without `--data` and `--port`."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command, self.folder, self.url = command, folder, f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it paints."""
        self.process = subprocess.Popen([*self.command, "--data", str(self.folder), "--port", str(self.port)])
        while not self._is_ready():
            if self.process.poll() is not None:
                raise SystemExit("the server did not start")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.url}/readyz", timeout=5).status == 200
        return False

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any, dict[str, str]]:
        """The status, JSON or bytes, and headers of an answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"} if data else {}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                status, content, found = answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            status, content, found = error.code, error.read(), dict(error.headers)
        is_json = found.get("content-type", "").startswith("application/json")
        return status, json.loads(content) if is_json else content, found

    def workers(self) -> list[int]:
        """The processes that paint: children of the web process that multiprocessing spawned."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        found = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        return [pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


@contextlib.contextmanager
def serving(command: Sequence[str]) -> Iterator[Server]:
    """A server with an empty data folder."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(command, Path(folder))
        try:
            yield server
        finally:
            if server.process.poll() is None:
                server.kill()


def body_of(seed: int) -> dict[str, Any]:
    """A job of a few steps."""
    options = {"num_inference_steps": STEPS, "prior_num_inference_steps": PRIOR_STEPS}
    return {"options": {"prompt": "a red circle", "seed": seed, **options}}


def check_schema(command: Sequence[str], cases: int) -> list[str]:
    """What schemathesis finds in about `cases` cases."""
    with serving(command) as server:
        paths = server.call("GET", "/openapi.json")[1]["paths"]
        operations = sum(map(len, paths.values()))
        checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
        each = max(1, cases // operations)
        done = subprocess.run(
            [
                *(Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/openapi.json"),
                *("--checks", checks, "--max-examples", str(each), "--phases", "fuzzing", "--no-color"),
                *("--request-timeout", "60", "--max-response-time", "60"),
                *("--exclude-path-regex", "/events$"),  # of a job that is unknown it is an error, else it waits
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=60 + cases,
        )
        print(done.stdout[-2000:], file=sys.stderr)
        found = [] if done.returncode == 0 else [line for line in done.stdout.splitlines() if "- " in line]
        status = server.call("GET", "/livez")[0]
    return found + ([] if status == 200 else ["the server died"])


def check_faults(command: Sequence[str], jobs: int, kills: int, restarts: int) -> list[str]:
    """Jobs that are lost, pictures with wrong pixels, and ids that are painted twice, while processes are killed."""
    rng, expected = random.Random(0), {}
    with serving(command) as server:
        made: list[str] = []
        plan = sorted(rng.sample(range(jobs), min(jobs, restarts)))
        kill_at = Counter(rng.choices(range(jobs), k=kills))
        for k in range(jobs):
            while True:
                status, answer, _ = server.call("POST", "/api/v1/jobs", body_of(k))
                if status == 202:
                    break
                time.sleep(0.2)
            made.append(answer["id"])
            for _ in range(kill_at[k]):
                for pid in server.workers()[:1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            if k in plan:
                server.kill()
                server.start()
        problems = [f"{len(made) - len(set(made))} ids are used twice"] if len(set(made)) < len(made) else []
        for k, job in enumerate(made):
            while (values := server.call("GET", f"/api/v1/jobs/{job}")[1])["state"] not in ENDED:
                time.sleep(0.2)
            if values["state"] != "succeeded":
                problems.append(f"job {k} {values['state']}: {values['error']}")
            elif len(values["pictures"]) != 1:
                problems.append(f"job {k} has {len(values['pictures'])} pictures")
            else:
                expected[k] = Painting.from_png(server.call("GET", values["pictures"][0]["url"])[1])
        files = [*server.folder.rglob("*.png")]
        if len(files) != len(expected):
            problems.append(f"there are {len(files)} files of {len(expected)} pictures")
        for k, painting in expected.items():  # in a quiet server, each alone
            body = {"request": json.loads(painting.request.to_json()), "hidden": True}
            alone = _painted(server, body)
            if _difference(painting.image, alone.image) > 1:
                problems.append(f"job {k} has other pixels than alone")
        server.end()
    return problems


def _painted(server: Server, body: dict[str, Any]) -> Painting:
    _, answer, _ = server.call("POST", "/api/v1/jobs", body)
    while (values := server.call("GET", f"/api/v1/jobs/{answer['id']}")[1])["state"] not in ENDED:
        time.sleep(0.02)
    return Painting.from_png(server.call("GET", values["pictures"][0]["url"])[1])


def _difference(one: Image.Image, two: Image.Image) -> int:
    return max(abs(a - b) for a, b in zip(one.tobytes(), two.tobytes(), strict=True))


def check_load(command: Sequence[str], clients: int = 24) -> list[str]:
    """Answers of a server with a queue of 8 to many clients at once, other than success and "try again"."""
    with serving(command) as server, ThreadPoolExecutor(clients) as threads:
        answers = list(threads.map(lambda k: server.call("POST", "/api/v1/jobs", body_of(k)), range(clients)))
        statuses = Counter(status for status, _, _ in answers)
        print(dict(statuses), file=sys.stderr)
        hints = [headers.get("retry-after") for status, _, headers in answers if status == 429]
    return [f"{n} answers of {s}" for s, n in statuses.items() if s not in (202, 429)] + (
        ["a 429 without retry-after"] if None in hints else []
    )


def measure(url: str, path: str, clients: int, pictures: int) -> dict[str, float]:
    """Pictures a second, and the median and 99th percentile of the seconds of one, through OpenAI's interface."""

    def paint(seed: int) -> float:
        start = time.perf_counter()
        body = {"prompt": "a red circle", "size": "128x128", "seed": seed, "response_format": "b64_json"}
        body |= {"num_inference_steps": STEPS, "prior_steps": PRIOR_STEPS, "prior_num_inference_steps": PRIOR_STEPS}
        request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            Image.open(io.BytesIO(base64.b64decode(json.load(answer)["data"][0]["b64_json"]))).load()
        return time.perf_counter() - start

    with ThreadPoolExecutor(clients) as threads:
        start = time.perf_counter()
        seconds = sorted(threads.map(paint, range(pictures)))
        total = time.perf_counter() - start
    last = len(seconds) - 1
    return {"per second": pictures / total, "p50": seconds[last // 2], "p99": seconds[round(last * 0.99)]}


def diffusers_app(folder: str) -> Any:
    """The plain program: one pipeline of diffusers behind one route, one request at a time."""
    import torch
    from diffusers import KandinskyV22CombinedPipeline
    from fastapi import Body, FastAPI

    pipe = KandinskyV22CombinedPipeline.from_pretrained(folder)
    lock, app = threading.Lock(), FastAPI()

    @app.post("/v1/images/generations")
    def generate(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008  # as FastAPI documents it
        with lock:
            image = pipe(
                body["prompt"],
                height=128,
                width=128,
                num_inference_steps=body["num_inference_steps"],
                prior_num_inference_steps=body["prior_num_inference_steps"],
                generator=torch.Generator().manual_seed(body["seed"]),
            ).images[0]
        file = io.BytesIO()
        image.save(file, "PNG")
        return {"data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]}

    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks, print what they find, and return 1 if that is something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", choices=[*CHECKS, []], default=list(CHECKS))
    parser.add_argument("--cases", type=int, default=1000, help="of schemathesis, in all")
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=4, help="of processes that paint")
    parser.add_argument("--restarts", type=int, default=1, help="of the web process, by kill -9")
    parser.add_argument("--pictures", type=int, default=32, help="for each number of clients")
    parser.add_argument("--diffusers", metavar="URL", help="of the plain program, to compare with (see diffusers_app)")
    parser.add_argument("--serve", default=" ".join(SERVE), help="the command of the server")
    options = parser.parse_args(arguments)
    command, failed = options.serve.split(), False
    for check in options.checks:
        if check == "speed":
            with serving(command) as server:
                for clients in (1, 4, 16):
                    for url in filter(None, (server.url, options.diffusers)):
                        figures = measure(url, "/v1/images/generations", clients, options.pictures)
                        print(url, clients, {name: round(value, 3) for name, value in figures.items()})
            continue
        found = {
            "schema": lambda: check_schema(command, options.cases),
            "faults": lambda: check_faults(command, options.jobs, options.kills, options.restarts),
            "load": lambda: check_load([*command, "--max-waiting", "8"]),
        }[check]()
        print(f"{check}: {'nothing wrong' if not found else ''}", *found, sep="\n  ")
        failed = failed or bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
