"""Pictures are decoded once: a later run in the same folder has their sizes, and notices changed files."""

import os
from pathlib import Path

import pytest

from kandinsky22.training import photos
from kandinsky22.training.image_index import FOLDER, INDEX, ImageIndex, open_index
from kandinsky22.training.photos import Filter, Photos, Report, read_sources
from kandinsky22.training.run_lock import run_lock
from kandinsky22.training.sources import Source
from tests.training.test_photos import captions_of, encoded, write_folder, write_tar


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files that were decoded to check them."""
    files: list[bytes] = []
    decoded_size = photos.decoded_size
    monkeypatch.setattr(photos, "decoded_size", lambda file: files.append(file) or decoded_size(file))
    return files


def read(run: Path, source: Path, filter: Filter = photos.NO_FILTER) -> tuple[list[Photos], Report]:
    """Read a source as a run in the folder `run` does."""
    with open_index(run) as index:
        training, _, report = read_sources([Source(source)], 128, held_out=0.0, filter=filter, index=index)
    return training, report


def test_second_run_decodes_nothing_and_reports_the_same(tmp_path: Path, decoded: list[bytes]) -> None:
    """For a folder with a tar in it; a run in another folder has an index of its own."""
    source = write_folder(tmp_path / "a", 4)
    (source / "truncated.png").write_bytes(encoded(0)[:-40])
    (source / "truncated.txt").write_text("truncated")
    (source / "small.png").write_bytes(encoded(0, 20, 30))
    (source / "small.txt").write_text("small")
    (source / "uncaptioned.png").write_bytes(encoded(0))
    members = {"0.png": encoded(50), "0.txt": b"grey 50", "1.png": b"broken", "1.txt": b"broken"}
    write_tar(source / "b.tar", members)
    sets, report = read(tmp_path / "run", source, Filter(side=64))
    assert len(decoded) == 8  # all but the uncaptioned one
    assert report.skipped == {"broken": 2, "smaller than 64 pixels": 1, "without a readable caption": 1}
    decoded.clear()
    same_sets, same_report = read(tmp_path / "run", source, Filter(side=64))
    assert decoded == []
    assert str(same_report) == str(report) and "2 broken (b.tar/1.png, truncated.png)" in str(same_report)
    assert [part.name for part in same_sets] == [part.name for part in sets]
    assert sorted(captions_of(same_sets[0])) == ["grey 0", "grey 10", "grey 20", "grey 30", "grey 50"]
    _, unfiltered = read(tmp_path / "run", source)
    assert decoded == [] and unfiltered.used == report.used + 1  # the index has sizes, not results of filters
    read(tmp_path / "other", source)
    assert len(decoded) == 8


def test_changed_added_and_removed_pictures_are_noticed(tmp_path: Path, decoded: list[bytes]) -> None:
    source = write_folder(tmp_path / "a", 4)
    before = read(tmp_path / "run", source)[0][0]
    decoded.clear()
    (source / "000.png").write_bytes(b"broken now")
    (source / "001.png").write_bytes(encoded(10, 130, 130))
    (source / "002.png").unlink()
    (source / "002.txt").unlink()
    (source / "new.png").write_bytes(encoded(77))
    (source / "new.txt").write_text("grey 77")
    training, report = read(tmp_path / "run", source)
    assert len(decoded) == 3
    assert [(photo.name, photo.height) for photo in training[0].photos] == [
        ("001.png", 130),
        ("003.png", 128),
        ("new.png", 128),
    ]
    assert report.skipped == {"broken": 1} and training[0].pixels_name != before.pixels_name
    status = (source / "003.png").stat()
    os.utime(source / "003.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    decoded.clear()
    (source / "003.txt").write_text("another caption")  # captions are not in the index
    training, _ = read(tmp_path / "run", source)
    assert len(decoded) == 1 and "another caption" in captions_of(training[0])


def test_changed_tar_is_decoded_again(tmp_path: Path, decoded: list[bytes]) -> None:
    members = {"0.png": encoded(50), "0.txt": b"grey 50", "1.png": encoded(60), "1.txt": b"grey 60"}
    path = write_tar(tmp_path / "a.tar", members)
    read(tmp_path / "run", path)
    decoded.clear()
    write_tar(path, {**members, "2.png": b"broken", "2.txt": b"broken"})
    assert read(tmp_path / "run", path)[1].skipped == {"broken": 1}
    assert len(decoded) == 3


def test_interrupted_check_is_continued(tmp_path: Path, decoded: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """The index is written chunk by chunk, and a line that a crash truncated is ignored."""
    monkeypatch.setattr(photos, "CHUNK", 4)
    source = write_folder(tmp_path / "a", 12)

    def interrupt(done: int, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_index(tmp_path / "run") as index:
        read_sources([Source(source)], 128, index=index, progress=interrupt)
    path = tmp_path / "run" / FOLDER / INDEX
    path.write_text(path.read_text()[:-7])
    decoded.clear()
    assert read(tmp_path / "run", source)[1].used == 12
    assert len(decoded) == 5
    decoded.clear()
    read(tmp_path / "run", source)
    assert decoded == []


def test_unreadable_file_is_tried_again_by_the_next_run(tmp_path: Path, decoded: list[bytes]) -> None:
    source = write_folder(tmp_path / "a", 2)
    (source / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (source / "gone.txt").write_text("gone")
    assert read(tmp_path / "run", source)[1].skipped == {"broken": 1}
    (tmp_path / "nowhere.png").write_bytes(encoded(9))
    assert read(tmp_path / "run", source)[1].skipped == {}
    assert len(decoded) == 3


def test_index_without_a_path_writes_nothing(tmp_path: Path) -> None:
    index = ImageIndex()
    read_sources([Source(write_folder(tmp_path / "a", 2))], 128, index=index)
    index.write()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_index_is_locked_against_other_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kandinsky22.training.image_index.TIMEOUT", 0.0)
    with run_lock(tmp_path / FOLDER), pytest.raises(OSError, match="another run is going on"), open_index(tmp_path):
        pass
