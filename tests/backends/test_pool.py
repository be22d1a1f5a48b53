"""The process pool: every request gets an outcome, whatever happens to the processes; and a pool is a backend."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kandinsky22 import text2img
from kandinsky22.backends.pool import LoadKandinsky, Pool
from kandinsky22.backends.work_units import Failure, Finished, Outcome, UnitPainter
from kandinsky22.request import Request
from kandinsky22.request.events import Cancelled, Failed, Notice, Preview, Progress, Queued, Result, Started
from tests.backends.fakes import MADE_BY, FakeBackend, LoadFake, units_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def tests_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes unpickle `LoadFake`, so they must find this package."""
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool(LoadFake(tmp_path), processes=2) as pool:
        yield pool


def requests_for(*prompts: str) -> dict[str, Request]:
    return {f"{k} {prompt}": text2img(prompt, seed=k) for k, prompt in enumerate(prompts)}


def painter(pool: Pool, batch: int = 3) -> UnitPainter:
    return UnitPainter(pool, batch, pool.processes)


def paint(painter: UnitPainter, requests: dict[str, Request]) -> dict[str, Outcome[str]]:
    outcomes = list(painter.paint(units_of(requests, painter.batch)))
    assert Counter(outcome.key for outcome in outcomes) == Counter([*requests])
    return {outcome.key: outcome for outcome in outcomes}


def pixels(outcomes: dict[str, Outcome[str]]) -> dict[str, bytes]:
    finished = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, Finished)}
    return {key: outcome.result.pictures[0].image.tobytes() for key, outcome in finished.items()}


def workers(outcomes: dict[str, Outcome[str]]) -> set[int]:
    """The ids of the processes that painted."""
    return {outcome.worker for outcome in outcomes.values() if isinstance(outcome, Finished)}


def has_ended(pid: int) -> bool:
    """Whether a process ends within a minute; a zombie has ended."""
    for _ in range(600):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_pool_paints_the_pixels_of_one_process(pool: Pool, tmp_path: Path) -> None:
    requests = requests_for(*"abcdefgh")
    outcomes = paint(painter(pool), requests)
    assert pixels(outcomes) == pixels(paint(UnitPainter(FakeBackend(tmp_path), 3), requests))
    assert os.getpid() not in workers(outcomes) and 1 <= len(workers(outcomes)) <= pool.processes


@pytest.mark.parametrize("prompt", ["poison", "die"])
def test_a_request_that_always_fails_is_tried_three_times_and_the_others_are_painted(
    pool: Pool, tmp_path: Path, prompt: str
) -> None:
    outcomes = paint(painter(pool), requests_for("a", prompt, "c", "d"))
    failure = outcomes.pop(f"1 {prompt}")
    error = {"poison": "KeyError: 'poison'", "die": "the process that painted it died (SIGKILL), 3 times"}[prompt]
    assert failure == Failure(f"1 {prompt}", error, 3)
    assert len(pixels(outcomes)) == 3
    deaths = {"poison": 1, "die": 3}[prompt]  # a pool begins a job again itself before it fails
    assert FakeBackend(tmp_path).tried.count(prompt) == 3 * deaths


def test_a_question_is_answered_while_every_process_paints_a_work_unit(pool: Pool, tmp_path: Path) -> None:
    units = [pool.stream_many({k: text2img("until asked", seed=k)}, together=True) for k in range(2)]
    for unit in units:
        while not isinstance(next(unit)[1], Progress):
            pass
    assert pool.resolve(text2img("a", seed=3)).seed == 3
    (tmp_path / "asked").touch()
    assert all(isinstance([event for _, event in unit][-1], Result) for unit in units)


def test_a_process_that_died_once_changes_no_pixel(pool: Pool, tmp_path: Path) -> None:
    requests = requests_for("a", "b", "die once", "d", "e")
    outcomes = paint(painter(pool), requests)
    (tmp_path / "died").touch()
    assert pixels(outcomes) == pixels(paint(UnitPainter(FakeBackend(tmp_path), 3), requests))


