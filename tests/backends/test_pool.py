"""The pool: every request is painted or told of, whatever becomes of its processes; and it is a backend like others."""

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
from kandinsky22.backends.local import Here
from kandinsky22.backends.pool import Loading, Pool
from kandinsky22.backends.work_units import Failure, Finished, Outcome, Pack, Painter, cut
from kandinsky22.request import Request
from kandinsky22.request.events import Notice, Progress, Result, Started
from tests.backends.fakes import MADE_BY, Hiring, Obedient, Plain

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes find these tests."""
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool(Hiring(tmp_path), processes=2, batch=3) as pool:
        yield pool


def requests(*prompts: str) -> dict[str, Request]:
    return {f"{k} {prompt}": text2img(prompt, seed=k) for k, prompt in enumerate(prompts)}


def painted(painter: Painter, wanted: dict[str, Request]) -> dict[str, Outcome[str]]:
    outcomes = list(painter.paint(cut(wanted.items(), painter.batch)))
    assert Counter(outcome.key for outcome in outcomes) == Counter([*wanted])
    return {outcome.key: outcome for outcome in outcomes}


def pixels(outcomes: dict[str, Outcome[str]]) -> dict[str, bytes]:
    done = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, Finished)}
    return {key: outcome.result.pictures[0].image.tobytes() for key, outcome in done.items()}


def gone(process: int) -> bool:
    """Whether a process, ours or one that nobody waits for, has ended."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_packs_are_of_one_size_and_in_order() -> None:
    sizes = [64, 128, 64, 64, 128, 64]
    wanted = [(k, text2img("a ring", width=size)) for k, size in enumerate(sizes)]
    assert [[*pack.requests] for pack in cut(wanted, 3)] == [[0, 2, 3], [1, 4], [5]]


def test_a_pack_is_tried_whole_again_and_then_one_by_one() -> None:
    pack = Pack(requests("a", "b"))
    (again,), lost = pack.failed("no")
    assert (again.requests, lost) == (pack.requests, [])
    alone, lost = again.failed("no")
    assert ([[*one.requests] for one in alone], lost) == ([["0 a"], ["1 b"]], [])
    assert alone[0].failed("never") == ([], [Failure("0 a", "never", 3)])


def test_processes_paint_what_one_paints_in_turn(pool: Pool, tmp_path: Path) -> None:
    wanted = requests(*"abcdefgh")
    outcomes = painted(pool, wanted)
    assert pixels(outcomes) == pixels(painted(Here(Obedient(tmp_path), 3), wanted))
    workers = {outcome.worker for outcome in outcomes.values() if isinstance(outcome, Finished)}
    assert os.getpid() not in workers and 1 <= len(workers) <= 2
    assert isinstance(pool, Painter)


@pytest.mark.parametrize("prompt", ["poison", "die"])
def test_what_cannot_be_painted_is_tried_three_times_and_costs_only_itself(
    pool: Pool, tmp_path: Path, prompt: str
) -> None:
    outcomes = painted(pool, requests("a", prompt, "c", "d"))
    failure = outcomes.pop(f"1 {prompt}")
    reason = {"poison": "KeyError: 'poison'", "die": "the process that painted it died (SIGKILL)"}[prompt]
    assert failure == Failure(f"1 {prompt}", reason, 3)
    assert len(pixels(outcomes)) == 3
    assert Obedient(tmp_path).tried.count(prompt) == 3


def test_a_process_that_died_once_changes_no_pixel(pool: Pool, tmp_path: Path) -> None:
    wanted = requests("a", "b", "die once", "d", "e")
    outcomes = painted(pool, wanted)
    (tmp_path / "died").touch()
    assert pixels(outcomes) == pixels(painted(Here(Obedient(tmp_path), 3), wanted))


def test_processes_that_are_killed_from_without_lose_nothing(pool: Pool, tmp_path: Path) -> None:
    wanted = requests(*(f"picture {k}" for k in range(60)))
    outcomes = []
    for outcome in pool.paint(cut(wanted.items(), 3)):
        outcomes.append(outcome)
        if len(outcomes) in (6, 30) and isinstance(outcome, Finished):
            os.kill(outcome.worker, signal.SIGKILL)
    assert Counter(outcome.key for outcome in outcomes) == Counter([*wanted])
    assert pixels({o.key: o for o in outcomes}) == pixels(painted(Here(Obedient(tmp_path), 3), wanted))


def test_it_is_a_backend(pool: Pool) -> None:
    events = list(pool.stream(text2img("a ring", seed=3)))
    assert [type(event) for event in events] == [Started, Notice, *[Progress] * 3, Result]
    assert all(event.preview is None for event in events if isinstance(event, Progress))
    result = events[-1]
    assert isinstance(result, Result) and result.pictures[0].request.seed == 3
    request, made_by = pool.about(text2img("a ring", seed=3))
    assert (request, made_by) == (result.request, MADE_BY)


