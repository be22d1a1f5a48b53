"""Opening, writing and locking files safely among other processes, and the user's cache folder. Imports no torch."""

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import IO, Any, BinaryIO

from safetensors import SafetensorError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

POLL = 0.1  # seconds between attempts to take a lock
MAX_DEPTH = 100  # of JSON values: requests and configurations have less than ten
HALF = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")  # of a character beyond 16 bits, as JSON writes it or as it is
TEMPORARY = ".part"  # the suffix of a folder with a file that is being written
LEFTOVER = re.compile(rf"\..+\.[0-9a-f]{{16}}{re.escape(TEMPORARY)}", re.DOTALL)
FICLONE = 0x40049409  # Linux's ioctl that makes a file share the blocks of another


@contextlib.contextmanager
def atomic_write(path: Path, *, exclusive: bool = False) -> Iterator[Path]:
    """Yield a temporary file to write to; it is renamed to `path` when the block ends.

    If writing fails, the temporary file is removed and an existing file stays as it was. The folder is created, and
    temporary files of killed processes are removed from it. exclusive: raise `FileExistsError` instead of replacing a
    file. Raises `OSError` whatever exception the writer raised for a failed write.
    """
    try:
        with _temporary_folder(path) as folder:
            partial = folder / path.name
            with partial.open("xb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            yield partial
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            partial.chmod(mode)  # some writers create files that only their owner may read
            if exclusive:
                _rename_exclusively(partial, path)
            else:
                partial.replace(path)
    except (RuntimeError, SafetensorError) as error:  # torch and safetensors raise these for a failed write
        raise OSError(f"cannot write {path}: {error}") from error


@contextlib.contextmanager
def atomic_folder(path: Path, *, exclusive: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to write to; it is renamed to `path` when the block ends, and removed if writing fails.

    exclusive: raise `FileExistsError` instead of replacing a file or a folder that is not empty.
    """
    with _temporary_folder(path) as folder:
        partial = folder / path.name
        partial.mkdir()
        yield partial
        if not exclusive:
            shutil.rmtree(path, ignore_errors=True)
        elif path.exists():
            try:
                path.rmdir()
            except OSError as error:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        partial.rename(path)


def write_first_free(
    paths: Iterable[Path], write: Callable[[Path], object], is_same: Callable[[Path], bool] = lambda path: False
) -> Path:
    """Write to the first path without a file, and return it; if a file on the way has this content, that one.

    write: must create its file exclusively, as `atomic_write` does, since other processes may be writing too.
    """
    for path in paths:
        with contextlib.suppress(FileExistsError):
            if not path.exists():
                write(path)
                return path
        if is_same(path):
            return path
    raise AssertionError("there is always one more name")


def numbered(path: Path) -> Iterator[Path]:
    """The path, and then the same one with `-2`, `-3`, ... before its suffix."""
    yield path
    yield from (path.with_stem(f"{path.stem}-{k}") for k in count(2))


@contextlib.contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """A new locked folder beside `path`, which is removed when the block ends.

    A folder, since some writers replace their file by another one, which would have no lock.
    """
    _make_folder(path.parent)
    remove_leftovers(path.parent)
    with contextlib.ExitStack() as cleanup:
        while True:
            # The name is cut so that it stays within the 255 bytes of a file system; the random part makes it unique.
            folder = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}{TEMPORARY}")
            folder.mkdir()
            if sys.platform == "win32":
                break
            # Before it is locked, another process may take it for a leftover; then the next one is tried.
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(folder, os.O_RDONLY)
                cleanup.callback(os.close, descriptor)
                if _lock(descriptor, timeout=0) and folder.exists():
                    break
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def _make_folder(folder: Path) -> None:
    """Create a folder, if there is none. Raises `NotADirectoryError` if it is a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None


def _rename_exclusively(source: Path, target: Path) -> None:
    """Rename a file. Raises `FileExistsError` if there is a file of the new name."""
    try:
        target.hardlink_to(source)  # atomic, and fails if the target exists
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: reserve the name, then replace the empty file
        target.open("xb").close()
        source.replace(target)


@cache  # once in a process is enough
def remove_leftovers(folder: Path) -> None:
    """Remove what `atomic_write` and `atomic_folder` left in a folder when their process was killed.

    A process that still writes holds a lock, so its files stay; where there are no locks, all stay.
    """
    if sys.platform == "win32":
        return
    for path in folder.iterdir():
        if LEFTOVER.fullmatch(path.name):
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    if _try_lock(descriptor):
                        shutil.rmtree(path, ignore_errors=True)
                finally:
                    os.close(descriptor)


def check_in_place(file: IO[Any], path: Path) -> None:
    """Raises `OSError` if `path` is no longer the open `file`, since its folder was removed or replaced."""
    try:
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return
    except FileNotFoundError:
        pass
    raise OSError(f"{path.parent} was removed or replaced while it was in use; give the command again")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, sharing its blocks until one of the two is written to where the file system can (reflink)."""
    with open_regular(source) as original, atomic_write(target) as partial, partial.open("wb") as copy:
        try:
            if sys.platform != "linux":
                raise OSError(errno.ENOTSUP, "no reflinks")
            fcntl.ioctl(copy.fileno(), FICLONE, original.fileno())
        except OSError:
            shutil.copyfileobj(original, copy, 1 << 20)


def open_regular(path: Path, max_bytes: int | None = None) -> BinaryIO:
    """Open a file for reading. It never waits for a pipe and never reads a device.

    Raises `ValueError` for anything but a regular file, and for one larger than `max_bytes`; `OSError` as `open` does.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is a pipe or a device; give a regular file")
        if max_bytes is not None and status.st_size > max_bytes:
            raise ValueError(f"{path} has {status.st_size} bytes, and at most {max_bytes} are read")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        with contextlib.suppress(OSError):  # `fdopen` may have closed it
            os.close(descriptor)
        raise


def require_regular(path: Path) -> None:
    """Raises as `open_regular` does; for libraries that open a file by its name."""
    open_regular(path).close()


def parse_json(text: str | bytes, *, halves: bool = False) -> Any:
    """The value of a JSON text, nested at most `MAX_DEPTH` deep. Raises `ValueError` for anything else.

    halves: whether its texts may have half characters (lone surrogates), which no file and no terminal can have.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_depth(value)
    if not halves and HALF.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it has half characters") from None
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        children = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [child for among in children for child in among if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters of it; else the name of the error."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def cache_dir() -> Path:
    """The user's folder for what is computed once and reused; `KANDINSKY22_CACHE` moves it.

    Raises `ValueError` if nothing says where it is.
    """
    if chosen := os.environ.get("KANDINSKY22_CACHE"):
        return Path(chosen)
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "kandinsky22"
    try:
        return Path.home() / ".cache" / "kandinsky22"
    except RuntimeError:
        raise ValueError("this user has no home folder for the cache; name a folder in KANDINSKY22_CACHE") from None


def expand(path: str | os.PathLike[str]) -> Path:
    """A path with the home folder of a user in the place of `~` or `~name`. Raises `ValueError` for an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path} begins with the home folder of a user that is not known here; write it out") from None


def lock(file: IO[Any], timeout: float | None = None) -> bool:
    """Take an exclusive lock on an open file, which the system releases when the file is closed or its process ends.

    Waits up to `timeout` seconds (None: without limit; 0: not at all) and returns whether the lock was taken. On a file
    system without locks it returns True at once.
    """
    return _lock(file.fileno(), timeout)


def _lock(descriptor: int, timeout: float | None) -> bool:
    end = None if timeout is None else time.monotonic() + timeout
    with contextlib.suppress(OSError):
        while not _try_lock(descriptor):
            if end is not None and time.monotonic() >= end:
                return False
            time.sleep(POLL)
    return True


@contextlib.contextmanager
def locked(path: Path, timeout: float | None = None, error: str = "") -> Iterator[Callable[[], None]]:
    """Lock a file, which is created, against other processes while the block runs; the end of the process releases it.

    Waits as `lock` does, then raises `BlockingIOError` with the message `error` if another process still has the lock.
    Yields a function that raises `OSError` if the file was removed or replaced since, for instance with its folder.
    """
    _make_folder(path.parent)
    if path.exists():
        require_regular(path)
    with path.open("ab") as file:
        if not lock(file, timeout):
            raise BlockingIOError(error or f"{path} is locked by another process; wait until it ends")
        yield partial(check_in_place, file, path)


def _try_lock(descriptor: int) -> bool:
    """Whether a lock was taken. Raises `OSError` on a file system without locks."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
