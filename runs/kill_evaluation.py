"""Kill an evaluation fifty times while it paints, and check that it ends with the pictures of an uninterrupted one.

    python runs/kill_evaluation.py --kills 50 [--model FOLDER]

Starts `kandinsky22 evaluate world` repeatedly in one folder and ends it with SIGKILL, a random number of pictures and a
random part of a second after painting starts: sometimes its process alone, sometimes its workers, sometimes all of
them. A run that completes is compared and restarted, until there were enough kills while painting; the last run is left
to finish. The bytes of every picture, the manifest, `run.json` and the log must be those of an uninterrupted run.
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

from kandinsky22.backends.run_state import is_complete_png, logged
from kandinsky22.evaluation.manifest import MANIFEST, RUN, Run


def main() -> None:
    """Kill, compare, and print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="kills while painting (default: 50)")
    parser.add_argument("--model", default="box", help="the model to paint with (default: box)")
    parser.add_argument("--count", type=int, default=48, help="pictures of a run (default: 48)")
    parser.add_argument("--most", type=int, default=12, help="pictures that a start may paint before it is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the times and the processes to kill (default: 0)")
    options = parser.parse_args()
    chance, folder = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="kill-evaluation-"))
    alone, killed = folder / "alone", folder / "killed"
    counts = {"kills while painting": 0, "kills at other times": 0, "complete runs compared": 0}
    with started(options, alone) as uninterrupted:
        uninterrupted.communicate()
        assert uninterrupted.returncode == 0
    known = state(alone)
    while counts["kills while painting"] < options.kills:
        with started(options, killed) as process:
            wait_for_painting(process)
            enough = painted(killed) + chance.randrange(options.most + 1)
            while painted(killed) < min(enough, options.count) and process.poll() is None:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.5))
            before, over = painted(killed), process.poll() is not None
            if not over:
                kill(process, chance.choice(["process", "workers", "all"]))
            process.communicate()
        painting = not over and before < options.count
        if not over:
            counts["kills while painting" if painting else "kills at other times"] += 1
        print(f"{before} of {options.count} painted, {'over' if over else 'killed'}; {counts}", flush=True)
        if painted(killed) == options.count:
            compare(options, killed, known)
            counts["complete runs compared"] += 1
            shutil.rmtree(killed)
    compare(options, killed, known)
    counts["complete runs compared"] += 1
    shutil.rmtree(folder)
    print(json.dumps({**counts, "pictures of each": options.count, "differences": 0, "seed": options.seed}))


def started(options: argparse.Namespace, out: Path) -> subprocess.Popen[str]:
    """The command, started in its own session."""
    command = [sys.executable, "-m", "kandinsky22", "evaluate", "world", "--model", options.model, "--out", str(out)]
    command += ["--count", str(options.count), "--steps", "4", "--prior-num-inference-steps", "4", "--batch", "4"]
    command += ["--processes", "1", "--threads", "1", "--device", "cpu"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )


def wait_for_painting(process: subprocess.Popen[str]) -> None:
    """Wait until it prints what it will paint."""
    assert process.stdout is not None
    for line in process.stdout:
        if "pictures to paint" in line:
            return


def kill(process: subprocess.Popen[str], who: str) -> None:
    """Kill the `process` alone; its `workers`, which it then restarts, and shortly after itself; or `all` at once."""
    if who == "all":
        os.killpg(process.pid, signal.SIGKILL)
        return
    if who == "workers":
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        time.sleep(0.5)
    process.kill()


def painted(folder: Path) -> int:
    """How many pictures are complete."""
    return sum(map(is_complete_png, (folder / "pictures").glob("*.png")))


def state(folder: Path) -> dict[str, str | dict[str, str]]:
    """What has to be equal in two runs."""
    run = Run.open(folder)
    pictures = {path.name: digest(path) for path in sorted(run.pictures.iterdir())}
    log = {f"{name}.png": str(record["sha256"]) for name, record in sorted(logged(run).items())}
    about = {name: value for name, value in run.settings.items() if name != "command"}  # it names the folder
    return {
        "pictures": pictures,
        "log": log,
        MANIFEST: digest(folder / MANIFEST),
        RUN: json.dumps(about, sort_keys=True),
    }


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def compare(options: argparse.Namespace, folder: Path, known: dict[str, str | dict[str, str]]) -> None:
    """Let a run finish, report included, and compare it with the uninterrupted one."""
    with started(options, folder) as process:
        process.communicate()
        assert process.returncode == 0
    assert (folder / "report.html").exists()
    current = state(folder)
    differs = [name for name in known if current[name] != known[name]]
    assert not differs, f"{folder} differs in {', '.join(differs)}"
    assert len(known["pictures"]) == options.count and known["pictures"] == known["log"]


if __name__ == "__main__":
    main()
