"""Kill an evaluation fifty times while it paints, and see whether it ends with the pictures of one that was left alone.

    python runs/kill_evaluation.py --kills 50 [--model FOLDER]

Starts `kandinsky22 evaluate world` again and again in one folder and ends it with SIGKILL some random number of pictures, and a
random part of a second, after it has said what it will paint: sometimes its process alone, sometimes the ones it painted with,
sometimes all of them at once. A run that becomes whole is compared and begun anew, until there were so many kills amid painting;
the last is let finish. Every picture's
bytes, the manifest, what `run.json` says and the log must be those of a run that nothing happened to.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kandinsky22.evaluation.manifest import MANIFEST, RUN, Run
from kandinsky22.evaluation.run_state import is_complete_png, logged


def main() -> None:
    """Kill, compare, and print what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="amid painting (default: 50)")
    parser.add_argument("--model", default="box", help="which to paint with (default: box)")
    parser.add_argument("--count", type=int, default=48, help="pictures of a run (default: 48)")
    parser.add_argument("--most", type=int, default=12, help="pictures that a start may paint before it is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of who is killed (default: 0)")
    options = parser.parse_args()
    chance, folder = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="kill-evaluation-"))
    alone, killed = folder / "alone", folder / "killed"
    told = {"kills amid painting": 0, "kills at other moments": 0, "whole runs compared": 0}
    with begun(options, alone) as left_alone:
        left_alone.communicate()
        assert left_alone.returncode == 0
    known = state(alone)
    while told["kills amid painting"] < options.kills:
        with begun(options, killed) as process:
            wait_for_painting(process)
            enough = painted(killed) + chance.randrange(options.most + 1)
            while painted(killed) < min(enough, options.count) and process.poll() is None:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.5))
            before, over = painted(killed), process.poll() is not None
            if not over:
                kill(process, chance.choice(["it", "its own", "all"]))
            process.communicate()
        amid = not over and before < options.count
        if not over:
            told["kills amid painting" if amid else "kills at other moments"] += 1
        print(f"{before} of {options.count} painted, {'over' if over else 'killed'}; {told}", flush=True)
        if painted(killed) == options.count:
            compare(options, killed, known)
            told["whole runs compared"] += 1
            shutil.rmtree(killed)
    compare(options, killed, known)
    told["whole runs compared"] += 1
    shutil.rmtree(folder)
    print(json.dumps({**told, "pictures of each": options.count, "differences": 0, "seed": options.seed}))


def begun(options: argparse.Namespace, out: Path) -> subprocess.Popen[str]:
    """The command, in a session of its own."""
    command = [sys.executable, "-m", "kandinsky22", "evaluate", "world", "--model", options.model, "--out", str(out)]
    command += ["--count", str(options.count), "--steps", "4", "--prior-num-inference-steps", "4", "--batch", "4"]
    command += ["--processes", "1", "--threads", "1", "--device", "cpu"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )


def wait_for_painting(process: subprocess.Popen[str]) -> None:
    """Until it has said what it will paint."""
    assert process.stdout is not None
    for line in process.stdout:
        if "pictures to paint" in line:
            return


def kill(process: subprocess.Popen[str], who: str) -> None:
    """`it`: the process alone; `its own`: those it paints with, which it then starts again, and a moment later it too; `all`."""
    if who == "all":
        os.killpg(process.pid, signal.SIGKILL)
        return
    if who == "its own":
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        time.sleep(0.5)
    process.kill()


def painted(folder: Path) -> int:
    """How many pictures have their names."""
    return sum(map(is_complete_png, (folder / "pictures").glob("*.png")))


def state(folder: Path) -> dict[str, str | dict[str, str]]:
    """What two runs are compared by."""
    run = Run.open(folder)
    pictures = {path.name: digest(path) for path in sorted(run.pictures.iterdir())}
    log = {f"{name}.png": str(record["sha256"]) for name, record in sorted(logged(run).items())}
    about = {name: value for name, value in run.settings.items() if name != "command"}  # which names the folder
    return {
        "pictures": pictures,
        "log": log,
        MANIFEST: digest(folder / MANIFEST),
        RUN: json.dumps(about, sort_keys=True),
    }


def digest(path: Path) -> str:
    """SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def compare(options: argparse.Namespace, folder: Path, known: dict[str, str | dict[str, str]]) -> None:
    """Let a run finish, report included, and hold it against the one that was left alone."""
    with begun(options, folder) as process:
        process.communicate()
        assert process.returncode == 0
    assert (folder / "report.html").exists()
    found = state(folder)
    differs = [name for name in known if found[name] != known[name]]
    assert not differs, f"{folder} differs in {', '.join(differs)}"
    assert len(known["pictures"]) == options.count and known["pictures"] == known["log"]


if __name__ == "__main__":
    main()
