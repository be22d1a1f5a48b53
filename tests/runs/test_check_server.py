"""The short form of runs/check_server.py, over a server with a fake model."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.server.serve_fake"]


def script() -> Any:
    spec = importlib.util.spec_from_file_location("check_server", ROOT / "runs" / "check_server.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_kills_lose_no_job_and_change_no_pixel() -> None:
    assert script().check_faults(COMMAND, jobs=8, kills=2, restarts=1) == []


def test_many_clients_are_served_or_asked_to_wait() -> None:
    assert script().check_load([*COMMAND, "--max-waiting", "8"]) == []


def test_random_requests_find_no_server_error() -> None:
    assert script().check_schema(COMMAND, cases=20) == []
