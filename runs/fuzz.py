"""Gives the readers of files from outside changed files, for hours, guided by the code that these reach.

    pip install atheris                                # Linux, Python 3.11 to 3.13; without it changes are random
    python runs/fuzz.py "safetensors header" --minutes 10
    python runs/fuzz.py --all --minutes 10             # all targets, one after another, so many minutes each

A reader may refuse a file by `ValueError` or `OSError`. Anything else is a crash, and so is a file that takes 10
seconds or 2 GB: its content is saved as out/fuzz/TARGET/crash-*, and `python runs/fuzz.py TARGET --content FILE` reads
it again. Contents that reached new code are in out/fuzz/TARGET/corpus, from which the next run continues.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

GUIDED = importlib.util.find_spec("atheris") is not None
TARGETS = (
    "safetensors header",
    "safetensors file",
    "bin",
    "weight index",
    "single file",
    "vocabulary",
    "merges",
    "tokenizer config",
    "unet config",
    "movq config",
    "prior config",
    "text_encoder config",
    "image_encoder config",
    "scheduler config",
    "preprocessor config",
    "model metadata",
    "request",
    "PNG text",
    "PNG chunk",
    "picture",
    "infotext",
    "event",
    "embedding",
    "captions",
    "picture metadata",
    "metadata.jsonl",
    "metadata.csv",
    "tar",
    "things",
    "array",
    "picture index",
    "training state",
    "checkpoint metadata",
    "checkpoint shard",
    "metrics",
    "shard index",
    "evaluation settings",
    "manifest",
    "log",
    "caption table",
    "caption list",
    "npz statistics",
    "statistics",
)
"""The readers that are fuzzed, which `tests/hostile/parsers.py` has."""
SECONDS, MEGABYTES, MAX_BYTES = 10, 2048, 1 << 16  # for one content, and of one
INSERTED = (
    b"\0" * 8,
    b"\xff" * 8,
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"[" * 200,
    b'{"a":',
    b'"',
    b"\n",
    b"\\ud800",
    b"9" * 30,
)


def read_all(target: str, folder: Path) -> tuple[Sequence[bytes], Callable[[bytes], None]]:
    """The contents that a target accepts, and a function that reads one and raises for a crash alone."""
    from tests.hostile.parsers import REFUSALS, parsers

    parser = parsers(folder, target)[target]

    def read(content: bytes) -> None:
        with contextlib.suppress(*REFUSALS):
            parser.read(content)

    return parser.seeds, read


def fuzz_guided(target: str, minutes: float, place: Path, folder: Path) -> None:
    """Fuzz with atheris, which ends this process."""
    import atheris

    with atheris.instrument_imports(include=["kandinsky22", "PIL", "tarfile", "zipfile", "csv"]):
        seeds, read = read_all(target, folder)
    corpus = place / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    tokens = ("".join(f"\\x{byte:02x}" for byte in token) for token in INSERTED)
    (folder / "tokens").write_text("".join(f'"{token}"\n' for token in tokens))
    options = {
        "max_total_time": round(60 * minutes),
        "max_len": MAX_BYTES,
        "timeout": SECONDS,
        "rss_limit_mb": MEGABYTES,
        "artifact_prefix": f"{place}/",
        "dict": folder / "tokens",
        "print_final_stats": 1,
    }
    arguments = [sys.argv[0], str(corpus), *(f"-{name}={value}" for name, value in options.items())]
    atheris.Setup(arguments, lambda content: read(bytes(content)))
    atheris.Fuzz()


def fuzz_randomly(target: str, minutes: float, place: Path, folder: Path) -> None:
    """Fuzz without atheris: change what the target accepts at random places."""
    seeds, read = read_all(target, folder)
    end, executed, rng = time.monotonic() + 60 * minutes, 0, random.Random(0)
    while time.monotonic() < end:
        content = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            start = rng.randint(0, len(content))
            content[start : start + rng.choice((0, 1, 4, 30))] = rng.choice(
                (*INSERTED, rng.randbytes(rng.randint(0, 4)))
            )
        executed += 1
        try:
            read(bytes(content))
        except BaseException:
            (place / f"crash-{hashlib.sha256(content).hexdigest()[:16]}").write_bytes(content)
            raise
    print(f"stat::number_of_executed_units: {executed}", file=sys.stderr)


def fuzz_each(targets: Sequence[str], minutes: float, out: Path) -> int:
    """Fuzz targets one after another, each in a process of its own, and print a line for each."""
    total = failed = 0
    for target in targets:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            command = [
                sys.executable,
                __file__,
                target,
                "--minutes",
                str(minutes),
                "--out",
                str(out),
                "--folder",
                folder,
            ]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        (out / target / "log.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
        found = re.findall(r"number_of_executed_units: (\d+)|^#(\d+)\s", done.stderr, re.MULTILINE)
        executed = max((int(number) for pair in found for number in pair if number), default=0)
        total, failed = total + executed, failed + (done.returncode != 0)
        crash = f"  CRASHED, see {out / target / 'log.txt'}" if done.returncode else ""
        print(f"{target:22} {executed:10,d} executions{crash}", flush=True)
    print(f"{'all':22} {total:10,d} executions, {failed} of {len(targets)} targets crashed")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=TARGETS, metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--all", action="store_true", help="fuzz all targets, one after another")
    parser.add_argument("--minutes", type=float, default=10, help="for each target (default: 10)")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "fuzz", help="for corpora and crashes (out/fuzz)")
    parser.add_argument("--content", type=Path, help="read this content once, such as a crash")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a process of `fuzz_each`
    args = parser.parse_args()
    if args.all == (args.target is not None):
        parser.error("name one target, or give --all")
    if args.content is not None:
        with tempfile.TemporaryDirectory() as folder:
            read_all(args.target, Path(folder))[1](args.content.read_bytes())
        print("read or refused")
        return 0
    if args.folder is not None:
        fuzz = fuzz_guided if GUIDED else fuzz_randomly
        fuzz(args.target, args.minutes, args.out / args.target, args.folder)
        return 0
    targets = TARGETS if args.all else (args.target,)
    for target in targets:
        (args.out / target).mkdir(parents=True, exist_ok=True)
    return fuzz_each(targets, args.minutes, args.out.absolute())


if __name__ == "__main__":
    sys.exit(main())
