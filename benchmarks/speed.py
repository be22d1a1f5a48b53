"""Speed compared with diffusers: two programs in separate processes, with the same weights, taking turns.

    python benchmarks/speed.py                                     quick: the included model, minutes
    python benchmarks/speed.py --model FOLDER --rows unet,movq --dtype float32 --threads 2 --repeat 3 --json out.json
    python benchmarks/speed.py table out.json ...                  the tables, in Markdown

An empty FOLDER is filled with a random model of the published size, 16 GB. The programs of a row are started once and
take turns (A B A B), never both at work; "fresh" rows start a process for each turn. A first turn warms up if that is
short, and is not counted. Every turn is written to the file of results when it ends; a later call with the same file
adds to it.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import tables
from tables import ALLOCATOR, OURS, PLAIN, THEIRS
from works import PROMPT

BENCHMARKS = Path(__file__).parent
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")  # those that affect speed


class Row(NamedTuple):
    """How a row of the table is measured.

    fresh: a process for each turn. warm: an uncounted first turn at the published size too. allocator: diffusers also
    runs with the allocator setting. until: the clock of a fresh process stops at its "end" or at its first "line" of
    output. plain: our float32 result is also compared with that of the plain network.
    """

    fresh: bool = False
    warm: bool = True
    allocator: bool = True
    until: str = "end"
    plain: bool = False


ROWS = {
    "help": Row(fresh=True, allocator=False),
    "box": Row(fresh=True),
    "first": Row(fresh=True, until="line"),
    "unet": Row(plain=True),
    "movq": Row(plain=True),
    "prior": Row(warm=False, plain=True),
    "whole": Row(warm=False),
    "fast": Row(warm=False, allocator=False),
    "memory": Row(fresh=True, warm=False, allocator=False),
}
QUICK = "help,box,unet,movq,prior,whole"


class Worker:
    """A process of one program; each `turn` makes it do its work once."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Any, until: str | None) -> None:
        self.command, self.environment, self.log, self.until = command, environment, log, until
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """End the turns; the process exits when its result is written. Raises `RuntimeError` if it fails then; after
        another error the process is killed."""
        if self.process is not None:
            assert self.process.stdin is not None and self.process.stdout is not None
            with suppress(BrokenPipeError):
                self.process.stdin.close()
            if error is not None:
                self.process.kill()
            ended = self.process.wait()
            self.process.stdout.close()
            if ended and error is None:
                raise RuntimeError(f"it ended with {ended}; see {self.log.name}")

    def start(self) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        self.process = subprocess.Popen(self.command, env=self.environment, text=True, **pipes)
        return self.process

    def turn(self) -> dict[str, float]:
        """The measurements of one turn. Raises `RuntimeError` if the process ends without any."""
        process = self.start() if self.process is None else self.process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"it ended with {process.wait()}; see {self.log.name}")
        measurements: dict[str, float] = json.loads(line)
        return measurements

    def fresh_turn(self) -> dict[str, float]:
        """The measurements of a new process, timed from outside, with those that it prints."""
        before = os.times()
        began = time.perf_counter()
        process = self.start()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        line = process.stdout.readline()
        first_line = time.perf_counter() - began
        process.stdout.read()
        process.stdout.close()
        if process.wait() != 0:
            raise RuntimeError(f"it ended with {process.returncode}; see {self.log.name}")
        ended, after = time.perf_counter() - began, os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        self.process = None
        more = json.loads(line) if line.startswith("{") else {}
        return {**more, "seconds": first_line if self.until == "line" else ended, "cpu": cpu}


