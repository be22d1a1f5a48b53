"""Training at scale: two processes learn what one learns, and neither kills nor full disks change what comes of it."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kandinsky22.training import checkpoints, run, supervisor
from kandinsky22.training.lock import held
from kandinsky22.training.loop import Training
from kandinsky22.training.processes import Processes
from kandinsky22.training.run import lines
from tests.training.scale_program import (
    CASES,
    EVERY,
    HALF,
    LONG,
    RESUMED,
    STEPS,
    curve,
    gone_on,
    half_way,
    learnt,
    pairs,
)
from tests.training.test_photos import write_folder

ROOT = Path(__file__).parents[2]
HERE = os.pathsep.join((str(ROOT), str(ROOT / "src")))  # the sources that are tested, whatever is installed
PROGRAM = "tests.training.scale_program"
TOGETHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
PATIENCE = 240  # seconds; who takes longer hangs
CLOSE = 1e-6


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of all cases in one process, "one", and in two, "two", which went on from each other's checkpoints."""
    folder = tmp_path_factory.mktemp("scale")
    one: dict[str, Any] = {name: learnt(make()) for name, make in CASES.items()}
    for name in RESUMED:
        half_way(CASES[name], folder / name / "one")
    write_folder(folder / "own", 5)
    (folder / "own" / "torn.png").write_bytes(b"no picture")
    (folder / "nothing").mkdir()
    environment = {**os.environ, "PYTHONPATH": HERE, "OMP_NUM_THREADS": "1"}
    subprocess.run([*TOGETHER, "-m", PROGRAM, "learn", str(folder)], env=environment, timeout=PATIENCE, check=True)
    for name in RESUMED:
        one[f"{name} from two"] = gone_on(CASES[name], folder / name / "two")
    two = [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
    return {"folder": folder, "one": one, "two": two}


def _same(left: dict[str, Any], right: dict[str, Any], *, exactly: bool = False) -> None:
    count = min(len(left["lines"]), len(right["lines"]))
    for one, other in zip(left["lines"][-count:], right["lines"][-count:], strict=True):
        assert one == (other if exactly else pytest.approx(other, rel=100 * CLOSE))
        assert one["loss"] == pytest.approx(other["loss"], rel=CLOSE)
    assert left["weights"].keys() == right["weights"].keys()
    for name, value in left["weights"].items():
        torch.testing.assert_close(value, right["weights"][name], rtol=0, atol=0 if exactly else CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_learns(found: dict[str, Any], name: str) -> None:
    first, second = (two[name] for two in found["two"])
    assert len(first["lines"]) == STEPS
    _same(found["one"][name], first)
    _same(first, second, exactly=True)


@pytest.mark.parametrize("name", CASES)
def test_what_is_kept_is_shared_out(found: dict[str, Any], name: str) -> None:
    for kind, count in found["one"][name]["own"].items():
        shares = [two[name]["own"][kind] for two in found["two"]]
        assert sum(shares) == count
        assert name == "line" or max(shares) < 0.51 * count


@pytest.mark.parametrize("name", RESUMED)
def test_a_checkpoint_is_gone_on_from_by_any_number_of_processes(found: dict[str, Any], name: str) -> None:
    one, two = found["one"], found["two"][0]
    assert len(two[f"{name} from one"]["lines"]) == len(one[f"{name} from two"]["lines"]) == HALF
    _same(two[f"{name} from two"], two[name], exactly=True)
    _same(two[f"{name} from one"], one[name])
    _same(one[f"{name} from two"], one[name])


def test_all_processes_know_the_same_speed(found: dict[str, Any]) -> None:
    """Else each would have its own number of steps."""
    first, second = (two["seconds"] for two in found["two"])
    assert first == second > 0


def test_one_full_disk_stops_all_with_a_sentence_and_leaves_a_checkpoint(found: dict[str, Any]) -> None:
    folder = found["folder"] / "full"
    step, sound = 3 * EVERY, 2 * EVERY
    for two in found["two"]:
        sentence, taken = two["full"]
        assert f"the checkpoint of step {step} cannot be written" in sentence and "(File too large)" in sentence
        assert sentence.endswith(f"the checkpoint of step {sound} is sound") and "\n" not in sentence and taken == step
    assert checkpoints.steps(folder)[-1] == sound and not list((folder / checkpoints.FOLDER).glob("*.part"))
    training = curve()
    assert run.resume(training, folder) and training.step == sound


def test_a_loss_that_is_not_finite_in_one_process_stops_all_before_the_step(found: dict[str, Any]) -> None:
    step = 2 * EVERY + 1
    for two in found["two"]:
        sentence, taken = two["spoilt"]
        assert f"not finite at step {step}; the checkpoint of step {2 * EVERY} is sound" in sentence and taken == step


def test_one_process_looks_at_pictures_and_all_are_told(found: dict[str, Any]) -> None:
    (first, decoded), (second, none) = (two["looked"] for two in found["two"])
    assert first == second and "used 5 of 6 pictures; passed over 1 broken (torn.png)" in first
    assert (decoded, none) == (6, 0)
    (first, _), (second, _) = (two["nothing"] for two in found["two"])
    assert first == second and "holds no pictures" in first


class Killer(threading.Thread):
    """Sends SIGKILL to processes that this one started, one at a time: in the midst of a checkpoint, between steps, or as they
    start. `wanted` says to whom, in order, "a worker" or "torchrun"."""

    def __init__(self, folder: Path, wanted: list[str], seed: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.wanted, self.random = folder, wanted, random.Random(seed)
        self.killed: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        for victim in self.wanted:
            moment = self.random.choice(("checkpoint", "checkpoint", "steps", "steps", "start"))
            if not self._wait(lambda victim=victim: started(victim), 0.5):
                return
            if moment == "checkpoint":
                before = self._torn()
                self._wait(lambda before=before: self._torn() - before)
                time.sleep(self.random.uniform(0, 0.02))
            elif moment == "steps":
                enough = len(lines(self.folder)) + self.random.randint(1, 8)
                self._wait(lambda enough=enough: len(lines(self.folder)) >= enough)
            else:
                time.sleep(self.random.uniform(0, 4))
            workers = started("a worker")
            if victims := started(victim):
                os.kill(self.random.choice(victims), signal.SIGKILL)
                self.killed.append(moment)
            self._wait(lambda workers=workers: not set(workers) & set(started("a worker", anywhere=True)), 0.3)

    def _torn(self) -> set[str]:
        """The checkpoints that are being written, or were when a process was killed."""
        return {path.name for path in self.folder.glob(f"{checkpoints.FOLDER}/*{checkpoints.PARTIAL_SUFFIX}")}

    def _wait(self, for_what: Callable[[], Any], seconds: float = 0.005) -> bool:
        while not self.over.wait(seconds):
            if for_what():
                return True
        return False


def started(victim: str, *, anywhere: bool = False) -> list[int]:
    """The processes of a run that come from this one, or `anywhere`."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    table = [line.split(None, 2) for line in listed.splitlines()]
    parents = {int(pid): int(parent) for pid, parent, *_ in table}
    here = []
    for pid, _, *arguments in table:
        above, told = int(pid), " ".join(arguments)
        while above != os.getpid() and above in parents:
            above = parents[above]
        if f"{PROGRAM} train" in told and ("torch.distributed.run" in told) == (victim == "torchrun"):
            here += [int(pid)] if anywhere or above == os.getpid() else []
    return here


def survived(folder: Path, processes: int, wanted: list[str], seed: int) -> Killer:
    """A run that is killed over and over until it is done."""
    killer = Killer(folder, wanted, seed)
    killer.start()
    try:
        program = ("-m", PROGRAM, "train", str(folder))
        assert supervisor.supervise((), folder, processes, len(wanted), program) == 0
    finally:
        killer.over.set()
        killer.join()
    return killer


def _as_if_never_killed(folder: Path, whole: Path) -> None:
    reached: list[Training] = []
    for place in (folder, whole):
        training = curve()
        assert checkpoints.load(training, place) and training.step == LONG
        reached.append(training)
    tensors, expected = (training.tensors() for training in reached)
    assert all(torch.equal(value, expected[name]) for name, value in tensors.items())
    measured = [{k: v for k, v in line.items() if k in ("step", "loss", "grad_norm")} for line in lines(folder)]
    assert measured == [{k: line[k] for k in ("step", "loss", "grad_norm")} for line in lines(whole)]
    assert checkpoints.steps(folder) == [LONG - 2 * EVERY, LONG - EVERY, LONG]


def test_a_process_killed_at_any_moment_reaches_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", HERE)
    list(run.run(curve(), tmp_path / "whole", every=EVERY))
    killer = survived(tmp_path / "killed", 1, ["a worker"] * 4, seed=0)
    assert len(killer.killed) >= 3
    _as_if_never_killed(tmp_path / "killed", tmp_path / "whole")


def test_two_processes_killed_at_any_moment_reach_the_same(
    found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What watches over them is killed, too: those that it leaves behind must not go on writing."""
    monkeypatch.setenv("PYTHONPATH", HERE)
    killer = survived(tmp_path / "killed", 2, ["a worker", "torchrun"], seed=1)
    assert len(killer.killed) == 2 and not started("a worker", anywhere=True)
    _as_if_never_killed(tmp_path / "killed", found["folder"] / "curve")


# The supervisor, with programs that crash as they are told to.

CRASHING = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
*before, = folder.glob("launch*")
(folder / f"launch{len(before)}").touch()
doing = sys.argv[2:][len(before)]
if doing == "progress":
    (folder / "checkpoints" / f"{len(before):08d}").mkdir(parents=True)
if doing == "torn":
    (folder / "checkpoints" / f"{len(before):08d}.part").mkdir(parents=True)
if doing == "word":
    (folder / "stopped.txt").write_text("the sentence")
    sys.exit(2)
if doing == "sleep":
    time.sleep(60)
sys.exit(0 if doing == "done" else 1)
"""


def _supervised(folder: Path, relaunches: int, *doings: str) -> tuple[int, int]:
    """(exit status, how often it was started); the first letter of a `ValueError`'s sentence is left to the caller."""
    folder.mkdir(exist_ok=True)
    program = ("-c", CRASHING, str(folder), *doings)
    return supervisor.supervise((), folder, 1, relaunches, program), len(list(folder.glob("launch*")))


def test_crashes_count_only_without_a_new_checkpoint(tmp_path: Path) -> None:
    assert _supervised(tmp_path / "a", 1, *["progress"] * 4, "done") == (0, 5)
    assert _supervised(tmp_path / "b", 2, "crash", "crash", "done") == (0, 3)
    for name, doings in {"c": ["crash"] * 4, "d": ["torn"] * 4}.items():
        with pytest.raises(ValueError, match=r"training crashed 2 times without a new checkpoint \(exit status 1\)"):
            _supervised(tmp_path / name, 2, *doings)
        assert len(list((tmp_path / name).glob("launch*"))) == 3
    with pytest.raises(ValueError, match=r"training crashed \(exit status 1\); the same command goes on"):
        _supervised(tmp_path / "e", 0, "crash")


def test_what_left_word_is_not_started_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, doings in {"a": ["word"], "b": ["crash", "word"]}.items():
        with pytest.raises(ValueError, match=r"^the sentence$"):
            _supervised(tmp_path / name, 5, *doings)
        assert len(list((tmp_path / name).glob("launch*"))) == len(doings)
        assert "the sentence" not in "".join(capfd.readouterr()), "whoever called says it"
    (tmp_path / "c").mkdir()
    supervisor.leave_word(tmp_path / "c", ValueError("of an\nearlier run"))
    assert (tmp_path / "c" / supervisor.WORD).read_text() == "of an earlier run"
    assert _supervised(tmp_path / "c", 1, "crash", "done") == (0, 2)


def test_what_is_asked_to_stop_is_not_started_again(tmp_path: Path) -> None:
    def ask() -> None:
        while not (tmp_path / "launch0").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        _supervised(tmp_path, 5, "sleep", "done")
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    assert len(list(tmp_path.glob("launch*"))) == 1


HOLDING = """
import sys, time
from pathlib import Path
from kandinsky22.training.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_against_others_until_its_process_is_gone(tmp_path: Path) -> None:
    """However it goes: SIGKILL leaves nothing behind that would have to be removed."""
    environment = {**os.environ, "PYTHONPATH": HERE}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)], env=environment, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        try:
            with (
                pytest.raises(OSError, match=f"another run is going on in {tmp_path}; wait until it ends"),
                held(tmp_path, 0.3),
            ):
                pass
        finally:
            other.kill()
    with held(tmp_path, 1.0):
        pass


def test_a_torn_checkpoint_does_not_count(tmp_path: Path) -> None:
    list(run.run(curve(steps=4), tmp_path, every=2))
    folder = tmp_path / checkpoints.FOLDER
    shutil.copytree(folder / "00000004", folder / "00000006.part")
    assert checkpoints.steps(tmp_path) == [2, 4]
    training = curve(steps=8)
    assert run.resume(training, tmp_path) and training.step == 4
    training.steps = 8
    list(run.run(training, tmp_path, every=4))
    assert sorted(path.name for path in folder.iterdir()) == ["00000002", "00000004", "00000008"]


def test_metrics_of_a_run_that_left_no_checkpoint_are_dropped(tmp_path: Path) -> None:
    (tmp_path / run.METRICS).write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    training = curve(steps=2)
    assert not run.resume(training, tmp_path)
    list(run.run(training, tmp_path, every=2))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_rows_that_are_compared_must_be_shared_out_evenly() -> None:
    with pytest.raises(ValueError, match="use a --batch that 3 divides, not 8"):
        pairs(Processes(rank=1, count=3))