def test_a_stream_begins_anew_with_the_same_seed_when_its_process_dies(pool: Pool) -> None:
    events = list(pool.stream(text2img("die once")))
    first, second = (event.request for event in events if isinstance(event, Started))
    assert first == second and first.seed is not None
    assert Notice("the process that painted it died (SIGKILL); it begins anew") in events
    assert isinstance(events[-1], Result)
    with pytest.raises(ChildProcessError, match=r"SIGKILL.*3 times"):
        list(pool.stream(text2img("die")))


def test_errors_arrive_as_they_are(pool: Pool) -> None:
    with pytest.raises(ValueError, match="the request is refused; ask for another"):
        list(pool.stream(text2img("refused")))
    with pytest.raises(ValueError, match="refused"):
        pool.about(text2img("refused"))
    for prompt, sentence in (("poison", "KeyError: 'poison'"), ("unreachable", "ConnectionResetError: unreachable")):
        with pytest.raises(RuntimeError, match=sentence):
            list(pool.stream(text2img(prompt)))
    assert isinstance(list(pool.stream(text2img("a ring")))[-1], Result)


def test_closing_cancels_and_the_processes_stay(pool: Pool) -> None:
    painted(pool, requests(*"abcdef"))  # a pack each, so both have loaded: one that has not is ended
    processes = {worker.process for worker in pool._workers}
    with closing(pool.stream(text2img("a ring"))) as events:  # type: ignore[type-var]
        assert isinstance(next(events), Started)
    with closing(pool.paint(cut(requests(*"abcdefghijkl").items(), 3))) as outcomes:
        next(outcomes)
    assert len(painted(pool, requests(*"abc"))) == 3
    assert {worker.process for worker in pool._workers} == processes


def test_many_threads_may_ask(pool: Pool) -> None:
    results: list[object] = []
    threads = [
        threading.Thread(target=lambda k=k: results.extend(list(pool.stream(text2img("a ring", seed=k)))[-1:]))
        for k in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(r.request.seed for r in results if isinstance(r, Result) and r.request.seed is not None) == [
        *range(6)
    ]


def test_closing_ends_the_processes(tmp_path: Path) -> None:
    with Pool(Hiring(tmp_path), processes=1) as pool:
        outcomes = pool.paint(cut(requests("a", "wait").items(), 1))
        next(outcomes)
        (process,) = (worker.process for worker in pool._workers)
    outcomes.close()
    assert gone(process)
    with pytest.raises(ValueError, match="closed"):
        list(pool.stream(text2img("a ring")))


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Also in the middle of a step."""
    code = (
        "from pathlib import Path; from tests.backends.fakes import Hiring; from kandinsky22.backends.pool import Pool;"
        "from kandinsky22 import text2img; from kandinsky22.backends.work_units import Pack\n"
        "if __name__ == '__main__':\n"
        f"  pool = Pool(Hiring(Path({str(tmp_path)!r})), processes=2)\n"
        "  list(pool.stream(text2img('a ring')))\n"
        "  print(*(worker.process for worker in pool._workers), flush=True)\n"
        "  list(pool.stream(text2img('wait')))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True) as parent:
        assert parent.stdout is not None
        processes = [int(word) for word in parent.stdout.readline().split()]
        while "wait" not in Obedient(tmp_path).tried:
            time.sleep(0.05)
        parent.kill()
    assert len(processes) == 2
    assert all(map(gone, processes))


@pytest.mark.parametrize(
    ("how", "error", "sentence"),
    [("fails", ValueError, "there is no such model"), ("dies", ChildProcessError, "died 3 times while it loaded")],
)
def test_a_model_that_cannot_be_loaded_is_told_of(
    tmp_path: Path, how: str, error: type[Exception], sentence: str
) -> None:
    with Pool(Hiring(tmp_path, how), processes=1) as pool:
        for _ in range(2):
            with pytest.raises(error, match=sentence):
                list(pool.stream(text2img("a ring")))


def test_bad_numbers_are_refused(tmp_path: Path) -> None:
    for numbers in ({"processes": 0}, {"processes": 1, "batch": 0}):
        with pytest.raises(ValueError, match="from 1 up, got 0"):
            Pool(Hiring(tmp_path), **numbers)
    with pytest.raises(ValueError, match="one request at a time, got 2"):
        Here(Plain(tmp_path), 2)


def test_the_real_model_in_a_process_is_the_real_model_here(tiny_model: Path) -> None:
    """To the last bit, whatever was painted before, where the seeds of texts repeat."""
    import torch

    threads = torch.get_num_threads()
    wanted = {
        f"{k}": text2img(f"a {word} circle", negative_prompt="a star", seed=0)
        for k, word in enumerate(("red", "blue", "red"))
    }
    try:
        here = Here(Loading(str(tiny_model))(), 2)
        first, second = painted(here, wanted), painted(here, dict([*wanted.items()][2:]))
        assert pixels(first)["2"] == pixels(second)["2"]
        with Pool.of(str(tiny_model), processes=1, batch=2, threads=1) as pool:
            assert pixels(painted(pool, wanted)) == pixels(first)
    finally:
        torch.set_num_threads(threads)
