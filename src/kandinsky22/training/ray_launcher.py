"""Ray Train as what starts the processes of a run: they run `kandinsky22 train`, as under `torchrun`.

Needs the extra `ray`. All machines of the cluster need the run's folder and the pictures under the same path.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from kandinsky22.backends.ray import connect
from kandinsky22.training import supervisor
from kandinsky22.training.processes import TIMEOUT


def launch(arguments: Sequence[str], folder: Path, args: argparse.Namespace) -> None:
    """Train in `args.processes` workers, each with a GPU, or with `args.threads` cores.

    After a crash all are started again from the last checkpoint in `folder`, the run's folder, at most `args.relaunch`
    times. Raises `ValueError` with the reason why a worker stopped, or after too many crashes.
    """
    connect(getattr(args, "address", None), show_output=True)
    reason = folder / supervisor.STOP_REASON
    reason.unlink(missing_ok=True)
    cuda = getattr(args, "device", None) == "cuda"
    config = {
        "arguments": supervisor.passed_on(arguments),
        "directory": str(Path.cwd()),
        "folder": str(folder.absolute()),
    }
    with tempfile.TemporaryDirectory() as storage:  # checkpoints are in the run's folder; Ray writes none
        trainer = TorchTrainer(
            train_in_worker,
            train_loop_config=config,
            torch_config=TorchConfig("nccl" if cuda else "gloo", timeout_s=int(TIMEOUT.total_seconds())),
            scaling_config=ScalingConfig(
                num_workers=args.processes, use_gpu=cuda, resources_per_worker={"CPU": args.threads, "GPU": int(cuda)}
            ),
            run_config=RunConfig(storage_path=storage, failure_config=FailureConfig(max_failures=args.relaunch)),
        )
        try:
            trainer.fit()
        except Exception as error:
            if reason.exists():
                raise ValueError(reason.read_text(encoding="utf-8")) from None
            message = "training crashed; the same command goes on from the last checkpoint"
            raise ValueError(f"{message} ({type(error).__name__})") from error


def train_in_worker(config: dict[str, Any]) -> None:
    """What a worker does. config: the arguments of `kandinsky22 train`, the working directory, and the run's folder."""
    from kandinsky22.training import cli

    os.chdir(config["directory"])
    try:
        cli.main(config["arguments"])
    except (ValueError, OSError, FloatingPointError) as error:
        supervisor.write_stop_reason(Path(config["folder"]), error)
        raise
