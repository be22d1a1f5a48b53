"""The notebook's displays, in an IPython shell; the tour is executed in a kernel."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from kandinsky22 import Kandinsky, Painting, notebook

TOUR = Path(__file__).parents[1] / "examples" / "tour.ipynb"


@pytest.fixture(scope="module")
def paintings(tiny_model: Path) -> list[Painting]:
    return Kandinsky.load(tiny_model)(
        "a red circle", height=64, width=64, seed=3, num_images=2, num_inference_steps=1, prior_num_inference_steps=2
    )


def test_a_painting_shows_itself_as_its_file(paintings: list[Painting]) -> None:
    assert Painting.from_png(paintings[0]._repr_png_()).request.seed == 3


def test_a_list_of_paintings_is_shown_as_one_sheet(paintings: list[Painting]) -> None:
    png = notebook.sheet_png(paintings)
    assert png is not None
    with Image.open(io.BytesIO(png)) as page:
        assert page.width > 2 * paintings[0].image.width


def test_other_lists_are_shown_as_usual(paintings: list[Painting]) -> None:
    assert notebook.sheet_png([]) is None
    assert notebook.sheet_png([*paintings, 1]) is None


def test_the_tour_runs_and_shows_pictures_and_bars_that_ended(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    tour = nbformat.read(TOUR, as_version=4)
    nbclient.NotebookClient(tour, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in tour.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    bars = [page for output in outputs if "<progress" in (page := output.get("data", {}).get("text/html", ""))]
    assert bars and all("done in" in page for page in bars)


def test_the_tour_is_stored_without_outputs() -> None:
    cells = json.loads(TOUR.read_text("utf-8"))["cells"]
    assert all(not cell.get("outputs") for cell in cells)