def test_killing_workers_from_outside_loses_no_request(pool: Pool, tmp_path: Path) -> None:
    requests = requests_for(*(f"picture {k}" for k in range(60)))
    outcomes = []
    for outcome in painter(pool).paint(units_of(requests, 3)):
        outcomes.append(outcome)
        if len(outcomes) in (6, 30) and isinstance(outcome, Finished):
            os.kill(outcome.worker, signal.SIGKILL)
    assert Counter(outcome.key for outcome in outcomes) == Counter([*requests])
    assert pixels({o.key: o for o in outcomes}) == pixels(paint(UnitPainter(FakeBackend(tmp_path), 3), requests))


def test_a_pool_streams_and_describes_a_request(pool: Pool) -> None:
    events = list(pool.stream(text2img("a ring", seed=3)))
    assert [type(event) for event in events] == [Queued, Started, Notice, *[Progress] * 4, Result]
    assert all(event.preview is None for event in events if isinstance(event, Progress))
    result = events[-1]
    assert isinstance(result, Result) and result.pictures[0].request.seed == 3
    request = pool.resolve(text2img("a ring", seed=3))
    assert (request, pool.describe(request)) == (result.request, MADE_BY)
    watched = list(pool.stream(text2img("a ring"), Preview()))
    assert any(isinstance(event, Progress) and event.preview for event in watched)


def test_a_stream_starts_again_with_the_same_seed_when_its_process_dies(pool: Pool) -> None:
    request = pool.resolve(text2img("die once"))
    events = list(pool.stream(request))
    assert [event.request for event in events if isinstance(event, Started)] == [request] * 2
    assert Notice("the process that painted it died (SIGKILL); the request starts again") in events
    assert isinstance(events[-1], Result)
    with pytest.raises(RuntimeError, match=r"SIGKILL.*3 times"):
        list(pool.stream(text2img("die")))


def test_requests_join_a_process_that_paints(tmp_path: Path) -> None:
    """One of ten minutes does not make it wait: both are there in the same process, step by step."""
    with Pool(LoadFake(tmp_path), processes=1) as pool:
        with closing(pool.stream_many({k: text2img("a ring", seed=k) for k in range(3)})) as first:
            started = next(event for _, event in first if isinstance(event, Started))
            second = list(pool.stream(text2img("a star")))
        process = next(event.process for event in second if isinstance(event, Started))
        assert process == started.process != os.getpid()


def test_a_request_that_kills_its_process_costs_nobody_else(tmp_path: Path) -> None:
    """It is by itself from its second try on, and so are those that were with it."""
    with Pool(LoadFake(tmp_path), processes=1) as pool:
        requests = {str(k): text2img("a ring", seed=k) for k in range(5)} | {"die": text2img("die")}
        ends = {key: event for key, event in pool.stream_many(requests) if isinstance(event, Result | Failed)}
    failed = ends.pop("die")
    assert failed == Failed("error", "the process that painted it died (SIGKILL), 3 times")
    assert len(ends) == 5 and all(isinstance(event, Result) for event in ends.values())
    assert FakeBackend(tmp_path).tried.count("die") == 3
    assert FakeBackend(tmp_path).tried.count("a ring") <= 2 * 5  # no innocent one begins a third time


def test_a_session_takes_requests_one_by_one_and_cancels_one(pool: Pool) -> None:
    session = pool.session()
    session.submit("waits", text2img("wait"))
    while not isinstance(session.receive()[1], Started):
        pass
    session.submit("ring", text2img("a ring", seed=1))
    session.cancel("waits")
    events = []
    while len([event for _, event in events if isinstance(event, Result | Cancelled)]) < 2:
        events.append(session.receive())
    assert ("waits", Cancelled()) in events
    assert not [key for key, _ in events[events.index(("waits", Cancelled())) :] if key == "waits"][1:]
    session.close()


def test_a_refused_request_keeps_its_message_and_a_built_in_type(pool: Pool) -> None:
    with pytest.raises(ValueError, match="the request is refused; ask for another"):
        list(pool.stream(text2img("refused")))
    with pytest.raises(ValueError, match="refused"):
        pool.resolve(text2img("refused"))
    with pytest.raises(RuntimeError, match="KeyError: 'poison'"):
        list(pool.stream(text2img("poison")))
    assert isinstance(list(pool.stream(text2img("a ring")))[-1], Result)


