"""Ray Serve's replicas paint as a pool's processes do, and are killed and replaced without a failed request."""

import gc
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from kandinsky22 import text2img
from kandinsky22.backends.ray import Reserve
from kandinsky22.backends.ray_serve import RayServe, Replicas, deploy
from kandinsky22.request.events import Cancelled, Event, Failed, Notice, Progress, Result, Started, is_last
from tests.backends.fakes import MADE_BY, FakeBackend, LoadFake

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TWO = Replicas(2, 2)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))  # for fakes
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # sockets that Ray left open
            gc.collect()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replicas")


@pytest.fixture(scope="module")
def served(folder: Path, cluster: None) -> Iterator[RayServe]:
    served = RayServe(LoadFake(folder), TWO, Reserve())
    yield served
    served.close()


def carry_out(served: RayServe, *prompts: str) -> list[tuple[str, Event]]:
    """All events of requests with these prompts."""
    session = served.session()
    for prompt in prompts:
        session.submit(prompt, text2img(prompt, seed=3))
    events: list[tuple[str, Event]] = []
    while sum(is_last(event) for _, event in events) < len(prompts):
        events.append(session.receive())
    return events


def test_questions_are_answered(served: RayServe) -> None:
    request = served.resolve(text2img("a", seed=3))
    assert (request.width, served.describe(request)) == (64, MADE_BY)
    with pytest.raises(ValueError, match="the request is refused; ask for another"):
        served.resolve(text2img("refused"))


def test_requests_are_painted_and_a_bad_one_fails_alone(served: RayServe) -> None:
    events = carry_out(served, "a", "poison", "b", "refused")
    assert {key for key, event in events if isinstance(event, Result)} == {"a", "b"}
    errors = {key: event.error for key, event in events if isinstance(event, Failed)}
    assert errors == {"poison": "KeyError: 'poison'", "refused": "the request is refused; ask for another"}


def test_a_cancelled_request_leaves_its_replica(served: RayServe) -> None:
    session = served.session()
    session.submit("endless", text2img("until asked", seed=1))
    while not isinstance(session.receive()[1], Progress):
        pass
    session.cancel("endless")
    while not isinstance(event := session.receive()[1], Cancelled):
        assert not is_last(event)
    assert any(isinstance(event, Result) for _, event in carry_out(served, "a"))


def test_a_request_begins_again_when_its_replica_dies(served: RayServe) -> None:
    events = carry_out(served, "a", "b", "die once", "d")
    assert sum(isinstance(event, Result) for _, event in events) == 4
    assert any(isinstance(event, Notice) and "starts again" in event.text for key, event in events if key == "die once")


def test_replicas_are_replaced_while_they_paint(served: RayServe, folder: Path, tmp_path: Path) -> None:
    session = served.session()
    session.submit("old", text2img("until asked", seed=1))
    while not isinstance(session.receive()[1], Started):
        pass
    replacing = threading.Thread(target=deploy, args=(LoadFake(tmp_path), TWO, Reserve()))
    replacing.start()
    (folder / "asked").touch()
    replacing.join()
    session.submit("new", text2img("a", seed=1))
    last: dict[str, Event] = {}
    while len(last) < 2:
        key, event = session.receive()
        if is_last(event):
            last[key] = event
    assert isinstance(last["old"], Result) and isinstance(last["new"], Result)
    assert FakeBackend(tmp_path).tried == ["a"]  # by the new ones


def test_a_model_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Ray Serve could not start the model"):
        deploy(LoadFake(tmp_path, "fails"), TWO, Reserve())
