"""Training with several processes: they train like one, and killed processes and full disks do not change the
result."""

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
from kandinsky22.training.loop import Training
from kandinsky22.training.processes import Processes
from kandinsky22.training.run import read_metrics
from kandinsky22.training.run_lock import run_lock
from tests.training.scale_program import (
    CASES,
    EVERY,
    HALF,
    LONG,
    RESUMED,
    STEPS,
    curve,
    pairs,
    resume,
    save_half_way,
    train_to_end,
)
from tests.training.test_photos import write_folder

ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join((str(ROOT), str(ROOT / "src")))  # this checkout, whatever is installed
PROGRAM = "tests.training.scale_program"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of all cases in one process, "one", and in each of two, "two"; both also resumed the other's
    checkpoints."""
    folder = tmp_path_factory.mktemp("scale")
    one: dict[str, Any] = {name: train_to_end(make()) for name, make in CASES.items()}
    for name in RESUMED:
        save_half_way(CASES[name], folder / name / "one")
    write_folder(folder / "own", 5)
    (folder / "own" / "broken.png").write_bytes(b"no picture")
    (folder / "nothing").mkdir()
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    subprocess.run([*TORCHRUN, "-m", PROGRAM, "learn", str(folder)], env=environment, check=True)
    for name in RESUMED:
        one[f"{name} from two"] = resume(CASES[name], folder / name / "two")
    two = [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
    return {"folder": folder, "one": one, "two": two}


def assert_same(left: dict[str, Any], right: dict[str, Any], *, exactly: bool = False) -> None:
    count = min(len(left["lines"]), len(right["lines"]))
    for one, other in zip(left["lines"][-count:], right["lines"][-count:], strict=True):
        assert one == (other if exactly else pytest.approx(other, rel=100 * TOLERANCE))
        assert one["loss"] == pytest.approx(other["loss"], rel=TOLERANCE)
    assert left["weights"].keys() == right["weights"].keys()
    for name, value in left["weights"].items():
        torch.testing.assert_close(value, right["weights"][name], rtol=0, atol=0 if exactly else TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_like_one(results: dict[str, Any], name: str) -> None:
    first, second = (two[name] for two in results["two"])
    assert len(first["lines"]) == STEPS
    assert_same(results["one"][name], first)
    assert_same(first, second, exactly=True)


@pytest.mark.parametrize("name", CASES)
def test_weights_moments_and_averages_are_sharded(results: dict[str, Any], name: str) -> None:
    for kind, count in results["one"][name]["local"].items():
        shares = [two[name]["local"][kind] for two in results["two"]]
        assert sum(shares) == count
        assert name == "line" or max(shares) < 0.51 * count


@pytest.mark.parametrize("name", RESUMED)
def test_any_number_of_processes_resumes_a_checkpoint(results: dict[str, Any], name: str) -> None:
    one, two = results["one"], results["two"][0]
    assert len(two[f"{name} from one"]["lines"]) == len(one[f"{name} from two"]["lines"]) == HALF
    assert_same(two[f"{name} from two"], two[name], exactly=True)
    assert_same(two[f"{name} from one"], one[name])
    assert_same(one[f"{name} from two"], one[name])


def test_all_processes_measure_the_same_step_time(results: dict[str, Any]) -> None:
    """Otherwise they would train different numbers of steps."""
    first, second = (two["seconds"] for two in results["two"])
    assert first == second > 0


def test_a_full_disk_of_one_process_stops_all_and_leaves_the_previous_checkpoint(results: dict[str, Any]) -> None:
    folder = results["folder"] / "full"
    step, previous = 3 * EVERY, 2 * EVERY
    for two in results["two"]:
        message, taken = two["full"]
        assert f"the checkpoint of step {step} cannot be written" in message and "(File too large)" in message
        assert message.endswith(f"the checkpoint of step {previous} is sound") and "\n" not in message and taken == step
    assert checkpoints.steps(folder)[-1] == previous and not list((folder / checkpoints.FOLDER).glob("*.part"))
    training = curve()
    assert run.resume(training, folder) and training.step == previous


def test_a_non_finite_loss_in_one_process_stops_all_before_the_step(results: dict[str, Any]) -> None:
    step = 2 * EVERY + 1
    for two in results["two"]:
        message, taken = two["nan"]
        assert f"not finite at step {step}; the checkpoint of step {2 * EVERY} is sound" in message and taken == step


def test_one_process_checks_the_pictures_and_all_get_the_report(results: dict[str, Any]) -> None:
    (first, decoded), (second, none) = (two["checked"] for two in results["two"])
    assert first == second and "used 5 of 6 pictures; passed over 1 broken (broken.png)" in first
    assert (decoded, none) == (6, 0)
    (first, _), (second, _) = (two["nothing"] for two in results["two"])
    assert first == second and "holds no pictures" in first


class Killer(threading.Thread):
    """Sends SIGKILL to processes that this one started, one at a time: while they write a checkpoint, between steps,
    or as they start."""

    def __init__(self, folder: Path, kills: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.kills, self.random = folder, kills, random.Random(seed)
        self.killed: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        for _ in range(self.kills):
            moment = self.random.choice(("checkpoint", "checkpoint", "steps", "steps", "start"))
            if not self._wait(workers, 0.5):
                return
            if moment == "checkpoint":
                before = self._partial_checkpoints()
                self._wait(lambda before=before: self._partial_checkpoints() - before)
                time.sleep(self.random.uniform(0, 0.02))
            elif moment == "steps":
                count = len(read_metrics(self.folder)) + self.random.randint(1, 8)
                self._wait(lambda count=count: len(read_metrics(self.folder)) >= count)
            else:
                time.sleep(self.random.uniform(0, 4))
            if running := workers():
                os.kill(self.random.choice(running), signal.SIGKILL)
                self.killed.append(moment)
            self._wait(lambda running=running: not set(running) & set(workers(anywhere=True)), 0.3)

    def _partial_checkpoints(self) -> set[str]:
        """Checkpoints that are being written, or were when a process was killed."""
        return {path.name for path in self.folder.glob(f"{checkpoints.FOLDER}/*{checkpoints.PARTIAL_SUFFIX}")}

    def _wait(self, condition: Callable[[], Any], seconds: float = 0.005) -> bool:
        while not self.over.wait(seconds):
            if condition():
                return True
        return False


def workers(*, anywhere: bool = False) -> list[int]:
    """The ids of a run's processes, descendants of this process only or `anywhere`."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    table = [line.split(None, 2) for line in listed.splitlines()]
    parents = {int(pid): int(parent) for pid, parent, *_ in table}
    found = []
    for pid, _, *arguments in table:
        ancestor, command = int(pid), " ".join(arguments)
        while ancestor != os.getpid() and ancestor in parents:
            ancestor = parents[ancestor]
        if f"{PROGRAM} train" in command:
            found += [int(pid)] if anywhere or ancestor == os.getpid() else []
    return found


