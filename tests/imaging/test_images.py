"""Picture files: the request can be read back, and a file is written completely or not at all."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kandinsky22.imaging.images import Painting, read_recipe, save_image, sheet
from kandinsky22.request.tasks import text2img


def picture(level: int = 128) -> Painting:
    image = Image.fromarray(np.full((8, 12, 3), level, np.uint8))
    return Painting(image, text2img('кружок $5 "red" #1', seed=3), {"weights": {"unet": "abc"}, "threads": 2})


def test_a_saved_picture_contains_its_request(tmp_path: Path) -> None:
    path = picture().save(tmp_path / "new" / "a.png")
    recipe = read_recipe(path)
    assert recipe.request == picture().request
    assert recipe.made_by == picture().made_by
    assert (np.asarray(Image.open(path)) == 128).all()


def test_a_full_disk_leaves_the_old_file_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(10).save(tmp_path / "a.png")
    before = path.read_bytes()

    def fail(self: Image.Image, file: Any, *rest: Any, **options: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(ValueError, match="No space left on device"):
        picture(20).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_refuses_an_impossible_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write"):
        picture().save(tmp_path / "file" / "a.png")
    with pytest.raises(ValueError, match=r"name it a\.png"):
        save_image(picture().image, tmp_path / "a.bmp")


def test_reading_a_recipe_from_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    save_image(picture().image, tmp_path / "bare.png")
    for name, sentence in (
        ("none.png", "does not exist"),
        ("text.png", "not a complete picture"),
        ("bare.png", "carries no request"),
    ):
        with pytest.raises(ValueError, match=sentence):
            read_recipe(tmp_path / name)


def test_contact_sheet_shows_every_picture_enlarged() -> None:
    images = [Image.new("RGB", (64, 32), color) for color in ("red", "green", "blue")]
    page = np.asarray(sheet(images, ["1", "2", "3"]))
    for color in ((255, 0, 0), (0, 128, 0), (0, 0, 255)):
        assert (page == color).all(axis=-1).sum() > 512 * 250


def test_saved_files_follow_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` in the path is the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(0o077)
    try:
        saved = picture().save("~/private.png")
    finally:
        os.umask(before)
    assert saved == tmp_path / "private.png"
    assert saved.stat().st_mode & 0o777 == 0o600
    assert picture().save(tmp_path / "open.png").stat().st_mode & 0o777 == 0o666 & ~before
