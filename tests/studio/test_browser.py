"""The studio as a person uses it: in a real browser, against a real server with the model in the box."""

import io
import os
import shutil
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
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from kandinsky22.compositions import read

CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium")]


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
        end = time.monotonic() + 60
        while not self.is_ready():
            assert self.process.poll() is None and time.monotonic() < end, "the server does not get ready"
            time.sleep(0.1)

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("data"))
    server.start()
    yield server
    server.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900}, locale="en-US")
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        page.goto(server.url)
        yield page
        browser.close()


def pictures(page: Page) -> int:
    return page.locator(".recent li").count()


def test_a_prompt_becomes_a_picture_of_it_without_another_origin(page: Page, server: Server) -> None:
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.get_by_label("What to paint").fill("a red circle")
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("Seed", exact=True).fill("3")
    page.get_by_role("button", name="Paint").click()
    expect(page.locator(".stage img:not(.preview)")).to_be_visible()
    expect(page.locator(".recent li")).to_have_count(1)
    address = page.locator(".stage img").get_attribute("src")
    file = httpx.get(f"{server.url}{address}").content
    (piece,) = read(np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))).pieces
    assert (piece.color, piece.shape) == ("red", "circle")
    assert requested and all(url.startswith((server.url, "data:", "blob:")) for url in requested)


def test_a_job_survives_a_reload_and_a_killed_server(page: Page, server: Server) -> None:
    before = pictures(page)
    page.get_by_label("What to paint").fill("two blue stars")
    page.get_by_label("Steps (num_inference_steps)").fill("150")
    page.keyboard.press("Control+Home")
    page.get_by_label("What to paint").press("Enter")
    expect(page.locator(".stage img.preview")).to_be_visible()
    page.reload()
    expect(page.get_by_role("progressbar")).to_be_visible()
    assert page.get_by_label("What to paint").input_value() == "two blue stars"
    server.end(signal.SIGKILL)
    expect(page.get_by_text("The server does not answer")).to_be_visible()
    server.start()
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.locator(".recent li")).to_have_count(before + 1)


def test_a_job_is_cancelled_and_a_picture_deleted_with_undo(page: Page) -> None:
    before = pictures(page)
    page.get_by_label("What to paint").press("Enter")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("progressbar")).to_have_count(0)
    page.locator(".recent li").first.get_by_role("button", name="Delete").click()
    expect(page.locator(".recent li")).to_have_count(before - 1)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".recent li")).to_have_count(before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  # one of its literals
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_it_is_usable_in_russian_at_360_pixels(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.get_by_role("button", name="Русский").click()
    expect(page.get_by_role("button", name="Рисовать")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.documentElement.lang") == "ru"
