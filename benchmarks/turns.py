"""For processes that take turns: clocks, a report after each turn, memory, and the allocator's settings."""

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
    """The turns of this process: waits for each, and reports how long its work took."""

    def __init__(self, result: Path | None) -> None:
        self.result = result
        self.wall = self.cpu = 0.0
        self.began = time.perf_counter()

    def wait(self) -> None:
        """Wait for this process's next turn; exit if there is none."""
        if not sys.stdin.readline():
            raise SystemExit
        self.wall = self.cpu = 0.0
        self.began = time.perf_counter()

    def start(self) -> None:
        """Start the clocks for the timed part of a turn. The rest counts as loading."""
        self.wall -= time.perf_counter()
        self.cpu -= time.process_time()

    def stop(self) -> None:
        """Stop the clocks; they may be started again."""
        self.wall += time.perf_counter()
        self.cpu += time.process_time()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Run the clocks within the block."""
        self.start()
        try:
            yield
        finally:
            self.stop()

    def report(self, **result: Any) -> None:
        """Print the measurements of the turn; write the tensors of the first one."""
        loading = time.perf_counter() - self.began - self.wall
        measurements = {"seconds": self.wall, "cpu": self.cpu, "loading": loading, "peak": peak()}
        print(json.dumps(measurements), flush=True)
        if self.result is not None and result:
            write(self.result, result)
        self.result = None


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write tensors to a file, as float32."""
    import torch
    from safetensors.torch import save_file

    save_file({name: torch.as_tensor(value).float().contiguous() for name, value in result.items()}, path)


def peak() -> int:
    """The peak of resident memory of this process in bytes (VmHWM; getrusage may include the parent's), 0 if
    unknown."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)


def free_unused() -> None:
    """Return free memory to the system, for the next process."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed large tensors instead of returning it page by page, and torch, if it is not
    imported yet, use huge pages, as this package does."""
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 64 << 20)
