"""What batching gives: requests that arrive at a server, carried out in four ways by the included model.

    python benchmarks/batching.py [--max-rows 8,16,32] [--json out.json]       about five minutes on two idle cores

64 requests of 5 to 50 steps arrive at random, 1.2 times as fast as they can be painted one at a time, or all at once.
Ways in one process, with one thread, are timed in processor time and do not wait for arrivals: where nothing is left to
do, the clock is set forward to the next one. So their figures do not depend on what else the machine does, and two of
them run side by side. The pool is timed by the wall clock, alone, and by the processor time of its busiest process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

REQUESTS, STEPS, PRIOR_STEPS, GROUP = 64, (5, 50), 10, 8
OVERLOAD = 1.2  # requests that arrive in the time in which one is painted alone
SEED = 0
REPEATS = 3


class Clock:
    """Processor time of this process since it was made, plus what was skipped."""

    def __init__(self) -> None:
        self._start, self.wall_start = time.process_time(), time.perf_counter()

    def now(self) -> float:
        """Seconds."""
        return time.process_time() - self._start

    def skip_to(self, when: float) -> None:
        """Set the clock forward."""
        self._start -= max(0.0, when - self.now())


def requests() -> list[Any]:
    """The requests, always the same."""
    from kandinsky22 import text2img
    from kandinsky22.compositions import caption, sample

    rng = np.random.default_rng(SEED)
    steps = rng.integers(STEPS[0], STEPS[1] + 1, REQUESTS).tolist()
    prompts = [caption(sample(rng)) for _ in steps]
    return [
        text2img(prompt, seed=1000 * k, num_inference_steps=n, prior_num_inference_steps=PRIOR_STEPS)
        for k, (prompt, n) in enumerate(zip(prompts, steps, strict=True))
    ]


def arrivals(mean: float) -> list[float]:
    """When requests arrive, for a mean time between them; 0 is all at once."""
    return np.random.default_rng(SEED + 1).exponential(mean, REQUESTS).cumsum().tolist() if mean else [0.0] * REQUESTS


def model() -> Any:
    """The included model, warm."""
    from kandinsky22 import Kandinsky

    kandinsky = Kandinsky.load(device="cpu")
    kandinsky("a red circle", num_inference_steps=2, prior_num_inference_steps=2)
    return kandinsky


def summary(latencies: Sequence[float], end: float, cpu: float, wall: float) -> dict[str, Any]:
    """The figures of one way. end: when the last picture was finished, by its clock."""
    p50, p95 = np.quantile(latencies, [0.5, 0.95]).tolist()
    return {"rate": REQUESTS / end, "p50": p50, "p95": p95, "cpu": cpu / REQUESTS, "wall": wall / REQUESTS}


def one(*_: str) -> dict[str, Any]:
    """One request at a time: how long each takes. A queue follows from that for any arrivals."""
    kandinsky, clock, seconds = model(), Clock(), []
    for request in requests():
        begin = clock.now()
        kandinsky(request)
        seconds.append(clock.now() - begin)
    return {"seconds": seconds, "wall": time.perf_counter() - clock.wall_start}


def queue(seconds: Sequence[float], wall: float, mean: float) -> dict[str, Any]:
    """What one request at a time gives for arrivals, the oldest first."""
    end, latencies = 0.0, []
    for arrival, duration in zip(arrivals(mean), seconds, strict=True):
        end = max(end, arrival) + duration
        latencies.append(end - arrival)
    return summary(latencies, end, sum(seconds), wall)


def groups(mean: str) -> dict[str, Any]:
    """Groups of up to 8 of those that have arrived, each delivered when its last picture is finished."""
    kandinsky, todo, when = model(), requests(), arrivals(float(mean))
    clock, latencies, cpu = Clock(), [], time.process_time()
    first = 0
    while first < REQUESTS:
        clock.skip_to(when[first])
        group = [k for k in range(first, min(first + GROUP, REQUESTS)) if when[k] <= clock.now()]
        for _ in kandinsky.stream_many({k: todo[k] for k in group}):
            pass
        latencies += [clock.now() - when[k] for k in group]
        first += len(group)
    return summary(latencies, clock.now(), time.process_time() - cpu, time.perf_counter() - clock.wall_start)


def batch(mean: str, max_rows: str) -> dict[str, Any]:
    """One batch that requests join when they arrive."""
    from kandinsky22.request.events import Result

    kandinsky, todo, when = model(), requests(), arrivals(float(mean))
    clock, latencies, cpu = Clock(), [], time.process_time()
    submitted = 0
    with closing(kandinsky.batch(max_rows=int(max_rows))) as running:
        while submitted < REQUESTS or len(running):
            if not len(running):
                clock.skip_to(when[submitted])
            while submitted < REQUESTS and when[submitted] <= clock.now():
                running.submit(submitted, todo[submitted])
                submitted += 1
            for key, event in running.step():
                if isinstance(event, Result):
                    latencies.append(clock.now() - when[key])
    return summary(latencies, clock.now(), time.process_time() - cpu, time.perf_counter() - clock.wall_start)


def pool(mean: str) -> dict[str, Any]:
    """A process for each core, each with a batch. busiest: pictures a second of the busiest process's processor time,
    which is the rate on cores that do nothing else."""
    from kandinsky22.backends.pool import Pool, cores
    from kandinsky22.request.events import Result, Started

    todo, when, latencies = requests(), arrivals(float(mean)), []
    with Pool.of("box", processes=cores(), device="cpu", threads=1) as processes:
        warm_up = processes.stream_many(dict(enumerate(todo[: 2 * cores()])))
        used = {event.process: 0.0 for _, event in warm_up if isinstance(event, Started)}
        before = {process: processor_time(process) for process in used}
        session = processes.session()
        with ThreadPoolExecutor(1) as thread:
            start = time.perf_counter()

            def submit() -> None:
                for k in range(REQUESTS):
                    time.sleep(max(0.0, when[k] - (time.perf_counter() - start)))
                    session.submit(k, todo[k])

            thread.submit(submit)
            while len(latencies) < REQUESTS:
                key, event = session.receive()
                if isinstance(event, Result):
                    latencies.append(time.perf_counter() - start - when[key])
            wall = time.perf_counter() - start
        used = {process: processor_time(process) - before[process] for process in used}
    return {**summary(latencies, wall, sum(used.values()), wall), "busiest": REQUESTS / max(used.values())}


def processor_time(process: int) -> float:
    """The seconds of processor time that a process has used, as Linux counts them."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def beside(*_: str) -> dict[str, Any]:
    """A request of 5 steps that arrives while one of 50 is sampled, against its time alone; and cancelling."""
    from kandinsky22 import text2img
    from kandinsky22.request.events import Progress, Result

    kandinsky = model()
    short = lambda seed: text2img("a red star", seed=seed, num_inference_steps=5, prior_num_inference_steps=PRIOR_STEPS)  # noqa: E731
    long = text2img("three blue circles", seed=1, num_inference_steps=50, prior_num_inference_steps=PRIOR_STEPS)
    alone, together, idle = [], [], []
    for repeat in range(REPEATS):
        clock = Clock()
        kandinsky(short(2 + repeat))
        alone.append(clock.now())
        with closing(kandinsky.batch()) as running:
            running.submit("long", long)
            while not any(isinstance(event, Progress) and event.stage == "decoder" for _, event in running.step()):
                pass
            clock = Clock()
            running.submit("short", short(12 + repeat))
            while not any(key == "short" and isinstance(event, Result) for key, event in running.step()):
                pass
            together.append(clock.now())
            clock, steps = Clock(), 0
            running.cancel("long")
            while len(running):
                running.step()
                steps += 1
            idle.append((steps, clock.now()))
    return {
        "alone": statistics.median(alone),
        "beside": statistics.median(together),
        "cancel_steps": max(steps for steps, _ in idle),
        "cancel_seconds": statistics.median(seconds for _, seconds in idle),
    }


