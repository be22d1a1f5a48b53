"""Checks work on a Ray cluster: python runs/check_ray.py [bulk] [serve] [overhead] [limits].

bulk      600 captions of the picture world by Ray Data on two nodes. Five actors, a whole node, and the process that
          started the work are killed, which is then started again: each picture is there once, with the pool's bytes.
serve     300 requests to two replicas of Ray Serve, of which one is killed, and both are replaced by other weights
          meanwhile: no request fails.
overhead  the time of a picture by a pool's processes, by Ray actors, and by Ray Data.
limits    what the process that starts the work spends on a picture of 768 x 768 and on a work unit.

Needs Linux and the extra `ray`. The figures are in docs/scale.md.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import ray
import ray.data
import torch
from PIL import Image
from ray.cluster_utils import Cluster
from safetensors.torch import load_file, save_file

from kandinsky22 import text2img
from kandinsky22.backends import ray_data
from kandinsky22.backends.pool import LoadKandinsky, Pool
from kandinsky22.backends.ray import RayBackend, Reserve
from kandinsky22.backends.ray_serve import RayServe, Replicas, deploy
from kandinsky22.backends.work_units import Finished, UnitPainter, WorkUnit
from kandinsky22.checkpoints import catalog, locate
from kandinsky22.evaluation import world
from kandinsky22.imaging.images import save_image
from kandinsky22.request import Request
from kandinsky22.request.events import Failed, Notice, Result, Started, is_last

BULK, SERVED, TIMED, UNITS = 600, 300, 160, 10_000
AT_ONCE = 16  # requests to Ray Serve
ACTOR = "ray::MapWorker"  # how Ray names the processes of Ray Data's actors
COMMAND = [sys.executable, "-m", "kandinsky22", "batch"]
OPTIONS = ["--batch", "8", "--threads", "1", "--processes", "2", "--quiet"]


def check_bulk(folder: Path) -> list[str]:
    """What is wrong with the pictures of a run that was disturbed."""
    lines = folder / "lines.jsonl"
    size = {"width": 64, "height": 64}
    items = world.captions(BULK).items
    lines.write_text("".join(json.dumps({"prompt": i.caption, "seed": i.seed, **size}) + "\n" for i in items))
    subprocess.run([*COMMAND, str(lines), *OPTIONS, "--output", str(folder / "pool")], check=True)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    output = folder / "ray"
    command = [*COMMAND, str(lines), *OPTIONS, "--output", str(output), "--backend", "ray"]
    command += ["--address", cluster.address]
    driver = subprocess.Popen(command)
    for painted in (60, 120, 180, 240, 300):
        wait_until(lambda painted=painted: count(output) >= painted, driver)  # type: ignore[misc]
        os.kill(wait_for_actors()[0], signal.SIGKILL)
        print(f"killed an actor at {count(output)} pictures")
    wait_until(lambda: count(output) >= 360, driver)
    cluster.remove_node(node, allow_graceful=False)
    print(f"killed a node at {count(output)} pictures")
    cluster.add_node(num_cpus=1)
    wait_until(lambda: count(output) >= 450, driver)
    driver.kill()
    driver.wait()
    print(f"killed the process that started the work at {count(output)} pictures")
    subprocess.run(command, check=True)
    cluster.shutdown()
    expected, found = (files(folder / name) for name in ("pool", "ray"))
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} has other bytes" for name in expected.keys() & found.keys() if expected[name] != found[name]]
    if found.keys() - expected.keys() or len(found) != BULK:
        problems.append(f"{len(found)} pictures")
    return problems


def check_serve(folder: Path) -> list[str]:
    """What is wrong with the answers to requests while a replica is killed and the weights are replaced."""
    other = folder / "other"
    shutil.copytree(box(), other)
    path = next((other / "decoder").rglob("unet/*.safetensors"))
    weights = load_file(path)
    save_file({name: value * torch.tensor(1.01, dtype=value.dtype) for name, value in weights.items()}, path)
    served = RayServe.of(catalog.BOX, replicas=Replicas(2, 2))
    session, problems = served.session(), []
    first = served.describe(served.resolve(text2img("a ring", seed=0)))["weights"]
    requests = {str(k): text2img("a red ring", seed=k, width=64, height=64) for k in range(SERVED)}
    waiting, results, killed, replaced = iter(requests.items()), {}, False, False
    for key, request in [next(waiting) for _ in range(AT_ONCE)]:
        session.submit(key, request)
    restarted = 0
    while len(results) + len(problems) < SERVED:
        key, event = session.receive()
        restarted += isinstance(event, Notice) and "starts again" in event.text
        if isinstance(event, Started) and not killed and len(results) >= SERVED // 4:
            os.kill(event.process, signal.SIGKILL)
            killed = True
        if not is_last(event):
            continue
        if isinstance(event, Result):
            results[key] = event.pictures[0].made_by["weights"]
        else:
            problems.append(f"request {key}: {event.error if isinstance(event, Failed) else event}")
        if not replaced and len(results) >= SERVED // 2:
            print(f"replacing the weights at {len(results)} pictures")
            deploy(LoadKandinsky(str(other)), Replicas(2, 2), Reserve())
            replaced = True
        for key, request in (following,) if (following := next(waiting, None)) else ():
            session.submit(key, request)
    by_first = sum(weights == first for weights in results.values())
    print(f"{len(results)} painted, {by_first} by the first weights; {restarted} requests began again")
    if not 0 < by_first < SERVED:
        problems.append("the weights were not replaced")
    served.close()
    ray.shutdown()
    return problems


def check_overhead(folder: Path) -> list[str]:
    """Prints the time of a picture by each backend; the first unit, which waits for the model, is not counted."""
    requests: dict[int, Request] = {k: text2img("a red ring", seed=k, width=64, height=64) for k in range(TIMED)}
    units = [WorkUnit({k: requests[k] for k in range(first, first + 8)}) for first in range(0, TIMED, 8)]
    for name, painter in painters():
        with painter as painting:
            times: list[float] = []
            for outcome in painting.paint(units):
                assert isinstance(outcome, Finished)
                times.append(time.perf_counter())
            print(f"{name}: {1000 * (times[-1] - times[15]) / (TIMED - 16):.1f} ms a picture")
    ray.shutdown()
    return []


def check_limits(folder: Path) -> list[str]:
    """Print the processor time of the calling process for a picture and for a work unit."""
    noise = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, (768, 768), mode="bicubic")[0].permute(1, 2, 0)
    grain = torch.randn(768, 768, 3, generator=torch.Generator().manual_seed(1))
    image = Image.fromarray((255 * smooth + 2 * grain).clamp(0, 255).byte().numpy())
    picture, pickled = folder / "picture.png", pickle.dumps(image)
    figures = {
        "write a picture": processor_time(lambda: save_image(image, picture)),
        "read a picture from an actor": processor_time(lambda: pickle.loads(pickled)),
        "hash a file": processor_time(lambda: hashlib.sha256(picture.read_bytes())),
    }
    for name, seconds in figures.items():
        print(f"{name}: {1e3 * seconds:.2f} ms")
    print(f"a picture has {len(pickled) / 1e6:.2f} MB, its file {picture.stat().st_size / 1e6:.2f} MB", flush=True)
    ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
    try:
        before, start = memory(), time.perf_counter()
        units = ray.data.from_items([{"unit": bytes(1000)} for _ in range(UNITS)], override_num_blocks=UNITS)
        seconds, size = time.perf_counter() - start, memory() - before
        print(
            f"prepare a unit: {1e3 * seconds / units.count():.2f} ms, {size / UNITS / 1e3:.1f} kB of memory", flush=True
        )
    finally:
        ray.shutdown()
    return []


def processor_time(work: Callable[[], object]) -> float:
    """The median of seven calls, in seconds."""
    times = []
    for _ in range(7):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return sorted(times)[3]


def memory() -> int:
    """The resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def painters() -> "Iterator[tuple[str, contextlib.AbstractContextManager[UnitPainter]]]":
    """What paints, by name: two processes of one thread each."""

    @contextlib.contextmanager
    def painter(pool: Pool) -> Iterator[UnitPainter]:
        with pool:
            yield UnitPainter(pool, 8, 2)

    for turn in range(3):
        yield f"pool, turn {turn}", painter(Pool.of(catalog.BOX, processes=2, threads=1))
        yield f"Ray actors, turn {turn}", painter(RayBackend.of(catalog.BOX, processes=2))
        yield f"Ray Data, turn {turn}", ray_data.start(catalog.BOX, processes=2, batch=8)


