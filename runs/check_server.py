"""Checks a server as a whole: python runs/check_server.py [schema] [faults] [load] [disk] [memory] [offline].

schema   schemathesis over the whole OpenAPI: no answer of 5xx, and only documented ones
faults   kill -9 of processes that paint and of the web process: no job is lost, wrong, or painted twice
load     24 clients against a queue of 8: every one is served, or asked to wait and served then
disk     a disk that gets full, and a data folder that cannot be written: refused in a sentence, and works again after
memory   the memory of every process stays flat over many jobs
offline  no process connects to anything but this machine, under strace

`disk` mounts a small disk and needs root, `offline` needs strace. The long form, whose figures are in docs/serving.md:
python runs/check_server.py --cases 20000 --jobs 1000 --kills 200 --restarts 20 --memory-jobs 5000
"""

import argparse
import base64
import contextlib
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from server_process import ENDED, PATIENCE, SERVE, Answer, Server, read_if_there, serving, small_job, wait_until

from kandinsky22.imaging.images import Painting
from kandinsky22.request import Request

Paint = Callable[[Request], Image.Image]
CLIENTS = 8  # threads of a check that paints many pictures
NOTHING_LEFT = b"\0" * (1 << 20)


def check_schema(command: Sequence[str], cases: int) -> list[str]:
    """What schemathesis finds in at least so many cases, on a server that has a job, a picture and an upload."""
    found, tested, seed = [], 0, 0
    with serving(command) as server, tempfile.TemporaryDirectory() as folder:
        operations = sum(map(len, server.call("GET", "/openapi.json").content["paths"].values()))
        checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
        options = [
            *("--checks", checks, "--phases", "examples,coverage,fuzzing,stateful", "--no-color"),
            *("--request-timeout", "60", "--max-failures", "50"),
            *("--exclude-path-regex", "/events$"),  # of a job that is unknown it is an error, else it waits
        ]
        while tested < cases and not found:
            seed += 1
            _name_what_is_there(server, Path(folder) / "schemathesis.toml")
            examples = str(min(500, max(1, (cases - tested) // operations)))
            done = subprocess.run(
                [
                    *(Path(sys.executable).with_name("schemathesis"), "run", f"{server.url}/openapi.json"),
                    *(*options, "--max-examples", examples, "--seed", str(seed)),
                ],
                capture_output=True,
                text=True,
                check=False,
                cwd=folder,
            )
            print(done.stdout[-4000:], done.stderr[-2000:], file=sys.stderr)
            count = re.search(r"(\d+) generated", done.stdout)
            tested += int(count[1]) if count else 0
            if done.returncode or not count:
                found += [line for line in done.stdout.splitlines() if "- " in line] or ["schemathesis failed"]
        alive = server.call("GET", "/livez").status == 200
        print(f"{tested} cases of {operations} operations", file=sys.stderr)
    return found + ([] if alive else ["the server died"])


def _name_what_is_there(server: Server, path: Path) -> None:
    """Write schemathesis's settings: ids of a new job, picture and upload for the routes that need one."""
    job = server.job(server.call("POST", "/api/v1/jobs", small_job(1)).content["id"])
    url = server.call("POST", "/v1/images/generations", {"prompt": "", "size": "64x64", "response_format": "url"})
    name = url.content["data"][0]["url"].rpartition("/")[2]
    boundary, picture = b"--b\r\n", server.call("GET", job["pictures"][0]["url"]).content
    head = b'Content-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    form = boundary + head + picture + b"\r\n--b--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=b"}
    upload = server.call("POST", "/api/v1/uploads", form, kind).content["id"]
    ids = {"job": job["id"], "uuid": job["id"], "picture": job["pictures"][0]["id"], "upload": upload, "name": name}
    lines = [f'"path.{parameter}" = "{value}"' for parameter, value in ids.items()]
    path.write_text("\n".join(["[parameters]", *lines]), encoding="utf-8")


def check_faults(command: Sequence[str], jobs: int, kills: int, restarts: int, paint: Paint | None = None) -> list[str]:
    """Jobs that are lost, pictures with other pixels than those painted directly, and ids that are used twice, while
    processes are killed.

    A process that paints is killed each time that a share of the jobs has ended, so that no job is killed three times,
    after which it may fail. paint: paints directly; None: the model in the box does.
    """
    rng, done, made = random.Random(0), threading.Semaphore(0), {}
    with serving(command) as server, ThreadPoolExecutor(CLIENTS) as threads:

        def live(seed: int) -> tuple[str, str, bytes]:
            """A job's id, its state and its picture, by a client that repeats what gets no answer."""
            body, once = small_job(seed), {"Idempotency-Key": f"job {seed}"}
            while (answer := _persistently(server, "POST", "/api/v1/jobs", body, once)).status in (429, 503):
                time.sleep(0.2)
            job = answer.content["id"]
            while True:
                values = _persistently(server, "GET", f"/api/v1/jobs/{job}").content
                if values["state"] in ENDED:
                    break
                time.sleep(0.05)
            urls = [picture["url"] for picture in values["pictures"]]
            file = _persistently(server, "GET", urls[0]).content if len(urls) == 1 else b""
            done.release()
            return job, f"{values['state']}: {values['error']}, {len(urls)} pictures", file

        futures = [threads.submit(live, seed) for seed in range(jobs)]
        plan = sorted([(k * jobs // kills, "worker") for k in range(kills)])
        plan = sorted(plan + [((2 * k + 1) * jobs // (2 * restarts), "web") for k in range(restarts)])
        ended = killed = 0
        for after, what in plan:
            for _ in range(after - ended):
                done.acquire()
            ended = max(ended, after)
            time.sleep(rng.uniform(0, 0.1))
            if what == "web":
                server.kill()
                server.start()
            else:
                pid = rng.choice(wait_until(server.workers))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        made = {seed: future.result() for seed, future in enumerate(futures)}
        print(f"killed {killed} processes that paint and {restarts} times the web process", file=sys.stderr)
        problems = [f"job {k} {state}" for k, (_, state, file) in made.items() if not file]
        if (ids := len({job for job, _, _ in made.values()})) < jobs:
            problems.append(f"{jobs} jobs have {ids} ids")
        files = [*server.folder.rglob("*.png")]
        left = [*server.folder.rglob("*.part*")]
        if len(files) != jobs or left:
            problems.append(f"there are {len(files)} files of {jobs} pictures, and {len(left)} half written")
        stored = Counter(hashlib.sha256(file.read_bytes()).digest() for file in files)
        changed = [k for k, (_, _, file) in made.items() if not stored[hashlib.sha256(file).digest()]]
        problems += [f"the picture of job {k} changed after it was finished" for k in changed]
        if (seconds := server.end()) > 10:
            problems.append(f"the server needed {seconds:.0f} s to end")
    return problems + _compare({k: file for k, (_, _, file) in made.items() if file}, paint or _paint_directly())


def _persistently(
    server: Server, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
) -> Answer:
    """An answer, also of a server that is being started again."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return server.call(method, path, body, headers)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _paint_directly() -> Paint:
    """Paints with the model in the box, in this process."""
    import torch

    from kandinsky22 import Kandinsky
    from kandinsky22.request.events import Result

    torch.set_num_threads(1)
    kandinsky = Kandinsky.load()

    def paint(request: Request) -> Image.Image:
        *_, last = kandinsky.stream(request)
        assert isinstance(last, Result)
        return last.pictures[0].image

    return paint


def _compare(files: dict[int, bytes], paint: Paint) -> list[str]:
    """The pictures that differ by more than rounding, 1 of 255, from those painted directly."""
    differences = {}
    for k, file in files.items():
        painting = Painting.from_png(file)
        direct = paint(painting.request)
        pairs = zip(painting.image.tobytes(), direct.convert("RGB").tobytes(), strict=True)
        differences[k] = max(abs(a - b) for a, b in pairs)
    print(
        f"largest difference from direct painting, of pictures: {dict(Counter(differences.values()))}", file=sys.stderr
    )
    return [f"job {k} has other pixels than painted directly" for k, most in differences.items() if most > 1]


def check_load(command: Sequence[str], clients: int = 24) -> list[str]:
    """Answers to many clients at once other than a picture and "try again in so many seconds", which they do."""
    counts: Counter[int] = Counter()
    with serving([*command, "--max-waiting", "8"]) as server, ThreadPoolExecutor(clients) as threads:

        def paint(seed: int) -> str | None:
            body = {"prompt": "a red circle", "size": "64x64", "seed": seed, "num_inference_steps": 10}
            while True:
                answer = server.call("POST", "/v1/images/generations", body)
                counts[answer.status] += 1
                if answer.status != 429:
                    return None if answer.status == 200 else f"{answer.status}: {answer.content}"
                if not answer.headers.get("retry-after", "").isdecimal():
                    return "a 429 without retry-after"
                time.sleep(int(answer.headers["retry-after"]))

        start = time.monotonic()
        found = list(filter(None, threads.map(paint, range(clients))))
        print(f"answers: {dict(counts)}, all served after {time.monotonic() - start:.1f} s", file=sys.stderr)
    return found


def check_disk(command: Sequence[str]) -> list[str]:
    """What goes wrong on a disk that gets full while a job runs, and with a start on one that is read-only."""
    found: list[str] = []

    def expect(what: str, is_so: bool) -> None:
        if not is_so:
            found.append(f"not so: {what}")

    with _small_disk(300) as disk, serving(command, disk) as server:
        first = server.job(server.call("POST", "/api/v1/jobs", small_job(1)).content["id"])
        url = first["pictures"][0]["url"]
        running = server.call("POST", "/api/v1/jobs", small_job(2, steps=200)).content["id"]
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while file.write(NOTHING_LEFT):
                file.flush()
        expect(
            "a job that ends on a full disk fails with a sentence", "disk" in (server.job(running)["error"] or "disk")
        )
        refused = server.call("POST", "/api/v1/jobs", small_job(3))
        expect("a job is refused while the disk is full", refused.status == 507)
        expect("a picture is readable while the disk is full", server.call("GET", url).status == 200)
        filler.unlink()
        again = server.job(server.call("POST", "/api/v1/jobs", small_job(4)).content["id"])
        expect("a job is painted when there is room again", again["state"] == "succeeded")
        server.end()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        done = subprocess.run([*SERVE, "--data", disk, "--port", "1"], capture_output=True, text=True, check=False)
        message = done.stderr.strip()
        expect("a server does not start in a read-only folder", done.returncode == 2)
        expect(f"it says so in one sentence, and not {message!r}", str(disk) in message and "\n" not in message)
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        server.start()
        after = server.job(server.call("POST", "/api/v1/jobs", small_job(6)).content["id"])
        expect("a job is painted when the folder is writable again", after["state"] == "succeeded")
    return found


@contextlib.contextmanager
def _small_disk(megabytes: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "small", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def check_memory(command: Sequence[str], jobs: int) -> list[str]:
    """The processes that are larger after all jobs than after a fifth of them, by more than 5% and 8 MB."""
    with serving(command) as server, ThreadPoolExecutor(CLIENTS) as threads:

        def paint(seed: int) -> None:
            while (answer := server.call("POST", "/api/v1/jobs", small_job(seed, steps=1))).status == 429:
                time.sleep(0.5)
            server.job(answer.content["id"])

        def memory() -> dict[str, float]:
            pids = {"web": server.process.pid} | {f"worker {k}": pid for k, pid in enumerate(server.workers())}
            return {name: _resident_megabytes(pid) for name, pid in pids.items()}

        samples, step = [], max(1, jobs // 10)
        for first in range(0, jobs, step):
            list(threads.map(paint, range(first, min(jobs, first + step))))
            samples.append(memory())
            print(f"{min(jobs, first + step)} jobs: {samples[-1]}", file=sys.stderr)
    before, after = samples[len(samples) // 5], samples[-1]
    return [
        f"{name} grew from {size:.0f} to {after[name]:.0f} MB"
        for name, size in before.items()
        if after[name] > max(size * 1.05, size + 8)
    ]


def _resident_megabytes(pid: int) -> float:
    pages = int(read_if_there(Path(f"/proc/{pid}/statm")).split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def check_offline(command: Sequence[str]) -> list[str]:
    """Addresses of other machines that any process of a server connects or sends to while it is used."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "trace"
        traced = ["strace", "-D", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg", "-o", str(log), *command]
        with serving(traced, Path(folder) / "data") as server:
            job = server.job(server.call("POST", "/api/v1/jobs", small_job(1)).content["id"])
            picture = server.call("GET", job["pictures"][0]["url"]).content
            server.call("POST", "/v1/images/generations", {"prompt": "a star", "size": "64x64", "quality": "low"})
            server.call("POST", "/sdapi/v1/txt2img", {"prompt": "a star", "width": 64, "height": 64, "steps": 2})
            server.call("POST", "/sdapi/v1/png-info", {"image": base64.b64encode(picture).decode()})
            url = {"prompt": "", "images": [{"image_url": "http://192.0.2.1/a.png"}]}
            refused = server.call("POST", "/v1/images/edits", url)
            for path in ("/docs", "/openapi.json", "/metrics", "/api/v1/gallery", "/key/api/v1/pipelines"):
                server.call("GET", path)
        lines = log.read_text(errors="replace").splitlines()
    print(f"{len(lines)} calls of connect, sendto and sendmsg", file=sys.stderr)
    addresses = [
        match[1] for line in lines for match in re.finditer(r'inet_(?:addr|pton\(AF_INET6, )\(?"([^"]+)"', line)
    ]
    outward = {address for address in addresses if not address.startswith("127.") and address != "::1"}
    found = [f"connected to {address}" for address in sorted(outward)]
    return found + ([] if refused.status == 400 else ["a URL that a client sent was not refused"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks, print what they find, and return 1 if that is something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("schema", "faults", "load", "disk", "memory", "offline")
    parser.add_argument("checks", nargs="*", choices=[*names, []], default=list(names))
    parser.add_argument("--cases", type=int, default=1000, help="of schemathesis, in all")
    parser.add_argument("--jobs", type=int, default=50, help="of faults")
    parser.add_argument("--kills", type=int, default=10, help="of processes that paint")
    parser.add_argument("--restarts", type=int, default=2, help="of the web process, by kill -9")
    parser.add_argument("--memory-jobs", type=int, default=500)
    parser.add_argument("--serve", default=" ".join([*SERVE, "--workers", "1"]), help="the command of the server")
    options = parser.parse_args(arguments)
    command, failed = options.serve.split(), False
    for check in options.checks:
        start = time.monotonic()
        found = {
            "schema": lambda: check_schema(command, options.cases),
            "faults": lambda: check_faults(command, options.jobs, options.kills, options.restarts),
            "load": lambda: check_load(command),
            "disk": lambda: check_disk(command),
            "memory": lambda: check_memory(command, options.memory_jobs),
            "offline": lambda: check_offline(command),
        }[check]()
        seconds = time.monotonic() - start
        print(f"{check}, {seconds:.0f} s: {'nothing wrong' if not found else ''}", *found, sep="\n  ", flush=True)
        failed = failed or bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