def memory(pictures: str, side: str) -> dict[str, Any]:
    """The growth of the peak of resident memory while pictures are painted, beside the planner's forecast."""
    from kandinsky22 import Kandinsky, text2img
    from kandinsky22.engine import memory as planner
    from turns import peak

    kandinsky, n, pixels = Kandinsky.load(device="cpu"), int(pictures), int(side)
    first, networks = kandinsky.stored.first, kandinsky.stored.prior.networks
    unread = kandinsky.networks.bytes_to_load([*networks.values(), *first.networks.values()])
    sizes = [(1, pixels, pixels)] * n
    forecast = planner.needed(first.unet.config, first.movq.config, sizes, unread, kandinsky.networks.dtype.itemsize)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    todo = {
        k: text2img(
            "a red star", seed=k, height=pixels, width=pixels, num_inference_steps=2, prior_num_inference_steps=2
        )
        for k in range(n)
    }
    for _ in kandinsky.stream_many(todo, max_rows=n):
        pass
    return {"pictures": n, "side": pixels, "peak": peak() - before, "forecast": forecast}


def preview(*_: str) -> dict[str, Any]:
    """The median time of a small picture of latents."""
    import torch

    decoder = model().decoder("decoder")
    latent_preview = decoder.load_latent_preview()
    result = {}
    for cells in (decoder.shape(1, 128, 128)[-1], 64):
        z, seconds = torch.randn(4, cells, cells), []
        for _ in range(100):
            begin = time.perf_counter()
            latent_preview.png(z, 256)
            seconds.append(time.perf_counter() - begin)
        result[str(cells)] = statistics.median(seconds)
    return result