def box() -> Path:
    """The folder of the included model."""
    return next(iter(locate.part_folders(catalog.BOX).values())).parent


def count(output: Path) -> int:
    """How many pictures there are."""
    return len(list(output.glob("*.png")))


def files(output: Path) -> dict[str, bytes]:
    """The pictures by name."""
    return {path.name: path.read_bytes() for path in output.rglob("*.png")}


def wait_until(is_true: Callable[[], bool], driver: "subprocess.Popen[bytes]") -> None:
    """Wait for something while the work goes on. Raises `ChildProcessError` if it ends before."""
    while not is_true():
        if driver.poll() is not None:
            raise ChildProcessError("the work ended too early")
        time.sleep(0.1)


def wait_for_actors() -> list[int]:
    """The ids of the processes of Ray Data's actors, once there is one."""
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if path.read_text().startswith(ACTOR):
                    found.append(int(path.parent.name))
        if found:
            return found
        time.sleep(0.1)


CHECKS = {"bulk": check_bulk, "serve": check_serve, "overhead": check_overhead, "limits": check_limits}


def main() -> int:
    """Run the checks that are named, or all; returns 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", choices=[*CHECKS, []], metavar="CHECK")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    problems: Counter[str] = Counter()
    for name in parser.parse_args().checks or CHECKS:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = CHECKS[name](Path(folder))
        print(f"{name}, {time.perf_counter() - start:.0f} s: {'nothing wrong' if not found else found[:10]}")
        problems[name] += len(found)
    return int(problems.total() > 0)


if __name__ == "__main__":
    sys.exit(main())
