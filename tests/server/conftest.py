"""Servers for the tests of this folder."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server.fake_server import RunningServer, start


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server without keys."""
    running = start(tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers with other limits; see `fake_server.start`."""
    started: list[RunningServer] = []

    def begin(*arguments: object, **options: object) -> RunningServer:
        started.append(start(tmp_path, *arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield begin
    for running in started:
        running.stop()


@pytest.fixture(autouse=True)
def _finish_steps(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test, jobs that wait for a step go on, and end."""
    running = request.getfixturevalue("server") if "server" in request.fixturenames else None
    yield
    if isinstance(running, RunningServer):  # some modules have a server of their own
        running.session.by_step = False
        running.wait_until_idle()
