"""A real browser, and a real server with the model in the box, for the tests of the studio."""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect

CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


class Server:
    """`kandinsky22 serve`, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.folder, self.url = folder, f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until its model is loaded."""
        command = [sys.executable, "-m", "kandinsky22", "serve", "--port", str(self.port), "--workers", "1"]
        self.process = subprocess.Popen([*command, "--data", self.folder], env=os.environ, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 240
        while not self.is_ready():
            assert self.process.poll() is None and time.monotonic() < end, "the server does not get ready"
            time.sleep(0.1)

    def is_ready(self) -> bool:
        """Whether it answers, with its model loaded."""
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def end(self, how: signal.Signals) -> None:
        """End it by a signal."""
        self.process.send_signal(how)
        self.process.wait(30)

    def picture(self, address: str | None) -> np.ndarray:
        """The pixels of a picture at an address, [H, W, 3]."""
        file = httpx.get(f"{self.url}{address}").content
        return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def go(page: Page, view: str) -> None:
    """Open a view by its name in the navigation."""
    page.get_by_role("navigation").get_by_role("link", name=view).click()


def paint(page: Page, prompt: str, **settings: str) -> str | None:
    """Paint a prompt with settings by their labels; the address of the picture."""
    go(page, "Paint")
    page.get_by_label("What to paint").fill(prompt)
    if settings and not page.get_by_label("Seed", exact=True).is_visible():
        page.get_by_text("Settings", exact=True).click()
    for label, value in settings.items():
        page.get_by_label(label, exact=label == "Seed").fill(value)
    before = page.locator(".recent .card").count()
    page.get_by_role("button", name="Paint", exact=True).click()
    expect(page.locator(".recent .card")).to_have_count(before + 1)
    return page.locator(".result img.shown").get_attribute("src")


def drag(page: Page, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag within an element, from and to shares of its width and height."""
    box = page.locator(selector).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * start[0], box["y"] + box["height"] * start[1])
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * end[0], box["y"] + box["height"] * end[1], steps=4)
    page.mouse.up()
