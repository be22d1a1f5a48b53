"""What a process that takes turns has: clocks, a word at the end of each turn, its memory, its allocator."""

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's mallopt


class Turns:
    """The turns of this process: it waits for each, and tells how long it was at work."""

    def __init__(self, result: Path | None) -> None:
        self.result = result
        self.wall = self.cpu = 0.0
        self.began = time.perf_counter()

    def wait(self) -> None:
        """Until it is this process's turn; ends it where there are no more."""
        if not sys.stdin.readline():
            raise SystemExit
        self.wall = self.cpu = 0.0
        self.began = time.perf_counter()

    def start(self) -> None:
        """Start the clocks: of a turn, what is to be timed begins. The rest of it is loading."""
        self.wall -= time.perf_counter()
        self.cpu -= time.process_time()

    def stop(self) -> None:
        """Stop the clocks, maybe to start them again."""
        self.wall += time.perf_counter()
        self.cpu += time.process_time()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """With the clocks running."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def tell(self, **result: Any) -> None:
        """That it is done, and with what tensors."""
        loading = time.perf_counter() - self.began - self.wall
        said = {"seconds": self.wall, "cpu": self.cpu, "loading": loading, "peak": peak()}
        print(json.dumps(said), flush=True)
        if self.result is not None and result:
            write(self.result, result)
        self.result = None


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Tensors to a file, as float32."""
    import torch
    from safetensors.torch import save_file

    save_file({name: torch.as_tensor(value).float().contiguous() for name, value in result.items()}, path)


def peak() -> int:
    """The most resident bytes this process has had (VmHWM; getrusage may tell those of its parent), 0 where it is not told."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)


def give_back() -> None:
    """Return what is free to the system, so that the next process has room."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def keep_freed_memory() -> None:
    """Ask glibc to keep what large tensors free, instead of returning it page by page, and torch, if it is not imported yet, for
    huge pages, as this package does."""
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 64 << 20)
