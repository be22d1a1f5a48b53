"""The short form of runs/check_server.py, over a server with a fake model."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kandinsky22.backends.fake import Fake
from kandinsky22.request import Request
from kandinsky22.request.events import Result

RUNS = Path(__file__).parents[2] / "runs"
COMMAND = [sys.executable, "-m", "tests.server.serve_fake"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RUNS))
    spec = importlib.util.spec_from_file_location("check_server", RUNS / "check_server.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def paint(request: Request) -> Image.Image:
    *_, (_, last) = Fake().stream_many({0: request})
    assert isinstance(last, Result)
    return last.pictures[0].image


def test_kills_lose_no_job_and_change_no_pixel(script: Any) -> None:
    assert script.check_faults(COMMAND, jobs=8, kills=2, restarts=1, paint=paint) == []


def test_many_clients_are_served_or_asked_to_wait(script: Any) -> None:
    assert script.check_load(COMMAND) == []


def test_memory_stays_flat(script: Any) -> None:
    assert script.check_memory(COMMAND, jobs=100) == []


def test_random_requests_find_no_server_error(script: Any) -> None:
    assert script.check_schema(COMMAND, cases=20) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts a disk")
def test_a_full_disk_refuses_jobs_until_there_is_room(script: Any) -> None:
    assert script.check_disk(COMMAND) == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_process_connects_outward(script: Any) -> None:
    assert script.check_offline(COMMAND) == []