def published(*_: str) -> dict[str, Any]:
    """Operations at 512 x 512, guided, counted on the meta device: of a picture with 25 and 50 steps, and of the
    U-Net's call for several pictures."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from kandinsky22.checkpoints import full_size
    from kandinsky22.engine.cost import work
    from kandinsky22.models.unet import UNet

    sizes = full_size.TEXT_ENCODER, full_size.PRIOR, full_size.UNET, full_size.MOVQ
    picture = work(*sizes, height=512, width=512).of_a_picture(25, 50)
    counted = {}
    with torch.device("meta"):
        unet = UNet(full_size.UNET)
        weights = sum(parameter.numel() for parameter in unet.parameters())
        for pictures in (1, 2, 4, 8, 16, 32):
            conditioned = unet.condition(torch.empty(2 * pictures, full_size.UNET.encoder_hid_dim))
            z, t, guided = torch.empty(pictures, 4, 64, 64), torch.empty(2 * pictures), torch.arange(pictures)
            with FlopCounterMode(display=False) as counter:
                unet(z, t, conditioned, guided)
            counted[str(pictures)] = counter.get_total_flops()
    return {"picture": picture, "weights": weights, "calls": counted}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function for function in (one, groups, batch, pool, beside, memory, preview, published)
}


def measure(part: str, *arguments: object) -> dict[str, Any]:
    """The figures of a part, measured in a process of its own with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, __file__, "--part", part, *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def report(max_rows: Sequence[int]) -> Iterator[tuple[str, Any]]:
    """Run everything; yields named figures as they are measured."""
    yield "beside", measure("beside")
    for pictures, side in ((1, 128), (16, 128), (1, 1024)):
        yield f"memory {pictures} {side}", measure("memory", pictures, side)
    yield "preview", measure("preview")
    yield "published", measure("published")
    with ThreadPoolExecutor(2) as threads:
        single = threads.submit(measure, "one")
        all_at_once = {"groups": threads.submit(measure, "groups", 0)}
        all_at_once |= {f"batch {rows}": threads.submit(measure, "batch", 0, rows) for rows in max_rows}
        seconds, wall = single.result()["seconds"], single.result()["wall"]
        mean = statistics.mean(seconds) / OVERLOAD
        random = {"groups": threads.submit(measure, "groups", mean)}
        random |= {f"batch {rows}": threads.submit(measure, "batch", mean, rows) for rows in max_rows}
        for name, futures, between in (("all at once", all_at_once, 0.0), ("at random", random, mean)):
            yield f"{name}, one", queue(seconds, wall, between)
            for way, future in futures.items():
                yield f"{name}, {way}", future.result()
    for name, between in (("all at once", 0.0), ("at random", mean)):
        yield f"{name}, pool", measure("pool", between)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-rows", default="16", help="pictures at a time in a batch: one number, or several")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        import torch

        torch.set_num_threads(1)
        print(json.dumps(PARTS[options.part[0]](*options.part[1:])))
        return
    figures = {}
    for name, values in report([int(rows) for rows in options.max_rows.split(",")]):
        figures[name] = values
        print(name, json.dumps(values), flush=True)
    print("\n| arrivals, way | pictures/s | p50, s | p95, s | processor s a picture | wall s a picture |")
    print("|---|---|---|---|---|---|")
    for name, values in figures.items():
        if "rate" in values:
            cells = [f"{values[key]:.3g}" for key in ("rate", "p50", "p95", "cpu", "wall")]
            print(f"| {name} | {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
