"""Standard output and error whose loss does not stop the work: a picture is finished although its reader has gone."""

import io
import os
import sys
from typing import Any

STREAMS = ("stdin", "stdout", "stderr")


class LastingStream(io.FileIO):
    """A file descriptor to write to; after an error everything written is dropped, and `error` is the reason."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write bytes; returns how many."""
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


def open_lasting() -> list[LastingStream]:
    """Replace stdout and stderr by streams that outlive their reader; streams that are closed lead to nowhere."""
    for descriptor, name in enumerate(STREAMS):
        if getattr(sys, name) is None:
            _open_null(descriptor)
    if sys.platform == "win32":  # its terminals are written to in another way
        return []
    return [_replace("stdout", 1), _replace("stderr", 2)]


def _open_null(descriptor: int) -> None:
    """Open the null device there: a file opened later would get that number, and receive what libraries print."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)


def _replace(name: str, descriptor: int) -> LastingStream:
    raw, old = LastingStream(descriptor, "w", closefd=False), getattr(sys, name)
    encoding, by_line = (old.encoding, old.line_buffering) if isinstance(old, io.TextIOWrapper) else ("utf-8", False)
    # The encoding of a terminal may lack letters of a prompt.
    text = io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=by_line)
    setattr(sys, name, text)
    return raw
