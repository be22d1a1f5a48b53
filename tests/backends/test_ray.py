"""Ray actors are a backend, and Ray Data paints work units: every request gets an outcome, whatever dies."""

import gc
import json
import os
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from kandinsky22 import text2img
from kandinsky22.backends.ray import RayBackend, RayWorker, Reserve, connect
from kandinsky22.backends.ray_data import RayPainter
from kandinsky22.backends.work_units import Failure, Finished, Outcome, UnitPainter
from kandinsky22.cli import batch
from kandinsky22.request.events import Backend, Notice, Result
from tests.backends.conformance import CHECKS
from tests.backends.fakes import FakeBackend, LoadFake, units_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray on this machine, with more cores than it may have, as nothing here computes much."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))  # for fakes
        patch.setenv("KANDINSKY22_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # sockets that Ray left open
            gc.collect()


@pytest.fixture(scope="module")
def actors(tiny_model: Path, cluster: None) -> Iterator[Backend]:
    with RayBackend.of(str(tiny_model), processes=2) as backend:
        yield backend


@pytest.fixture
def painter(tmp_path: Path) -> RayPainter:
    return RayPainter(FakeBackend(tmp_path), 3, 2, load=LoadFake(tmp_path))


def start(load: LoadFake) -> RayWorker:
    return RayWorker(load, Reserve())


def pixels(outcomes: list[Outcome[str]]) -> dict[str, bytes]:
    return {o.key: o.result.pictures[0].image.tobytes() for o in outcomes if isinstance(o, Finished)}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_actors_conform(actors: Backend, check: Callable[[Backend], None]) -> None:
    check(actors)


def test_a_request_begins_again_when_its_actor_dies(tmp_path: Path) -> None:
    with RayBackend(LoadFake(tmp_path), processes=1, start=start) as backend:
        backend.resolve(text2img("a"))  # now the actor has its model: one that dies before has begun nothing
        prompts = ["a", "b", "die once", "d"]
        events = list(backend.stream_many({prompt: text2img(prompt, seed=1) for prompt in prompts}))
    assert sorted(key for key, event in events if isinstance(event, Result)) == sorted(prompts)
    assert any(isinstance(event, Notice) and "starts again" in event.text for key, event in events if key == "die once")


def test_closing_leaves_no_thread_that_could_start_ray_again(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with RayBackend(LoadFake(tmp_path), processes=2, start=start) as backend:
        backend.resolve(text2img("a"))
        assert {thread.name for thread in set(threading.enumerate()) - before} >= {"kandinsky22-ray"}
    assert "kandinsky22-ray" not in {thread.name for thread in set(threading.enumerate()) - before}


def test_a_model_that_cannot_be_loaded_raises_in_the_caller(tmp_path: Path) -> None:
    with (
        RayBackend(LoadFake(tmp_path, "fails"), processes=1, start=start) as backend,
        pytest.raises(ValueError, match="there is no such model; name another"),
    ):
        backend.resolve(text2img("a"))


def test_a_unit_that_kills_its_actor_is_tried_three_times_and_the_others_are_painted(
    painter: RayPainter, tmp_path: Path
) -> None:
    requests = {prompt: text2img(prompt, seed=k) for k, prompt in enumerate(["a", "b", "c", "die", "e", "f", "g"])}
    outcomes = list(painter.paint(units_of(requests, 3)))
    assert Counter(outcome.key for outcome in outcomes) == Counter([*requests])
    failures = {outcome.key: outcome for outcome in outcomes if isinstance(outcome, Failure)}
    assert failures.keys() == {"die", "e", "f"}  # its unit
    assert failures["die"] == Failure("die", "the process that painted it died, 3 times", 3)
    assert FakeBackend(tmp_path).tried.count("die") == 3


def test_killed_actors_of_ray_data_change_no_pixel(painter: RayPainter, tmp_path: Path) -> None:
    requests = {f"picture {k}": text2img(f"picture {k}", seed=k) for k in range(60)}
    outcomes: list[Outcome[str]] = []
    for outcome in painter.paint(units_of(requests, 3)):
        outcomes.append(outcome)
        if len(outcomes) == 6 and isinstance(outcome, Finished):
            os.kill(outcome.worker, signal.SIGKILL)
    assert Counter(outcome.key for outcome in outcomes) == Counter([*requests])
    assert pixels(outcomes) == pixels(list(UnitPainter(FakeBackend(tmp_path), 3).paint(units_of(requests, 3))))


def test_a_run_begins_on_one_machine_and_ends_on_ray_with_the_same_bytes(tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    options = {"width": 64, "height": 64, "num_inference_steps": 2, "prior_num_inference_steps": 2}
    lines.write_text("\n".join(json.dumps({"prompt": "a red ring", "seed": k, **options}) for k in range(8)))
    arguments = [str(lines), "--batch", "2", "--threads", "1", "--processes", "1", "-q"]
    assert batch.main([*arguments, "-o", str(tmp_path / "local")]) == 0
    assert batch.main([*arguments, "-o", str(tmp_path / "both"), "--shard", "1/2"]) == 0
    before = len(list((tmp_path / "both").rglob("*.png")))
    assert batch.main([*arguments, "-o", str(tmp_path / "both"), "--backend", "ray"]) == 0
    local, both = (sorted((tmp_path / name).rglob("*.png")) for name in ("local", "both"))
    assert before < len(both) == len(local) == 8
    assert [path.read_bytes() for path in both] == [path.read_bytes() for path in local]


def test_an_address_without_a_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ValueError, match=r"no Ray cluster answers at 127.0.0.1:1; start one with ray start --head"):
        connect("127.0.0.1:1")


@pytest.mark.parametrize(("device", "threads", "reserve"), [("cuda:0", 4, Reserve(1, 1)), (None, 4, Reserve(4))])
def test_a_process_reserves_a_gpu_or_cores(device: str | None, threads: int, reserve: Reserve) -> None:
    assert Reserve.of(device, threads) == reserve
