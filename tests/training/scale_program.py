"""The program that tests of training at scale run in separate processes, started by `torchrun` or by the supervisor.

python -m tests.training.scale_program learn FOLDER: train all of `CASES`, from the start and from checkpoints
python -m tests.training.scale_program train FOLDER: one run, as `kandinsky22 train` does it
"""

import math
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kandinsky22.diffusion import NoiseSchedule
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.unet import UNet
from kandinsky22.training import checkpoints, clip, decoder, movq, photos, run
from kandinsky22.training.loop import Batch, Training
from kandinsky22.training.precompute import DatasetConfig, TrainingData
from kandinsky22.training.processes import ALONE, Processes, join, local_shards
from kandinsky22.training.recipes import BOX
from kandinsky22.training.sources import Source
from kandinsky22.training.throughput import seconds_per_step
from tests.training.known import RECIPE, line_fit

STEPS, HALF = 4, 2
LONG, EVERY = 48, 2  # steps of a run that is killed, and between its checkpoints
EPSILON = 1e-4  # of Adam: without it, a gradient that is only rounding error would move a weight as far as any other


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class NoisePictures:
    """Pictures of noise, each with one of nine captions."""

    name: str = "noise"
    pixels_name: str = "noise"
    size: tuple[int, int] = (64, 32)
    share: float = 1.0

    def __len__(self) -> int:
        return 40

    def _of(self, indices: Any, height: int, width: int) -> Tensor:
        return torch.stack([noise(3, height, width, seed=int(i)).tanh() for i in indices])

    def pictures(self, indices: Any) -> Tensor:
        return self._of(indices, *self.size)

    def clip_inputs(self, indices: Any) -> Tensor:
        return self._of(indices, 16, 16)

    def crops(self, indices: Any, corners: np.ndarray, size: int) -> Tensor:
        return self._of(indices, size, size)

    def captions(self, indices: Any, rng: np.random.Generator) -> list[str]:
        return [f"{'abc'[int(i) % 3]} {'xyz'[int(i) // 3 % 3]}" for i in indices]


@dataclass(frozen=True)
class LetterTokenizer:
    """A tokenizer whose tokens are letters."""

    ids: Tensor | None = None

    def __call__(self, captions: list[str]) -> "LetterTokenizer":
        return LetterTokenizer(
            torch.tensor([[1, *(3 + ord(letter) % 32 for letter in caption), 2] for caption in captions])
        )

    def trimmed(self) -> "LetterTokenizer":
        return self


def line(processes: Processes = ALONE, steps: int = STEPS) -> Training:
    """Three parameters, so one process has none of some; seven rows do not split into four equal parts."""
    recipe = replace(RECIPE, batch=7, accumulate=2)
    return Training(*line_fit(recipe), recipe, steps, processes=processes)


def unet(processes: Processes = ALONE, steps: int = STEPS) -> Training:
    """Seven rows of one shape, or three of another, so that one of four parts is empty."""
    torch.manual_seed(processes.rank)  # weights differ at first; those of rank 0 are used
    config = replace(BOX.unet, block_out_channels=(32, 32), cross_attention_dim=16, encoder_hid_dim=8, sample_size=4)
    network, recipe = UNet(config), replace(RECIPE, batch=7, accumulate=2, min_snr=5.0, learning_rate=3e-4)
    shapes = ((4, 4), (4, 8))
    buckets = [decoder.Bucket(noise(9, 4, *shape), noise(9, 8, seed=1)) for shape in shapes]
    schedule = NoiseSchedule.from_config(BOX.decoder_scheduler)
    objective = decoder.objective(network, schedule, buckets, torch.zeros(1, 8), recipe)
    return Training(network, objective, recipe, steps, {"latents": "noise"}, processes)


def pairs(processes: Processes = ALONE, steps: int = STEPS) -> Training:
    """CLIP: every row is contrasted with those of the other process."""
    small = {"hidden_size": 32, "projection_dim": 16, "num_hidden_layers": 1, "intermediate_size": 32}
    text = replace(BOX, text={**BOX.text, **small}).text_config(40)
    vision = replace(BOX.vision, **small, num_attention_heads=2, image_size=16)
    torch.manual_seed(0)
    network, recipe = clip.CLIP(vision, text, probed=False), replace(RECIPE, batch=8, learning_rate=3e-4)
    objective = clip.objective(network, LetterTokenizer(), [NoisePictures()], recipe, gather=processes.gather_rows)  # type: ignore[arg-type]
    return Training(network, objective, recipe, steps, processes=processes)


def autoencoder(processes: Processes = ALONE, steps: int = STEPS) -> Training:
    """MoVQ's decoder with an adversarial term; the rest of MoVQ is frozen. In the second half a step has a single
    row, a complete picture, so one process has none."""
    torch.manual_seed(0)
    network = MoVQ(MoVQConfig(block_out_channels=(32, 32), layers_per_block=1, num_vq_embeddings=16))
    movq.initialise(network, noise(4, 3, 32, 32).tanh())
    network.requires_grad_(False)
    for part in (network.post_quant_conv, network.decoder):
        part.requires_grad_(True)
    terms = movq.Terms(adversarial=0.1, adversarial_from=1, discriminator_width=8)
    both, recipe = movq.Autoencoder(network, terms), replace(RECIPE, batch=3, learning_rate=3e-4)
    return Training(
        both, movq.objective(both, [NoisePictures()], recipe, 32, lambda: HALF), recipe, steps, processes=processes
    )


