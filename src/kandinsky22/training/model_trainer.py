"""Training a model's networks one after another: each learns from those in the model's folder and is added there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kandinsky22.checkpoints import catalog, lora_files
from kandinsky22.checkpoints.lora_files import PRIOR as PRIOR_KEY
from kandinsky22.checkpoints.lora_files import UNET
from kandinsky22.checkpoints.tokenizer import load_tokenizer
from kandinsky22.models.lora import Adapter
from kandinsky22.training import checkpoints, lora, model_card, run, text_samples
from kandinsky22.training.captions import tokenizer_notice
from kandinsky22.training.context import TrainingContext
from kandinsky22.training.copy_base import copy_missing
from kandinsky22.training.loop import Training, refuse_other_inputs
from kandinsky22.training.metrics import Metrics
from kandinsky22.training.model_folder import DECODER, IMAGE_ENCODER, MOVQ, PRIOR, TEXT_ENCODER, Component
from kandinsky22.training.precompute import TrainingData
from kandinsky22.training.registry import ITERATIVE, NETWORK_TRAINING, ClosedFormTraining, NetworkTraining
from kandinsky22.training.run_lock import run_lock
from kandinsky22.training.throughput import seconds_per_step

ADDED = "added"  # a file of a run: the step of its last checkpoint when its network was added to the model
SAMPLES = "samples"  # folder of a run: what the model painted at its checkpoints
MADE_BY = {
    "text_encoder": "clip",
    "image_encoder": "clip",
    "image_processor": "clip",
    "movq": "movq",
    "prediction": "noise schedule",
}
"""What trains or sets each of the inputs that a network learnt from."""
COPYING_TIMEOUT = 3600.0  # seconds to wait for another network's run to copy the base model


class ModelTrainer(TrainingContext):
    """Trains the networks of a model, new or from a base model, from the picture world or from the user's pictures."""

    def data(self, network: str) -> TrainingData:
        """The pictures that a network learns from."""
        entry = NETWORK_TRAINING[network]
        hinted = isinstance(entry, NetworkTraining) and "depth_model" in entry.options
        return self.training_data(network, captioned=entry.captioned, hinted=hinted)

    def lora_file(self, network: str) -> Path:
        """Where the adapters of a network are written."""
        return self.folder / network / lora.FILE

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
        more: int | None = None,
        finish: bool = False,
        every: int = run.EVERY,
        tensorboard: bool = False,
        samples: Sequence[str] = (),
    ) -> Iterator[Metrics]:
        """Train one network, resuming its run if there is one; yields metrics after each step.

        The network is added to the model at each checkpoint that is written every `every` steps, and at the end;
        `samples` are prompts that the model then paints, to `samples/<step>.png` in the network's folder. The number of
        steps is that of a resumed run, else what `minutes` allow at the measured pace, else `steps`, else the recipe's.
        A complete run is trained for `more` steps; with `finish`, a stopped one decays its learning rate in a tenth of
        the steps taken, and ends.

        Raises `ValueError`, `CheckpointError` for a network that must be trained before, what `run.run` raises, and
        `OSError` if another process trains the same network in the same folder. What can be refused is refused before
        anything is computed from the pictures.
        """
        entry = NETWORK_TRAINING[network]
        with self._locked(network) as check_in_place:
            self._complete(entry)
            if isinstance(entry, ClosedFormTraining):
                lines = entry.fit(self, self.data(network))
            else:
                state = checkpoints.last_state(self.folder / network)
                self._check(network, entry, state, steps, more, finish)
                if samples:
                    self._check_samples()
                if tensorboard:
                    run.tensorboard_writer()
                if self._is_complete(network, entry, state) and more is None:
                    return
                lines = self._train(network, entry, steps, minutes, more, finish, every, tensorboard, samples)
            for line in lines:
                check_in_place()
                yield line
            check_in_place()

    def export(self, network: str, step: int | None = None, *, best: bool = False) -> int | None:
        """Add a network to the model as it was at a checkpoint, by default the last one; with `best` the averaged
        weights with the lowest validation loss. Returns the step; None for the best.

        Raises `ValueError` and `CheckpointError` if there is no such checkpoint, or what it learnt from has changed.
        """
        entry, folder = NETWORK_TRAINING[network], self.folder / network
        if isinstance(entry, ClosedFormTraining):
            raise ValueError(f"{network} has no checkpoints; train it again")
        with self._locked(network):
            self._complete(entry)
            self._check(network, entry, checkpoints.last_state(folder), None, None, finish=True)
            data = self.data(network)
            training = entry.prepare(self, data).training
            checkpoints.load(training, folder, None if best else step)
            if best:
                training.load_averages(run.read_best(folder))
            self._add(network, entry, training, data)
        return None if best else training.step

    @contextmanager
    def _locked(self, network: str) -> Iterator[Callable[[], None]]:
        """Locks a network's run against other processes; yields what raises `OSError` once its folder is replaced."""
        check_in_place: Callable[[], None] = lambda: None  # noqa: E731

        def lock() -> None:
            nonlocal check_in_place
            check_in_place = locks.enter_context(run_lock(self.folder / network))

        with ExitStack() as locks:
            self.processes.broadcast_from_rank0(lock)
            yield lambda: check_in_place()

    def _complete(self, entry: NetworkTraining | ClosedFormTraining) -> None:
        """Add what the model lacks of the base model. Raises `CheckpointError` if it then lacks what `entry` needs."""
        if self.processes.first:
            with run_lock(self.folder, COPYING_TIMEOUT):  # two networks may start at the same time
                copy_missing(self.model.path, self.base)
        self.processes.wait()
        for component in entry.requires:
            self.model.locate(component)

    def _check(
        self,
        network: str,
        entry: NetworkTraining,
        state: Mapping[str, Any],
        steps: int | None,
        more: int | None,
        finish: bool,
    ) -> None:
        """Raises `ValueError` for a run that cannot go on from the checkpoint with this `state` as it is asked to."""
        folder = self.folder / network
        if not state:
            if finish or more is not None:
                raise ValueError(f"{folder} holds no checkpoint to go on from; start the run without this option")
            return
        inputs = {**entry.inputs(self), "pictures": self.data(network).name}
        saved = {name: value for name, value in state["learnt_from"].items() if name in inputs}
        refuse_other_inputs(saved, inputs)  # all of them are compared when the checkpoint is loaded
        step, of, added = state["step"], state["steps"], state["steps"] - state["start"]
        if steps is not None and steps != of:
            go_on = "--more N trains it for N more" if step == of else "leave --steps out to resume"
            raise ValueError(
                f"{folder} holds a run of {of} steps, {step} of them done, and its schedule is fixed; {go_on}, or "
                "remove the folder to start again"
            )
        if more is not None and step < of and not (state["start"] and more == added):
            raise ValueError(
                f"{folder} holds a run of {of} steps, {step} of them done; --more is for a complete one, --finish ends "
                "this one early"
            )

    def _check_samples(self) -> None:
        """Raises `ValueError` if the model cannot paint texts yet."""
        needed = (TEXT_ENCODER, PRIOR, IMAGE_ENCODER, DECODER, MOVQ)
        if missing := [component.trained_by for component in needed if not self._has([component])]:
            raise ValueError(f"--sample paints with the whole model, which has no {missing[0]} yet; leave it out")

    def _is_complete(self, network: str, entry: NetworkTraining, state: Mapping[str, Any]) -> bool:
        """Whether the run is over and its network in the model: adding it again would undo what was trained on it."""
        marker = self.folder / network / ADDED
        if not state or state["step"] < state["steps"] or not marker.exists():
            return False
        is_last = marker.read_text(encoding="utf-8") in ("", str(state["step"]))  # empty: of an earlier version
        return is_last and self.model.target(entry.component).is_dir()

    def _train(
        self,
        network: str,
        entry: NetworkTraining,
        steps: int | None,
        minutes: float | None,
        more: int | None,
        finish: bool,
        every: int,
        tensorboard: bool,
        samples: Sequence[str],
    ) -> Iterator[Metrics]:
        data, folder = self.data(network), self.folder / network
        training, sample_grid = entry.prepare(self, data)
        if run.resume(training, folder):
            if finish:
                training.finish()
            elif more is not None and training.step == training.steps:
                training.extend(more)
        else:
            training.steps = steps or self.recipe.steps[network]
            if minutes is not None:
                training.steps = max(1, round(60 * minutes / seconds_per_step(training)))

        def add() -> None:
            self._add(network, entry, training, data)
            if samples and self.processes.first:
                loras = [] if self.lora is None else [self.lora_file(network)]
                text_samples.paint(self.model.path, samples, folder / SAMPLES / f"{training.step:08d}.png", loras)
            self.processes.wait()

        if training.step == training.steps:
            add()
        yield from run.run(training, folder, sample_grid=sample_grid, every=every, tensorboard=tensorboard, saved=add)

    def _inputs(self) -> dict[str, dict[str, str]]:
        """The fingerprints of what each network of the model would learn from now, as its files are."""
        now = replace(self)  # without networks that were loaded before
        entries = {name: entry for name, entry in ITERATIVE.items() if entry.component != MOVQ}
        return {
            name: dict(entry.inputs(now))
            for name, entry in entries.items()
            if self.model.target(entry.component).is_dir() and self._has(entry.requires) and entry.requires
        }

    def _has(self, components: Sequence[Component]) -> bool:
        return all((self.model.part(one.part) / one.folder).is_dir() for one in components)

    def _add(self, network: str, entry: NetworkTraining, training: Training, data: TrainingData) -> None:
        """Add the network with its averaged weights to the model, and note which checkpoint the model now has."""
        if self.lora is not None:
            adapter = lora.adapter_of(training.ema_state_dict())
            if self.processes.first:
                self._write_lora(network, entry, adapter)
            self.processes.wait()
            return
        trained = training.ema_network()
        self._complete(entry)  # it may have been removed meanwhile
        if self.processes.first:
            metadata = model_card.read(self)
            learnt_from = {**self._inputs(), **metadata.get("learnt_from", {}), network: training.fingerprints}
            entry.add(self, data, trained)
            changed = {
                name: sorted({MADE_BY[key] for key, value in inputs.items() if learnt_from[name].get(key) != value})
                for name, inputs in self._inputs().items()
                if name in learnt_from
            }
            metadata |= {"learnt_from": learnt_from}
            stale = {name: others for name, others in changed.items() if others}
            model_card.write(self, data, metadata, network=network, steps=training.step, stale=stale)
            self._mark_added(network)
        self.processes.wait()

    def _write_lora(self, network: str, entry: NetworkTraining, adapter: Adapter) -> None:
        """Write the adapter to a file beside the checkpoints."""
        lora_files.write(self.lora_file(network), {PRIOR_KEY if entry.component == PRIOR else UNET: adapter})
        self._mark_added(network)

    def _mark_added(self, network: str) -> None:
        """Note which checkpoint was added."""
        last = checkpoints.last_state(self.folder / network)["step"]
        (self.folder / network / ADDED).write_text(str(last), encoding="utf-8")