def train_while_killed(folder: Path, processes: int, kills: int, seed: int) -> Killer:
    """Supervise a run to its end while its processes are killed."""
    killer = Killer(folder, kills, seed)
    killer.start()
    try:
        program = ("-m", PROGRAM, "train", str(folder))
        assert supervisor.supervise((), folder, processes, kills, program) == 0
    finally:
        killer.over.set()
        killer.join()
    return killer


def assert_same_run(folder: Path, uninterrupted: Path) -> None:
    trainings: list[Training] = []
    for place in (folder, uninterrupted):
        training = curve()
        assert checkpoints.load(training, place) and training.step == LONG
        trainings.append(training)
    tensors, expected = (training.tensors() for training in trainings)
    assert all(torch.equal(value, expected[name]) for name, value in tensors.items())
    measured = [{k: v for k, v in line.items() if k in ("step", "loss", "grad_norm")} for line in read_metrics(folder)]
    assert measured == [{k: line[k] for k in ("step", "loss", "grad_norm")} for line in read_metrics(uninterrupted)]
    assert checkpoints.steps(folder) == [LONG - 2 * EVERY, LONG - EVERY, LONG]


def test_a_run_killed_at_any_moment_reaches_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    list(run.run(curve(), tmp_path / "uninterrupted", every=EVERY))
    killer = train_while_killed(tmp_path / "killed", 1, 4, seed=0)
    assert len(killer.killed) >= 3
    assert_same_run(tmp_path / "killed", tmp_path / "uninterrupted")


