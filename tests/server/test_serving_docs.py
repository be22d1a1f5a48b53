"""The examples of docs/serving.md run, in order."""

import re
import subprocess
import sys
from pathlib import Path

from tests.server.fake_server import RunningServer

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(kind: str, server: RunningServer) -> list[str]:
    """The marked blocks of one kind, with this server's address."""
    found = re.findall(rf"^```{kind} run\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [block.replace("8022", str(server.port)) for block in found]


def test_python_examples_run_in_order(server: RunningServer, tmp_path: Path) -> None:
    script = tmp_path / "serving.py"
    script.write_text("\n".join(blocks("python", server)), encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "image_generation.completed" in done.stdout and done.stdout.endswith("1 picture\n")


def test_curl_examples_are_answered(server: RunningServer) -> None:
    (command,) = blocks("bash", server)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert '"url":' in done.stdout.replace(" ", ""), done.stdout + done.stderr
