"""Killed processes, slow clients, and the end of a server: nothing is lost, and nothing is painted twice."""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kandinsky22.imaging.images import Painting
from tests.server.fakes import SECONDS, FakeSession, ServerProcess, app_of, running, until

ENDED = ("succeeded", "failed", "cancelled")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path) as process:
        yield process


def create(server: ServerProcess, prompt: str, seed: int = 1) -> str:
    answer = server.client.post("/api/v1/jobs", json={"options": {"prompt": prompt, "seed": seed}})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def ended(server: ServerProcess, job: str) -> Any:
    """The job, when it has ended."""

    def read() -> Any:
        values = server.client.get(f"/api/v1/jobs/{job}").json()
        return values if values["state"] in ENDED else None

    return until(read)


def test_jobs_survive_the_web_process(server: ServerProcess, tmp_path: Path) -> None:
    done = create(server, "a star", seed=9)
    before = ended(server, done)
    jobs = {seed: create(server, "a slow star", seed) for seed in range(4)}
    server.end(signal.SIGKILL)
    server.start()
    for seed, job in jobs.items():
        values = ended(server, job)
        assert values["state"] == "succeeded" and len(values["pictures"]) == 1
        painting = Painting.from_png(server.client.get(values["pictures"][0]["url"]).content)
        assert painting.image.getpixel((0, 0)) == (seed, 7 * seed, 90)
    assert ended(server, done) == before
    assert len(list(tmp_path.rglob("*.png"))) == 5 and not list(tmp_path.rglob("*.part"))
    assert server.end() < 10  # with nothing to do


def test_a_job_that_kills_its_process_fails_after_three_times_and_others_are_painted(server: ServerProcess) -> None:
    jobs = [create(server, prompt) for prompt in ("a slow star", "die", "a star")]
    states = [ended(server, job) for job in jobs]
    assert [values["state"] for values in states] == ["succeeded", "failed", "succeeded"]
    assert "died (SIGKILL), 3 times" in states[1]["error"]


def test_sigterm_drains_within_ten_seconds(server: ServerProcess) -> None:
    running_job = create(server, "a slow star")
    until(lambda: server.client.get(f"/api/v1/jobs/{running_job}").json()["state"] != "queued")
    assert server.end() < 10
    server.start()
    assert ended(server, running_job)["state"] == "succeeded"


def test_slow_clients_are_closed_and_a_slow_picture_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kandinsky22.server.deadline.HEADER_SECONDS", 1.0)
    monkeypatch.setattr("kandinsky22.server.deadline.BODY_SECONDS", 1.0)
    session = FakeSession()
    with running(app_of(tmp_path, session)) as url:
        address = httpx.URL(url)
        answers: list[httpx.Response] = []
        job = httpx.post(f"{url}/api/v1/jobs", json={"options": {"prompt": "wait", "seed": 1}}).json()["id"]
        waiter = threading.Thread(
            target=lambda: answers.append(httpx.get(f"{url}/api/v1/jobs/{job}/events", timeout=SECONDS))
        )
        waiter.start()
        half_open = [socket.create_connection((address.host, address.port or 0)) for _ in range(60)]
        for number, connection in enumerate(half_open):
            head = b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\n"
            connection.sendall(head if number % 2 else head + b"Content-Length: 100\r\n\r\n{")
        start = time.monotonic()
        for connection in half_open:
            connection.settimeout(SECONDS)
            while connection.recv(4096):
                pass
            connection.close()
        assert time.monotonic() - start < 8
        session.release()
        waiter.join()
        assert "event: result" in answers[0].text
