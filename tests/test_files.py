"""Files that several processes and threads write at once, and files that are none."""

import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kandinsky22.files import (
    MAX_DEPTH,
    atomic_folder,
    atomic_write,
    cache_dir,
    copy_file,
    expand,
    open_regular,
    parse_json,
)


def write(path: Path, text: str, exclusive: bool = False) -> bool:
    """Whether the file was written."""
    try:
        with atomic_write(path, exclusive=exclusive) as partial:
            partial.write_text(text)
    except FileExistsError:
        return False
    return True


def test_threads_that_write_one_name_leave_one_whole_file(tmp_path: Path) -> None:
    path, texts = tmp_path / "a.txt", [str(n) * 10_000 for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            assert all(pool.map(write, [path] * 8, texts))
            assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_only_one_process_creates_a_name_exclusively(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        for n in range(10):
            path = tmp_path / f"{n}.txt"
            assert sorted(pool.starmap(write, [(path, str(k), True) for k in range(4)])) == [False] * 3 + [True]
            assert path.read_text() in "0123"
    assert len(list(tmp_path.iterdir())) == 10


def test_processes_with_the_same_pid_do_not_share_temporary_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in containers
    with atomic_write(tmp_path / "a") as first, atomic_write(tmp_path / "a") as second:
        assert first != second


def test_a_name_of_the_longest_length_can_be_written(tmp_path: Path) -> None:
    assert write(tmp_path / ("n" * 255), "text")


def test_written_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "a") as partial:
        partial.unlink()
        partial.touch(0o600)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    write(tmp_path / "a", "old")
    with pytest.raises(OSError, match="cannot write"), atomic_write(tmp_path / "a") as partial:
        partial.write_text("half")
        raise RuntimeError("the disk is full")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"] and (tmp_path / "a").read_text() == "old"


WRITER = """
import sys, time
from pathlib import Path
from kandinsky22.files import atomic_write
with atomic_write(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def test_next_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "a")]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as killed,
        subprocess.Popen(command, stdout=subprocess.PIPE) as writing,
    ):
        for process in (killed, writing):
            assert process.stdout is not None and process.stdout.readline() == b"writing\n"
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert len(list(tmp_path.iterdir())) == 2
        assert write(tmp_path / "b", "text")
        assert len(list(tmp_path.iterdir())) == 2  # of the process that still writes, and b
        writing.kill()


def test_changing_a_copy_leaves_the_original_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0" * 3_000_000)
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"0" * 3_000_000
    with (tmp_path / "b").open("r+b") as copy:
        copy.write(b"1")
    assert (tmp_path / "a").read_bytes() == b"0" * 3_000_000


def test_pipes_devices_folders_and_large_files_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"0" * 11)
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="give a regular file"):
            open_regular(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(ValueError, match="has 11 bytes, and at most 10"):
        open_regular(tmp_path / "large", 10)
    with open_regular(tmp_path / "large", 11) as file:
        assert file.read() == b"0" * 11


def test_deeply_nested_json_is_a_value_error() -> None:
    assert parse_json(b'{"a": [1, null]}') == {"a": [1, None]}
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)


def test_json_is_parsed_unless_it_is_nested_too_deeply() -> None:
    assert parse_json('"\\ud83d\\ude00"') == "😀"
    assert parse_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 900, 100_000):
        for opening, closing in (("[", "]"), ('{"a":', "}")):
            with pytest.raises(ValueError, match="nested too deeply"):
                parse_json(opening * depth + "1" + closing * depth)


@pytest.mark.parametrize("text", ['{"a": ["\\ud83d"]}', '{"\\uDE00": 1}', '"\ud83d"', b'"\xed\xa0\xbd"'])
def test_half_characters_are_refused_unless_they_are_expected(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="half characters"):
        parse_json(text)
    assert parse_json(text, halves=True)


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "folder"
    with pytest.raises(OSError, match="full"), atomic_folder(place) as partial:
        (partial / "a").touch()
        raise OSError("full")
    assert not list(tmp_path.iterdir())
    for name in "ab":
        with atomic_folder(place) as partial:
            (partial / name).touch()
            assert not (place / name).exists()
        assert list(place.iterdir()) == [place / name]
    with pytest.raises(FileExistsError), atomic_folder(place, exclusive=True):
        pass
    assert list(tmp_path.iterdir()) == [place] and list(place.iterdir()) == [place / "b"]


def test_a_writer_that_replaces_its_file_is_not_taken_for_a_killed_one(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as partial:
        partial.unlink()
        partial.write_text("text")
        code = "from pathlib import Path; from kandinsky22.files import remove_leftovers; remove_leftovers(Path())"
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "a").read_text() == "text"


def test_files_of_others_are_never_taken_for_leftovers(tmp_path: Path) -> None:
    for name in (".film.mp4.part", ".film.2024.part", "film.0123456789abcdef.part", ".film.0123456789abcdef.part"):
        (tmp_path / name).touch()
    write(tmp_path / "a", "text")
    assert len(list(tmp_path.iterdir())) == 5


def test_the_home_folder_of_an_unknown_user_is_a_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand("~/x") == Path("/home/me/x") and expand("x~") == Path("x~")
    with pytest.raises(
        ValueError, match=r"^~nosuchuser/x begins with the home folder of a user that is not known here"
    ):
        expand("~nosuchuser/x")


def test_a_cache_without_a_home_folder_is_a_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KANDINSKY22_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: Path("~nosuchuser").expanduser()))
    with pytest.raises(ValueError, match="name a folder in KANDINSKY22_CACHE"):
        cache_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert cache_dir() == Path("cache/kandinsky22")
