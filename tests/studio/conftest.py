"""One server and one browser for all tests of the studio."""

import signal
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.studio.browser import CHROMIUM, FLAGS, Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("data"))
    server.start()
    yield server
    server.end(signal.SIGTERM)


@pytest.fixture(scope="session")
def page(server: Server) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900}, locale="en-US")
        page.set_default_timeout(40_000)
        expect.set_options(timeout=40_000)
        page.goto(server.url)
        yield page
        browser.close()
