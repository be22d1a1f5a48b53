"""The example of a bot, against the server as a command with the model in the box."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

BOT = Path(__file__).parents[2] / "examples" / "bot_fusionbrain.py"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "kandinsky22", "serve", "--port", url.rpartition(":")[2], "--workers", "1"]
    folder = tmp_path_factory.mktemp("data")
    with subprocess.Popen([*command, "--data", folder], env=os.environ, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until_ready(url, process)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.ConnectError:
            time.sleep(0.1)
    raise AssertionError("the server does not get ready")


def chat(url: str, text: str, folder: Path) -> list[str]:
    """The bot's answers to a chat, sorted."""
    done = subprocess.run(
        [sys.executable, BOT, url], input=text, cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


def test_bot_answers_every_message_with_a_picture_or_a_reason(url: str, tmp_path: Path) -> None:
    answers = chat(url, f"a red circle\na yellow star | blue\n{'x' * 1001}\n", tmp_path)
    assert answers[:2] == [f"{k}: here it is: out/message-{k}.png" for k in (1, 2)]
    assert answers[2].startswith("3: not painted: ") and len(answers) == 3
    picture = np.asarray(Image.open(tmp_path / "out" / "message-1.png").convert("RGB"), int)
    assert (picture[..., 0] - picture[..., 2]).max() > 100, "there is no red in it"