def commands(row: str, a: argparse.Namespace, results: Path, scratch: Path) -> dict[str, list[str]]:
    """The command of each program."""
    python = sys.executable
    if row == "help":
        pipelines = "from diffusers import KandinskyV22PriorPipeline, KandinskyV22Pipeline"
        return {OURS: [python, "-m", "kandinsky22", "--help"], THEIRS: [python, "-c", pipelines]}
    if row == "memory":
        command = [python, str(BENCHMARKS / "memory.py"), str(a.model)]
        command += ["--side", str(a.side), "--steps", "2", "--dtype", a.dtype, "--row"]
        return {OURS: [*command, "kandinsky22, offload"], THEIRS: [*command, "diffusers"]}
    model = {
        "--model": a.model,
        "--dtype": a.dtype,
        "--threads": a.threads,
        "--side": a.side,
        "--steps": a.steps,
        "--prior-steps": a.prior_steps,
    }
    if row == "box":
        model |= {"--guidance": a.guidance, "--prior-guidance": a.prior_guidance, "--png": scratch / "theirs.png"}
    options = [str(word) for pair in model.items() for word in pair]
    work = {"box": "picture"}.get(row, row)

    def program(name: str, *more: str) -> list[str]:
        return [python, str(BENCHMARKS / "works.py"), name, work, *options, *more]

    programs = {side: program(side, "--result", str(results_of(results, row, a, side))) for side in (OURS, THEIRS)}
    if row == "fast":
        del programs[THEIRS]
    elif a.allocator and ROWS[row].allocator:
        programs[ALLOCATOR] = program(THEIRS, "--keep-freed")
    if row == "box":
        programs[OURS] = [python, "-m", "kandinsky22", PROMPT, "--seed", "0", "--output", str(scratch / "ours.png")]
    return programs


def results_of(folder: Path, row: str, a: argparse.Namespace, program: str, dtype: str | None = None) -> Path:
    """The file of a program's result of a row, for comparison."""
    steps = f"-{a.steps}" if row in ("whole", "box") else ""
    return folder / f"{row}{steps}-{a.side}-{dtype or a.dtype}-{program}.safetensors"


def measure(row: str, a: argparse.Namespace, about: dict[str, Any], limits: Any) -> Iterator[tables.Record]:
    """Measure a row, taking turns; yields the record so far after each turn."""
    outputs = a.json.with_suffix(".results")
    outputs.mkdir(parents=True, exist_ok=True)
    paths = {side: results_of(outputs, row, a, side) for side in (OURS, THEIRS, PLAIN)}
    for path in paths.values():  # those of an earlier call do not count
        path.unlink(missing_ok=True)
    kind = ROWS[row]
    record: tables.Record = {
        "row": row,
        "model": a.model.name,
        "published_size": a.published_size,
        "dtype": a.dtype,
        "threads": a.threads,
        "side": a.side,
        "steps": a.steps,
        "prior_steps": a.prior_steps,
        "about": about,
        "turns": {},
        "agreement": {},
        "limits": {"peaks": limits["peaks"], **limits["stages"][row]} if row in limits["stages"] else None,
    }
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(a.threads),
        "MKL_NUM_THREADS": str(a.threads),
        "HF_HUB_OFFLINE": "1",
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environment["KANDINSKY22_CACHE"] = str(scratch / "cache")  # empty, so that nothing cached shortens a run
        # The first turn writes bytecode, as an installation does: a source tree has none, diffusers always has.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        log = stack.enter_context(a.json.with_suffix(".log").open("a"))
        with ExitStack() as both:
            workers = {
                name: both.enter_context(Worker(command, environment, log, kind.until))
                for name, command in commands(row, a, outputs, scratch).items()
            }
            warm = kind.warm or not a.published_size
            for number in range(0 if warm else 1, a.repeat + 1):
                for name, worker in workers.items():
                    turn = worker.fresh_turn() if kind.fresh else worker.turn()
                    when = f"turn {number} of {a.repeat}" if number else "warming up"
                    print(f"{row}, {a.dtype}, {when}: {name} {turn['seconds']:.3g} s", file=sys.stderr, flush=True)
                    if number:
                        record["turns"].setdefault(name, []).append(turn)
                        yield record
        if kind.plain and a.dtype == "float32":
            command = commands(row, a, outputs, scratch)[OURS]
            command[command.index("--result") + 1] = str(results_of(outputs, row, a, PLAIN))
            with Worker(command, {**environment, "KANDINSKY22_ACCELERATION": "off"}, log, kind.until) as worker:
                print(f"{row}, {a.dtype}: {PLAIN} {worker.turn()['seconds']:.3g} s", file=sys.stderr, flush=True)
        if row == "box":  # our command draws other noise: pictures are compared with one generator for both
            command = commands("whole", a, outputs, scratch)[OURS]
            command[3:4] = ["picture", "--guidance", str(a.guidance), "--prior-guidance", str(a.prior_guidance)]
            command += ["--png", str(scratch / "same.png"), "--result", str(results_of(outputs, row, a, OURS))]
            subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)
    record["agreement"] = tables.agreement(paths, results_of(outputs, row, a, THEIRS, "float32"))
    yield record