CASES: Mapping[str, Callable[..., Training]] = {
    "line": line,
    "unet": unet,
    "pairs": pairs,
    "autoencoder": autoencoder,
}
RESUMED = ("line", "unet", "autoencoder")


def curve(processes: Processes = ALONE, steps: int = LONG) -> Training:
    """A small network whose parameters all processes share: quick steps, for runs that are killed."""
    recipe = replace(RECIPE, learning_rate=3e-4)
    _, objective = line_fit(recipe)
    network = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))  # after `line_fit`, which sets the seed

    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return (network(rows["x"]) - rows["x"].flip(1).sin()).square().mean(1), {}

    return Training(network, replace(objective, loss=loss), recipe, steps, {"points": "normal"}, processes)


def train_to_end(training: Training) -> dict[str, Any]:
    """Train to the end; returns the metrics, the averaged weights, and how many elements of each state lie in this
    process."""
    for group in training.optimizer.param_groups:
        group["eps"] = EPSILON
    lines = [metrics.to_json() for metrics in training]
    moments = [state["exp_avg"] for state in training.optimizer.state.values()]
    state = {
        "parameters": training.parameters,
        "moments": moments,
        "averages": [*training.ema.values()],
    }
    local = {name: sum(value.numel() for value in local_shards(values)) for name, values in state.items()}
    return {"lines": lines, "weights": training.ema_state_dict(), "local": local}


def save_half_way(make: Callable[..., Training], folder: Path, processes: Processes = ALONE) -> None:
    """Train half the steps and save a checkpoint."""
    training = make(processes)
    for group in training.optimizer.param_groups:
        group["eps"] = EPSILON
    for _ in range(HALF):
        training.advance()
    checkpoints.save(training, folder)


def resume(make: Callable[..., Training], folder: Path, processes: Processes = ALONE) -> dict[str, Any]:
    """Resume from a checkpoint and train to the end."""
    training = make(processes)
    assert run.resume(training, folder) and training.step == HALF
    return train_to_end(training)


def learn(folder: Path) -> int:
    """Train all cases from the start, and some from a checkpoint of these processes and from one of a single process
    in `folder`."""
    processes = join("cpu")
    results: dict[str, Any] = {}
    for name, make in CASES.items():
        results[name] = train_to_end(make(processes))
        if name in RESUMED:
            save_half_way(make, folder / name / "two", processes)
            results[f"{name} from two"] = resume(make, folder / name / "two", processes)
            results[f"{name} from one"] = resume(make, folder / name / "one", processes)
    results["seconds"] = seconds_per_step(line(processes))
    results["checked"] = check_pictures(processes, folder, folder / "own")
    results["nothing"] = check_pictures(processes, folder, folder / "nothing")
    list(run.run(curve(processes), folder / "curve", every=EVERY))
    results["nan"] = error_of(FloatingPointError, with_nan_loss(processes, 2 * EVERY + 1), folder / "nan")
    results["full"] = error_of(OSError, with_full_disk(processes, 2 * EVERY), folder / "full")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
    torch.save(results, folder / f"rank{processes.rank}.pt")
    return 0


def check_pictures(processes: Processes, folder: Path, pictures: Path) -> tuple[str, int]:
    """The report on a user's pictures, or the error message, and how many of them this process decoded."""
    decoded: list[bytes] = []
    size = photos.decoded_size
    photos.decoded_size = lambda file: decoded.append(file) or size(file)
    try:
        dataset = DatasetConfig((Source(pictures),))
        data = TrainingData(BOX, folder, BOX.image_processor, dataset, captioned=False, processes=processes)
        return f"{data.report}\n{data.name}", len(decoded)
    except ValueError as error:
        return str(error), len(decoded)
    finally:
        photos.decoded_size = size


def error_of(error: type[Exception], training: Training, folder: Path) -> tuple[str, int]:
    """The error message that a run stops with, and the last step taken."""
    try:
        list(run.run(training, folder, every=EVERY))
    except error as stopped:
        return str(stopped), training.step
    raise AssertionError("it did not stop")


def with_full_disk(processes: Processes, step: int) -> Training:
    """A run in which the second process can hardly write to files any more after a step."""
    training = curve(processes)
    draw = training.objective.draw

    def draw_and_limit(at: int) -> Batch:
        if processes.rank == 1 and at == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return draw(at)

    training.objective = replace(training.objective, draw=draw_and_limit)
    return training


def with_nan_loss(processes: Processes, step: int) -> Training:
    """A run in which the second process's loss is not finite at a step."""
    training = curve(processes)
    original = training.loss_module.loss

    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        losses, measured = original(rows)
        return losses * (math.nan if processes.rank == 1 and training.step == step else 1.0), measured

    training.loss_module.loss = loss
    return training


def train(folder: Path) -> int:
    """One run, from its last checkpoint."""
    torch.set_num_threads(1)
    training = curve(join("cpu"))
    run.resume(training, folder)
    for _ in run.run(training, folder, every=EVERY):
        pass
    return 0


if __name__ == "__main__":
    sys.exit({"learn": learn, "train": train}[sys.argv[1]](Path(sys.argv[2])))
