"""The studio as a person uses it: in a real browser, against a real server with the model in the box."""

import signal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from kandinsky22.compositions import read
from tests.studio.browser import CHROMIUM, Server

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium")]


def pictures(page: Page) -> int:
    return page.locator(".recent .card").count()


def test_a_prompt_becomes_a_picture_of_it_without_another_origin(page: Page, server: Server) -> None:
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.get_by_label("What to paint").fill("a red circle")
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("Seed", exact=True).fill("3")
    page.get_by_role("button", name="Paint", exact=True).click()
    expect(page.locator(".stage img:not(.preview)")).to_be_visible()
    expect(page.locator(".recent .card")).to_have_count(1)
    (piece,) = read(server.picture(page.locator(".stage img").get_attribute("src"))).pieces
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
    expect(page.locator(".recent .card")).to_have_count(before + 1)


def test_a_job_is_cancelled_and_a_picture_deleted_with_undo(page: Page) -> None:
    before = pictures(page)
    page.get_by_label("What to paint").press("Enter")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("progressbar")).to_have_count(0)
    page.locator(".recent .card").first.get_by_role("button", name="Delete").click()
    expect(page.locator(".recent .card")).to_have_count(before - 1)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".recent .card")).to_have_count(before)


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
    page.get_by_role("button", name="English").click()
    page.set_viewport_size({"width": 1440, "height": 900})
