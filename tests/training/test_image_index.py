"""Pictures are decoded once: a later start knows what they are, and notices what changed."""

import os
from pathlib import Path

import pytest

from kandinsky22.training import photos
from kandinsky22.training.image_index import FOLDER, INDEX, Judged, kept_in
from kandinsky22.training.lock import held
from kandinsky22.training.photos import Filter, Photos, Report, read
from kandinsky22.training.sources import Source
from tests.training.test_photos import encoded, told, write_folder, write_tar


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files that were decoded to be judged."""
    found: list[bytes] = []
    size = photos.decoded_size
    monkeypatch.setattr(photos, "decoded_size", lambda file: found.append(file) or size(file))
    return found


def start(run: Path, source: Path, filter: Filter = photos.EVERYTHING) -> tuple[list[Photos], Report]:
    """What a start of a run in a folder reads."""
    with kept_in(run) as judged:
        training, _, report = read([Source(source)], 128, held_out=0.0, filter=filter, judged=judged)
    return training, report


def test_a_second_start_decodes_nothing_and_says_the_same(tmp_path: Path, decoded: list[bytes]) -> None:
    """Of a folder and a tar in it; a run in another folder knows nothing of it."""
    source = write_folder(tmp_path / "a", 4)
    (source / "torn.png").write_bytes(encoded(0)[:-40])
    (source / "torn.txt").write_text("torn")
    (source / "small.png").write_bytes(encoded(0, 20, 30))
    (source / "small.txt").write_text("small")
    (source / "mute.png").write_bytes(encoded(0))
    members = {"0.png": encoded(50), "0.txt": b"grey 50", "1.png": b"broken", "1.txt": b"broken"}
    write_tar(source / "b.tar", members)
    first = start(tmp_path / "run", source, Filter(side=64))
    assert len(decoded) == 8  # all but the one that says nothing
    assert first[1].passed == {"broken": 2, "smaller than 64 pixels": 1, "without a readable caption": 1}
    decoded.clear()
    again = start(tmp_path / "run", source, Filter(side=64))
    assert decoded == []
    assert str(again[1]) == str(first[1]) and "2 broken (b.tar/1.png, torn.png)" in str(again[1])
    assert [part.name for part in again[0]] == [part.name for part in first[0]]
    assert sorted(told(again[0][0])) == ["grey 0", "grey 10", "grey 20", "grey 30", "grey 50"]
    lenient = start(tmp_path / "run", source)
    assert decoded == [] and lenient[1].used == first[1].used + 1  # sizes are known, whatever is asked of them
    start(tmp_path / "other", source)
    assert len(decoded) == 8


def test_what_is_changed_added_and_removed_is_noticed(tmp_path: Path, decoded: list[bytes]) -> None:
    source = write_folder(tmp_path / "a", 4)
    before = start(tmp_path / "run", source)[0][0]
    decoded.clear()
    (source / "000.png").write_bytes(b"broken now")
    (source / "001.png").write_bytes(encoded(10, 130, 130))
    (source / "002.png").unlink()
    (source / "002.txt").unlink()
    (source / "new.png").write_bytes(encoded(77))
    (source / "new.txt").write_text("grey 77")
    training, report = start(tmp_path / "run", source)
    assert len(decoded) == 3
    assert [(photo.name, photo.height) for photo in training[0].photos] == [
        ("001.png", 130),
        ("003.png", 128),
        ("new.png", 128),
    ]
    assert report.passed == {"broken": 1} and training[0].look != before.look
    status = (source / "003.png").stat()
    os.utime(source / "003.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    decoded.clear()
    (source / "003.txt").write_text("another caption")  # captions are not what is kept
    training, _ = start(tmp_path / "run", source)
    assert len(decoded) == 1 and "another caption" in told(training[0])


def test_a_tar_that_changes_is_looked_through_again(tmp_path: Path, decoded: list[bytes]) -> None:
    members = {"0.png": encoded(50), "0.txt": b"grey 50", "1.png": encoded(60), "1.txt": b"grey 60"}
    path = write_tar(tmp_path / "a.tar", members)
    start(tmp_path / "run", path)
    decoded.clear()
    write_tar(path, {**members, "2.png": b"broken", "2.txt": b"broken"})
    assert start(tmp_path / "run", path)[1].passed == {"broken": 1}
    assert len(decoded) == 3


def test_looking_that_was_stopped_goes_on(
    tmp_path: Path, decoded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept round by round, and a line that a crash tore is as if it were not there."""
    monkeypatch.setattr(photos, "ROUND", 4)
    source = write_folder(tmp_path / "a", 12)

    def stop(done: int, of: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), kept_in(tmp_path / "run") as judged:
        read([Source(source)], 128, judged=judged, progress=stop)
    index = tmp_path / "run" / FOLDER / INDEX
    index.write_text(index.read_text()[:-7])
    decoded.clear()
    assert start(tmp_path / "run", source)[1].used == 12
    assert len(decoded) == 5
    decoded.clear()
    start(tmp_path / "run", source)
    assert decoded == []


def test_what_cannot_be_read_now_is_looked_at_another_time(tmp_path: Path, decoded: list[bytes]) -> None:
    source = write_folder(tmp_path / "a", 2)
    (source / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (source / "gone.txt").write_text("gone")
    assert start(tmp_path / "run", source)[1].passed == {"broken": 1}
    (tmp_path / "nowhere.png").write_bytes(encoded(9))
    assert start(tmp_path / "run", source)[1].passed == {}
    assert len(decoded) == 3


def test_without_a_place_nothing_is_written(tmp_path: Path) -> None:
    judged = Judged()
    read([Source(write_folder(tmp_path / "a", 2))], 128, judged=judged)
    judged.write()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_two_networks_do_not_look_at_the_same_pictures_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kandinsky22.training.image_index.WAITING", 0.0)
    with held(tmp_path / FOLDER), pytest.raises(OSError, match="another run is going on"), kept_in(tmp_path):
        pass