def test_closing_a_generator_cancels_its_jobs_and_keeps_the_processes(pool: Pool) -> None:
    before = workers(paint(painter(pool), requests_for(*"abcdef")))
    assert len(before) == 2
    with closing(pool.stream(text2img("a ring"))) as events:  # type: ignore[type-var]
        assert isinstance(next(events), Queued)
    with closing(painter(pool).paint(units_of(requests_for(*"abcdefghijkl"), 3))) as outcomes:
        next(outcomes)
    assert workers(paint(painter(pool), requests_for(*"abcdef"))) <= before  # one may still end a step


def test_many_threads_may_use_a_pool_at_once(pool: Pool) -> None:
    results: list[object] = []
    threads = [
        threading.Thread(target=lambda k=k: results.extend(list(pool.stream(text2img("a ring", seed=k)))[-1:]))
        for k in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seeds = [r.request.seed for r in results if isinstance(r, Result) and r.request.seed is not None]
    assert sorted(seeds) == [*range(6)]


def test_closing_a_pool_ends_its_processes(tmp_path: Path) -> None:
    with Pool(LoadFake(tmp_path), processes=1) as pool:
        events = pool.stream_many({0: text2img("a ring"), 1: text2img("wait")})
        started = next(event for _, event in events if isinstance(event, Started))
    assert has_ended(started.process)
    with pytest.raises(ValueError, match="closed"):
        list(events)  # to those who wait, too
    with pytest.raises(ValueError, match="closed"):
        list(pool.stream(text2img("a ring")))
    pool.close()


def test_streams_of_a_closed_pool_can_be_closed(tmp_path: Path) -> None:
    with Pool(LoadFake(tmp_path), processes=1) as pool:
        events = pool.stream_many({0: text2img("a ring")})
        next(events)
    events.close()


def test_worker_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    """Also in the middle of a step."""
    code = (
        "from pathlib import Path; from tests.backends.fakes import LoadFake, units_of\n"
        "from kandinsky22 import text2img; from kandinsky22.backends.pool import Pool\n"
        "from kandinsky22.backends.work_units import UnitPainter\n"
        "if __name__ == '__main__':\n"
        f"  pool = Pool(LoadFake(Path({str(tmp_path)!r})), processes=2)\n"
        "  units = units_of({seed: text2img('a ring', seed=seed) for seed in (1, 2)}, 1)\n"
        "  outcomes = list(UnitPainter(pool, 1, 2).paint(units))\n"
        "  print(*{outcome.worker for outcome in outcomes}, flush=True)\n"
        "  list(pool.stream(text2img('wait')))\n"
    )
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        while "wait" not in FakeBackend(tmp_path).tried:
            time.sleep(0.05)
        parent.kill()
    assert len(pids) == 2
    assert all(map(has_ended, pids))


@pytest.mark.parametrize(
    ("mode", "error", "message"),
    [("fails", ValueError, "there is no such model"), ("dies", ChildProcessError, "died 3 times while it loaded")],
)
def test_a_model_that_cannot_be_loaded_raises_in_the_parent(
    tmp_path: Path, mode: str, error: type[Exception], message: str
) -> None:
    with Pool(LoadFake(tmp_path, mode), processes=1) as pool:
        for _ in range(2):
            with pytest.raises(error, match=message):
                list(pool.stream(text2img("a ring")))


def test_less_than_one_process_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="from 1 up, got 0"):
        Pool(LoadFake(tmp_path), processes=0)


def test_a_model_in_a_worker_paints_the_pixels_of_one_in_this_process(tiny_model: Path) -> None:
    """To the last bit, whatever was painted before, also where a text's embedding could have come from the cache."""
    import torch

    threads = torch.get_num_threads()
    requests = {
        f"{k}": text2img(f"a {colour} circle", negative_prompt="a star", seed=0)
        for k, colour in enumerate(("red", "blue", "red"))
    }
    try:
        local = UnitPainter(LoadKandinsky(str(tiny_model))(), 2)
        first, second = paint(local, requests), paint(local, dict([*requests.items()][2:]))
        assert pixels(first)["2"] == pixels(second)["2"]
        with Pool.of(str(tiny_model), processes=1, threads=1) as pool:
            assert pixels(paint(painter(pool, 2), requests)) == pixels(first)
    finally:
        torch.set_num_threads(threads)
