"""Training a model's networks one after another: each learns from those in the model's folder and is added there."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from kandinsky22.checkpoints import catalog
from kandinsky22.checkpoints.tokenizer import load_tokenizer
from kandinsky22.training import run
from kandinsky22.training.captions import tokenizer_notice
from kandinsky22.training.context import TrainingContext
from kandinsky22.training.copy_base import copy_missing
from kandinsky22.training.metrics import Metrics
from kandinsky22.training.precompute import TrainingData
from kandinsky22.training.registry import NETWORK_TRAINING, ClosedFormTraining, NetworkTraining
from kandinsky22.training.run_lock import run_lock
from kandinsky22.training.throughput import seconds_per_step

ADDED = "added"  # a file of a run whose network is in the model
COPYING_TIMEOUT = 3600.0  # seconds to wait for another network's run to copy the base model


class ModelTrainer(TrainingContext):
    """Trains the networks of a model, new or from a base model, from the picture world or from the user's pictures."""

    def data(self, network: str) -> TrainingData:
        """The pictures that a network learns from."""
        return self.training_data(network, captioned=NETWORK_TRAINING[network].captioned)

    def notices(self, network: str) -> list[str]:
        """What to know before a network is trained: how the user's pictures are used, and how captions are read."""
        data = self.data(network)
        notices = [data.report]
        if self.dataset is not None and data.captioned and not self.new_tokenizer:
            folder = self.model.part(catalog.PRIOR) / "tokenizer"
            notices += [tokenizer_notice(load_tokenizer(folder), data.sets)] if folder.is_dir() else []
        return [notice for notice in notices if notice]

    def train(
        self,
        network: str,
        *,
        steps: int | None = None,
        minutes: float | None = None,
        every: int = run.EVERY,
        tensorboard: bool = False,
    ) -> Iterator[Metrics]:
        """Train one network, resuming its run if there is one, and add it to the model; yields metrics after each step.

        The number of steps is that of a resumed run, else what `minutes` allow at the measured pace, else `steps`, else
        the recipe's. Raises `ValueError`, `CheckpointError` for a network that must be trained before, what `run.run`
        raises, and `OSError` if another process trains the same network in the same folder.
        """
        check_in_place: Callable[[], None] = lambda: None  # noqa: E731

        def lock() -> None:
            nonlocal check_in_place
            check_in_place = locks.enter_context(run_lock(self.folder / network))

        with ExitStack() as locks:
            self.processes.broadcast_from_rank0(lock)
            entry = NETWORK_TRAINING[network]
            self._complete(entry)
            if isinstance(entry, ClosedFormTraining):
                lines = entry.fit(self, self.data(network))
            else:
                lines = self._train(network, entry, steps, minutes, every, tensorboard)
            for line in lines:
                check_in_place()
                yield line
            check_in_place()

    def _complete(self, entry: NetworkTraining | ClosedFormTraining) -> None:
        """Add what the model lacks of the base model. Raises `CheckpointError` if it then lacks what `entry` needs."""
        if self.processes.first:
            with run_lock(self.folder, COPYING_TIMEOUT):  # two networks may start at the same time
                copy_missing(self.model.path, self.base)
        self.processes.wait()
        for component in entry.requires:
            self.model.locate(component)

    def _train(
        self,
        network: str,
        entry: NetworkTraining,
        steps: int | None,
        minutes: float | None,
        every: int,
        tensorboard: bool,
    ) -> Iterator[Metrics]:
        data, folder = self.data(network), self.folder / network
        training, sample_grid = entry.prepare(self, data)
        if run.resume(training, folder):
            if steps is not None and steps != training.steps:
                raise ValueError(
                    f"{folder} holds a run of {training.steps} steps, {training.step} of them done, and its schedule "
                    "is fixed; leave --steps out to resume, or remove the folder to start again"
                )
        else:
            training.steps = steps or self.recipe.steps[network]
            if minutes is not None:
                training.steps = max(1, round(60 * minutes / seconds_per_step(training)))
        added = folder / ADDED
        if training.step == training.steps and added.exists() and self.model.target(entry.component).is_dir():
            return  # adding it again would undo what was trained on top of it
        yield from run.run(training, folder, sample_grid=sample_grid, every=every, tensorboard=tensorboard)
        trained = training.ema_network()
        self._complete(entry)  # it may have been removed meanwhile
        if self.processes.first:
            entry.add(self, data, trained)
            added.touch()
        self.processes.wait()