@pytest.mark.slow
def test_two_processes_killed_at_any_moment_reach_the_same_result(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    killer = train_while_killed(tmp_path / "killed", 2, 2, seed=1)
    assert len(killer.killed) == 2 and not workers(anywhere=True)
    assert_same_run(tmp_path / "killed", results["folder"] / "curve")


# The supervisor, with a program that crashes as its arguments say.

CRASHING = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
*before, = folder.glob("launch*")
(folder / f"launch{len(before)}").touch()
action = sys.argv[2:][len(before)]
if action == "progress":
    (folder / "checkpoints" / f"{len(before):08d}").mkdir(parents=True)
if action == "partial":
    (folder / "checkpoints" / f"{len(before):08d}.part").mkdir(parents=True)
if action == "word":
    (folder / "stopped.txt").write_text("the reason")
    sys.exit(2)
if action == "sleep":
    time.sleep(60)
sys.exit(0 if action == "done" else 1)
"""


def supervise(folder: Path, relaunches: int, *actions: str) -> tuple[int, int]:
    """The exit status, and how often the program was started. Raises the supervisor's `ValueError`."""
    folder.mkdir(exist_ok=True)
    program = ("-c", CRASHING, str(folder), *actions)
    return supervisor.supervise((), folder, 1, relaunches, program), len(list(folder.glob("launch*")))


def test_relaunches_are_limited_only_without_a_new_checkpoint(tmp_path: Path) -> None:
    assert supervise(tmp_path / "a", 1, *["progress"] * 4, "done") == (0, 5)
    assert supervise(tmp_path / "b", 2, "crash", "crash", "done") == (0, 3)
    for name, actions in {"c": ["crash"] * 4, "d": ["partial"] * 4}.items():
        with pytest.raises(ValueError, match=r"training crashed 2 times without a new checkpoint \(exit status 1\)"):
            supervise(tmp_path / name, 2, *actions)
        assert len(list((tmp_path / name).glob("launch*"))) == 3
    with pytest.raises(ValueError, match=r"training crashed \(exit status 1\); the same command goes on"):
        supervise(tmp_path / "e", 0, "crash")


def test_a_process_that_stated_why_it_stopped_is_not_started_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, actions in {"a": ["word"], "b": ["crash", "word"]}.items():
        with pytest.raises(ValueError, match=r"^the reason$"):
            supervise(tmp_path / name, 5, *actions)
        assert len(list((tmp_path / name).glob("launch*"))) == len(actions)
        assert "the reason" not in "".join(capfd.readouterr()), "the caller prints it"
    (tmp_path / "c").mkdir()
    supervisor.write_stop_reason(tmp_path / "c", ValueError("of an\nearlier run"))
    assert (tmp_path / "c" / supervisor.STOP_REASON).read_text() == "of an earlier run"
    assert supervise(tmp_path / "c", 1, "crash", "done") == (0, 2)


def test_a_run_stopped_by_a_signal_is_not_started_again(tmp_path: Path) -> None:
    def send_sigterm() -> None:
        while not (tmp_path / "launch0").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send_sigterm, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        supervise(tmp_path, 5, "sleep", "done")
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    assert len(list(tmp_path.glob("launch*"))) == 1


LOCKING = """
import sys, time
from pathlib import Path
from kandinsky22.training.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_folder_stays_locked_until_its_process_ends(tmp_path: Path) -> None:
    """Even by SIGKILL: no lock file has to be removed."""
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    with subprocess.Popen(
        [sys.executable, "-c", LOCKING, str(tmp_path)], env=environment, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"locked\n"
        try:
            with (
                pytest.raises(OSError, match=f"another run is going on in {tmp_path}; wait until it ends"),
                run_lock(tmp_path, 0.3),
            ):
                pass
        finally:
            other.kill()
    with run_lock(tmp_path, 1.0):
        pass


def test_resume_ignores_an_incomplete_checkpoint(tmp_path: Path) -> None:
    list(run.run(curve(steps=4), tmp_path, every=2))
    folder = tmp_path / checkpoints.FOLDER
    shutil.copytree(folder / "00000004", folder / "00000006.part")
    assert checkpoints.steps(tmp_path) == [2, 4]
    training = curve(steps=8)
    assert run.resume(training, tmp_path) and training.step == 4
    training.steps = 8
    list(run.run(training, tmp_path, every=4))
    assert sorted(path.name for path in folder.iterdir()) == ["00000002", "00000004", "00000008"]


def test_resume_drops_the_metrics_of_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / run.METRICS).write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    training = curve(steps=2)
    assert not run.resume(training, tmp_path)
    list(run.run(training, tmp_path, every=2))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_a_contrastive_batch_must_split_evenly_over_processes() -> None:
    with pytest.raises(ValueError, match="use a --batch that 3 divides, not 8"):
        pairs(Processes(rank=1, count=3))
