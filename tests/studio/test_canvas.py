"""The canvas: masks, what is painted in them, the frame, depth, and pictures to start from."""

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from kandinsky22.compositions import read
from tests.studio.browser import CHROMIUM, Server, drag, go, paint

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium")]
MARKED = """() => {
  const canvas = document.querySelector('.layers canvas');
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  let sum = 0;
  for (let k = 3; k < data.length; k += 4) sum += data[k] > 127;
  return sum / (data.length / 4);
}"""


@pytest.fixture(scope="module", autouse=True)
def start(page: Page) -> None:
    """A painted picture on the canvas."""
    paint(page, "a red circle", Seed="3")
    page.get_by_role("button", name="Change it").click()
    expect(page.locator(".layers img")).to_be_visible()


def press(page: Page, *names: str) -> None:
    for name in names:
        page.get_by_role("button", name=name).click()


def test_the_mask_is_drawn_inverted_grown_and_undone(page: Page) -> None:
    press(page, "Rectangle (R)")
    drag(page, ".layers", (0.25, 0.25), (0.75, 0.75))
    assert page.evaluate(MARKED) == pytest.approx(0.25, abs=0.03)
    press(page, "Grow")
    assert 0.26 < page.evaluate(MARKED) < 0.34
    press(page, "Shrink")
    assert page.evaluate(MARKED) == pytest.approx(0.25, abs=0.03)
    press(page, "Invert (I)")
    assert page.evaluate(MARKED) == pytest.approx(0.75, abs=0.03)
    press(page, "Undo the stroke", "Redo the stroke", "Mark nothing")
    assert page.evaluate(MARKED) == 0
    page.locator(".layers").focus()
    for key in ("l", "Control+z", "Control+z", "Control+z", "Control+z", "Control+z"):
        page.keyboard.press(key)
    assert page.evaluate(MARKED) == 0
    page.keyboard.press("b")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    brushed = page.evaluate(MARKED)
    assert 0.005 < brushed < 0.03  # a dab, by the keyboard alone
    press(page, "Eraser (E)")
    drag(page, ".layers", (0.4, 0.5), (0.6, 0.5))
    assert page.evaluate(MARKED) < brushed / 10


def test_only_the_marked_part_changes(page: Page, server: Server) -> None:
    before = server.picture(page.locator(".layers img").get_attribute("src"))
    press(page, "Rectangle (R)")
    drag(page, ".layers", (0.06, 0.06), (0.94, 0.94))
    expect(page.get_by_text("what is marked is painted anew", exact=True)).to_be_visible()
    after = server.picture(paint(page, "a blue star"))
    assert {(piece.color, piece.shape) for piece in read(after).pieces} == {("blue", "star")}
    assert np.array_equal(before[:6], after[:6]) and not np.array_equal(before[40:80], after[40:80])


def test_the_picture_grows_to_the_frame_that_is_dragged(page: Page, server: Server) -> None:
    press(page, "Back to the canvas", "Mark nothing")
    edge = page.get_by_role("slider", name="Room at the right")
    edge.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    expect(edge).to_have_attribute("aria-valuenow", "32")
    expect(page.get_by_text("160 × 128 pixels")).to_be_visible()
    drag(page, ".edge.bottom", (0.5, 0.5), (0.5, 3))
    assert int(page.get_by_role("slider", name="Room below").get_attribute("aria-valuenow") or 0) > 0
    press(page, "Reset the frame")
    edge.press("Shift+ArrowRight")
    edge.press("Shift+ArrowRight")
    assert server.picture(paint(page, "a red circle")).shape == (128, 192, 3)


def test_a_picture_is_changed_and_its_depth_followed(page: Page, server: Server) -> None:
    press(page, "Back to the canvas", "Reset the frame")
    page.get_by_label("How much to change").fill("0.9")
    (piece,) = read(server.picture(paint(page, "a blue circle"))).pieces
    assert (piece.color, piece.shape) == ("blue", "circle")
    press(page, "Use as depth", "Remove the picture")
    expect(page.get_by_text("after the depth picture")).to_be_visible()
    assert server.picture(paint(page, "a green circle")).shape == (128, 128, 3)
    page.get_by_role("button", name="Remove", exact=True).click()
    go(page, "Paint")
