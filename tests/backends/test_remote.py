"""A server as a backend: the same events as the backend behind it, also over broken connections."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from kandinsky22.backends.fake import Fake
from kandinsky22.backends.remote import Remote
from kandinsky22.request import Picture
from kandinsky22.request.events import Backend, Failed, Preview, Progress, Queued, Result, Started, stream
from kandinsky22.request.tasks import img2img, interpolate, text2img
from kandinsky22.server.limits import Limits
from kandinsky22.server.store import Store
from tests.backends.conformance import CHECKS
from tests.server.fakes import FakeSession, app_of, running, until


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest.fixture
def url(tmp_path: Path, session: FakeSession) -> Iterator[str]:
    with running(app_of(tmp_path, session)) as address:
        yield address


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_remote_conforms(url: str, check: Callable[[Backend], None]) -> None:
    check(Remote(url))


def test_remote_yields_the_events_of_the_backend_behind_it(url: str) -> None:
    request = text2img("a red star", seed=3, num_images=2)
    ours = [event for event in stream(Fake(), request, Preview()) if not isinstance(event, Started)]
    theirs = [event for event in stream(Remote(url), request, Preview()) if not isinstance(event, Started)]
    assert [type(event) for event in theirs] == [type(event) for event in ours]
    assert [event for event in theirs if isinstance(event, Queued | Progress)] == ours[:-1]
    (result,), expected = [event for event in theirs if isinstance(event, Result)], ours[-1]
    assert isinstance(expected, Result) and result.pictures == expected.pictures and result.request == expected.request


def test_many_requests_each_end_with_their_own_pictures(url: str) -> None:
    requests = {seed: text2img("a red star", seed=seed) for seed in range(20)}
    results = {key: event for key, event in Remote(url).stream_many(requests) if isinstance(event, Result)}
    expected = {key: event for key, event in Fake().stream_many(requests) if isinstance(event, Result)}
    assert {key: event.pictures for key, event in results.items()} == {k: e.pictures for k, e in expected.items()}


def test_a_request_that_fails_leaves_the_others_alone(url: str) -> None:
    requests = {"good": text2img("a star", seed=1), "bad": text2img("fail", seed=2)}
    last = dict(Remote(url).stream_many(requests))
    assert isinstance(last["good"], Result) and last["bad"] == Failed("error", "it was asked to fail")


def test_a_request_that_the_server_refuses_fails(url: str) -> None:
    request = text2img("a star", height=4096, width=4096)
    ((_, event),) = Remote(url).stream_many({0: request})
    assert isinstance(event, Failed) and event.reason == "refused" and "2048x2048" in event.error


def test_pictures_are_uploaded_once(url: str, tmp_path: Path) -> None:
    picture = Picture.of(Image.new("RGB", (70, 80), "red"))
    for _ in range(2):
        request = img2img("a star", image=picture, seed=1)
        events = list(stream(Remote(url), request))
        assert isinstance(events[-1], Result) and events[-1].request.pictures == request.pictures
    assert [file.name for file in (tmp_path / "uploads").iterdir()] == [picture.sha256]


def test_closing_the_generator_cancels(url: str, session: FakeSession) -> None:
    events = Remote(url).stream_many({0: text2img("wait", seed=1), 1: text2img("wait", seed=2)})
    assert isinstance(next(events)[1], Queued)
    until(lambda: len(session.waiting) == 2)
    events.close()
    until(lambda: not session.waiting)


def test_resolve_describe_and_embedding_are_those_of_the_model(url: str) -> None:
    remote, request = Remote(url), interpolate(["a red circle", "a star"], seed=5)
    assert remote.resolve(request) == Fake().resolve(request)
    assert remote.describe(request) == Fake().describe(request)
    assert remote.embedding(remote.resolve(text2img("abc", seed=1))).vector.tolist() == [3.0, 97.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="pictures per request"):
        remote.resolve(text2img("a star", num_images=100))


def test_requests_wait_where_the_queue_is_full(tmp_path: Path, session: FakeSession) -> None:
    with running(app_of(tmp_path, session, limits=Limits(waiting=1, running=1, free_bytes=0))) as url:
        requests = {seed: text2img("wait", seed=seed) for seed in range(3)}
        results = []
        for _, event in Remote(url).stream_many(requests):
            session.release()
            results += [event] if isinstance(event, Result) else []
    assert len(results) == 3


def test_errors_say_what_to_do(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="looks like http"):
        Remote("ftp://x")
    with pytest.raises(ValueError, match="no server answers"):
        list(Remote("http://127.0.0.1:9").stream_many({0: text2img("a star")}))
    Store(tmp_path).add_key("ann", ["paint"], 4)
    until(lambda: _is_refused(url))


def _is_refused(url: str) -> bool:
    try:
        list(Remote(url, "wrong").stream_many({0: text2img("a star", seed=0)}))
    except ValueError as error:
        return "not known here" in str(error)
    return False


def test_painting_on_a_server_imports_no_torch(url: str, tmp_path: Path) -> None:
    code = (
        "import sys; from kandinsky22.cli.app import run\n"
        f"status = run(['a red star', '--seed', '3', '--server', {url!r}, '-o', {str(tmp_path / 'out')!r}])\n"
        "sys.exit(status or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "painted in" in done.stderr and (tmp_path / "out" / "a-red-star-3.png").is_file()
