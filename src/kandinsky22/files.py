"""Files are written whole or not at all. Imports no torch."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError


def _umask() -> int:
    """What this process takes away from new files; the only way to know is to set it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a name beside `path` to write to, which becomes `path` once it is written.

    Where writing fails, what was written is removed and an old file stays as it was. The folder is made. Raises `OSError`,
    whatever the writer raised it as.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.chmod(
            0o666 & ~_umask()
        )  # some writers leave a file to its owner alone, whoever else may be meant to read it
        partial.replace(path)
    except (RuntimeError, SafetensorError) as error:  # what torch and safetensors call a failed write
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