def about(arguments: Sequence[str]) -> dict[str, Any]:
    """The machine, the software, the date and the command."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpuinfo = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    has = [flag for flag in INSTRUCTIONS if flag in cpuinfo.get("flags", "").split()]
    name = cpuinfo.get("model name", platform.processor() or platform.machine())
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "diffusers", "transformers"))
    return {
        "machine": f"{os.cpu_count()} cores of {name} ({', '.join(has)})",
        "software": f"{packages}, Python {platform.python_version()}",
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/speed.py", *arguments]),
    }


def prepared(a: argparse.Namespace) -> None:
    """Fill in what depends on the model: folder, size, and the box's sampling. Writes a random model into an empty
    folder."""
    from kandinsky22.checkpoints import catalog, locate
    from kandinsky22.checkpoints.json_files import read_json
    from kandinsky22.checkpoints.metadata import read_metadata

    if a.model == catalog.BOX:
        a.model = locate.model_folder(a.model)
    elif not (Path(a.model) / catalog.DECODER / "model_index.json").is_file():
        import random_model

        random_model.write_model(Path(a.model))
    a.model = Path(a.model).resolve()
    config = read_json(a.model / "decoder/unet/config.json")
    a.side = a.side or 8 * config["sample_size"]
    a.published_size = config["block_out_channels"] == [384, 768, 1152, 1536]
    defaults = read_metadata(a.model / "decoder").defaults
    prior, decoder = defaults.get("prior"), defaults.get("decoder")
    a.prior_guidance, a.guidance = (part.guidance_scale if part else 4.0 for part in (prior, decoder))
    a.prior_steps = a.prior_steps or (prior.steps if prior else None) or 25
    a.steps = a.steps or (decoder.steps if decoder else None) or 10


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The parsed command line. Raises `SystemExit` for a wrong one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="box", help="box, or a folder; an empty one is filled (default: box)")
    parser.add_argument("--rows", default=QUICK, help=f"of {', '.join(ROWS)} (default: {QUICK})")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each program (default: all cores)")
    parser.add_argument("--repeat", type=int, default=3, help="turns of each program (default: 3)")
    parser.add_argument("--steps", type=int, help="of the decoder in whole runs (default: the model's, or 10)")
    parser.add_argument("--prior-steps", type=int, help="(default: the model's, or 25)")
    parser.add_argument("--side", type=int, help="of pictures, in pixels (default: the model's)")
    parser.add_argument(
        "--no-allocator", dest="allocator", action="store_false", help="leave out diffusers with the allocator setting"
    )
    parser.add_argument(
        "--json", type=Path, default=Path("out/speed.json"), help="results, added to (default: out/speed.json)"
    )
    a = parser.parse_args(arguments)
    a.rows = a.rows.split(",")
    if unknown := set(a.rows) - ROWS.keys():
        parser.error(f"there is no row {', '.join(unknown)}; choose of {', '.join(ROWS)}")
    if "box" in a.rows and a.model != "box":
        parser.error("the row box measures the included model: leave out --model, or the row")
    return a


def main(arguments: Sequence[str]) -> int:
    """Measure, or print the tables of earlier results."""
    if arguments[:1] == ["table"]:
        print(tables.markdown(tables.read(map(Path, arguments[1:]))))
        return 0
    a = parsed(arguments)
    a.json.parent.mkdir(parents=True, exist_ok=True)
    prepared(a)
    known = json.loads(a.json.read_text()) if a.json.is_file() else []
    run, failed = about(arguments), []
    command = [
        sys.executable,
        str(BENCHMARKS / "roofline.py"),
        str(a.model),
        "--dtype",
        a.dtype,
        "--threads",
        str(a.threads),
    ]
    command += ["--side", str(a.side), "--prior-steps", str(a.prior_steps)]
    limits = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    for row in a.rows:
        record: tables.Record | None = None
        try:
            for record in measure(row, a, run, limits):
                tables.save(a.json, [*known, record])
        except (RuntimeError, ValueError, subprocess.CalledProcessError) as error:
            print(f"{row}: {error}", file=sys.stderr)
            failed.append(row)
        except KeyboardInterrupt:
            print(f"stopped; the measurements so far are in {a.json}", file=sys.stderr)
            return 130
        known += [record] if record else []
    print(tables.markdown([record for record in known if record["about"] == run]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
