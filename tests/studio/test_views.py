"""The mixer, comparisons, pictures, library, code and system; axe and 360 pixels for each of them."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from kandinsky22.compositions import read
from tests.studio.browser import CHROMIUM, Server, go, paint

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium")]
VIEWS = ("Paint", "Mix", "Compare", "Pictures", "Library", "System")


def test_wildcards_are_listed_and_settings_saved_as_a_preset(page: Page) -> None:
    go(page, "Library")
    page.get_by_label("Kind").select_option("wildcard")
    page.get_by_label("Name").fill("colours")
    page.get_by_label("Text").fill("red\nblue")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".documents li")).to_contain_text("red, blue")
    go(page, "Paint")
    page.get_by_label("What to paint").fill("a __colours__ {star|ring}")
    expect(page.get_by_text("4 prompts will be painted")).to_be_visible()
    expect(page.locator(".expansion li")).to_have_text(["a red star", "a red ring", "a blue star", "a blue ring"])


def test_a_mix_is_saved_and_a_strip_painted_between_its_parts(page: Page, server: Server) -> None:
    go(page, "Mix")
    for k, text in enumerate(("a red circle", "a blue circle")):
        page.get_by_role("button", name="Add words").click()
        page.get_by_label(f"Part {k + 1}", exact=True).fill(text)
    page.get_by_label("Weight of part 2 as a number").fill("0")
    page.get_by_label("Save the mix as").fill("red one")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("button", name="+ red one").click()
    expect(page.locator(".part .embedding")).to_have_text("red one")
    page.get_by_label("Pictures between").fill("3")
    page.get_by_role("button", name="Paint the way").click()
    expect(page.locator(".frames img")).to_have_count(3)
    page.get_by_role("button", name="Make a film").click()
    expect(page.locator(".film")).to_be_visible()
    page.get_by_role("button", name="Paint the mix").click()
    (piece,) = read(server.picture(page.locator(".result img.shown").get_attribute("src"))).pieces
    assert piece.color == "red"


def test_a_grid_is_painted_and_two_of_its_pictures_compared(page: Page) -> None:
    go(page, "Compare")
    page.get_by_label("Its values, with commas").fill("4, 8")
    page.get_by_role("button", name="Paint 2 pictures").click()
    cells = page.locator(".grid td button")
    expect(cells).to_have_count(2)
    cells.first.click()
    cells.last.click()
    expect(page.locator(".differs tr")).to_have_text(["decoder.steps48"])


def test_a_picture_is_found_and_shown_as_code(page: Page) -> None:
    paint(page, "a green star", Seed="11")
    go(page, "Pictures")
    page.get_by_label("Search", exact=True).fill("green seed:11")
    expect(page.locator(".gallery .card")).to_have_count(1)
    page.locator(".gallery .card .plain").focus()
    page.keyboard.press("s")
    expect(page.get_by_role("button", name="Remove the star")).to_be_visible()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Code", exact=True).click()
    page.get_by_role("button", name="kandinsky22", exact=True).click()
    expect(page.locator("pre")).to_contain_text("--seed 11")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_any_view(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  # one of its literals
    for view in VIEWS:
        go(page, view)
        expect(page.get_by_role("link", name=view)).to_have_attribute("aria-current", "page")
        found = Axe().run(page)
        assert found.violations_count == 0, f"{view}: {found.generate_report()}"


def test_every_view_fits_360_pixels(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    for view in VIEWS:
        go(page, view)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, view
    page.set_viewport_size({"width": 1440, "height": 900})
