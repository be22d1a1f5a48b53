"""A model's networks, trained one after another: each reads what the ones before it wrote into the model's folder, learns, and is
added there in the published layout. One that is stopped goes on where it was.

The same for the model in the box and at published size, from nothing or from another model's weights, for the world's pictures
and for a person's own.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kandinsky22.checkpoints import catalog, zero_image
from kandinsky22.checkpoints import linear_prior as linear_prior_file
from kandinsky22.checkpoints.components import KINDS
from kandinsky22.checkpoints.json_files import CheckpointError, write_json
from kandinsky22.checkpoints.metadata import FILE as METADATA_FILE
from kandinsky22.checkpoints.network import Stored, save
from kandinsky22.checkpoints.tokenizer import load_tokenizer, save_tokenizer
from kandinsky22.compositions import EXAMPLES, language
from kandinsky22.diffusion import NoiseSchedule
from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.tokenizer import Tokenizer, learn
from kandinsky22.models.unet import UNet, UNetConfig
from kandinsky22.training import clip, controlnet, decoder, init_weights, inpaint, linear_prior, movq, prior, run
from kandinsky22.training.data import Compositions, Pictures
from kandinsky22.training.link_base import complete
from kandinsky22.training.lock import held
from kandinsky22.training.loop import Objective, Training
from kandinsky22.training.perceptual import Perceptual
from kandinsky22.training.precompute import Encode, Material, Own, Say, fingerprint_of, silent
from kandinsky22.training.probes import Probes, labels
from kandinsky22.training.processes import ALONE, Processes
from kandinsky22.training.recipes import PAINTERS, ModelRecipe
from kandinsky22.training.settings import Settings

CPU, FLOAT32, SAVED = torch.device("cpu"), torch.float32, torch.float16
WHOLE_FROM = 0.9  # of MoVQ's steps: before it, crops
CAPTIONS_TO_LEARN_FROM = 20_000
CAPTIONED = ("clip", "prior", "linear-prior")
PROBES = "probes.safetensors"

NETWORKS: Mapping[str, tuple[str, str, Any, Any]] = {
    "movq": (catalog.DECODER, "movq", MoVQ, MoVQConfig),
    "text": (catalog.PRIOR, "text_encoder", CLIPText, CLIPTextConfig),
    "vision": (catalog.PRIOR, "image_encoder", CLIPVision, CLIPVisionConfig),
    "prior": (catalog.PRIOR, "prior", PriorTransformer, PriorConfig),
    **{name: (part, "unet", UNet, UNetConfig) for name, part in PAINTERS.items()},
}
"""Where each network is in a model: its part, its folder there, its class and its configuration's."""
TRAINED_BY = {"text": "clip", "vision": "clip"}
OF = {"clip": "vision", "movq-decoder": "movq"}  # what is trained, where it is named otherwise than what is added
ADDED = "added"  # a file of a run whose network is in the model
BEGINNING = 3600.0  # seconds that another network may take to copy what a model begins with
FIT = "codebook.json"  # of a codebook that is fitted when MoVQ has learnt: the share of its codes in use
FITTED = 1000  # pictures that MoVQ's latents are standardised and its codebook fitted on


@dataclass(frozen=True)
class Workshop:
    """The training of a model in `folder`; the model itself grows in `folder/model`.

    `start` are the parts of a model to begin with: its networks' weights, where they fit, are where a network begins, and what
    this model has not trained itself is that one's. `anew`: the network begins with random ones all the same. `own` are
    the pictures to learn from, instead of the world's. `settings` is what was chosen of all this, which checkpoints keep.
    """

    recipe: ModelRecipe
    folder: Path
    start: Mapping[str, Path] = field(default_factory=dict)
    own: Own | None = None
    processes: Processes = ALONE
    say: Say = silent
    anew: bool = False
    settings: Settings = field(default_factory=dict)
    _materials: dict[tuple[bool, bool], Material] = field(default_factory=dict, init=False)

    @property
    def model(self) -> Path:
        """The folder of the model."""
        return self.folder / "model"

    def train(
        self,
        network: str,
        *,
        steps: int | None = None,
        minutes: float | None = None,
        every: int = run.EVERY,
        tensorboard: bool = False,
    ) -> Iterator[dict[str, float]]:
        """Train one network and add it to the model. Yields a line of metrics a step.

        `minutes` times a few steps and fixes their number; else it is `steps`, else the recipe's. Raises `ValueError`,
        `CheckpointError`, what `run.run` raises, and `OSError` where another process trains the same network there.
        """
        with ExitStack() as alone:
            self.processes.told_by_first(lambda: alone.enter_context(held(self.folder / network)))
            yield from self._train(network, steps, minutes, every, tensorboard)

    def _train(
        self, network: str, steps: int | None, minutes: float | None, every: int, tensorboard: bool
    ) -> Iterator[dict[str, float]]:
        if self.processes.first:
            with held(self.folder, BEGINNING):  # two networks may begin at once
                complete(self.model, self.start)
        self.processes.wait()
        if network == "linear-prior":
            yield from self._fit_linear_prior()
            return
        training, sheet = getattr(self, f"_{network.replace('-', '_')}")()
        folder = self.folder / network
        if run.resume(training, folder):
            if steps is not None and steps != training.steps:
                raise ValueError(
                    f"{folder} holds a run of {training.steps} steps, {training.step} of them done, and its schedule is fixed; "
                    f"leave --steps out to go on, or remove the folder to start anew"
                )
        else:
            training.steps = steps or self.recipe.steps[network]
            if minutes is not None:
                training.steps = max(1, round(60 * minutes / run.seconds_per_step(training)))
        added = folder / ADDED
        if training.step == training.steps and added.exists() and self._place(OF.get(network, network)).is_dir():
            return  # what was trained on top of it since stays
        yield from run.run(training, folder, sheet=sheet, every=every, tensorboard=tensorboard)
        finished = training.finished()
        if self.processes.first:
            getattr(self, f"_add_{network.replace('-', '_')}")(finished)
            added.touch()
        self.processes.wait()

    # Each network: what it learns from, and where it goes.

    def _movq(self) -> tuple[Training, run.Sheet]:
        torch.manual_seed(0)
        network = MoVQ(self.recipe.movq)
        if not self._warm("movq", network):
            first = self.material("movq").seen[0]
            movq.initialise(network, first.pictures(range(min(64, len(first)))), quantised=self.recipe.terms.quantised)
        return self._autoencoder("movq", network, {})

    def _movq_decoder(self) -> tuple[Training, run.Sheet]:
        network = self.stored("movq").load(FLOAT32, CPU).requires_grad_(False)
        for part in (network.post_quant_conv, network.decoder):
            part.requires_grad_(True)
        return self._autoencoder("movq-decoder", network, {"movq": self.latent_space})

    def _autoencoder(self, name: str, network: MoVQ, learnt_from: Mapping[str, str]) -> tuple[Training, run.Sheet]:
        material, recipe = self.material(name), self.recipe.runs[name]
        both = movq.Autoencoder(network, self.recipe.terms)
        perceived = None
        if self.recipe.terms.perceptual:
            tower = self.stored("vision").load(FLOAT32, CPU).to(self.processes.device)
            perceived = Perceptual(tower, self.processor)

        def whole_from() -> int:
            return round(WHOLE_FROM * training.steps)  # however many they are to be

        objective = movq.objective(both, material.seen, recipe, self.recipe.crop, whole_from, perceived)
        training = self._training(name, both, objective, learnt_from)
        return training, movq.sheet(both, material.held_out)

    def _add_movq(self, trained: movq.Autoencoder) -> None:
        network, seen = trained.movq, self.material("movq").seen[0]
        if not trained.terms.quantised:
            movq.standardise(network, self._encoded(network, seen))
            used = movq.fit_codebook(network.quantize.embedding, self._encoded(network, seen))
            write_json(self.folder / "movq" / FIT, {"codes_used": used})
        self._add_movq_decoder(trained)

    @torch.no_grad()
    def _encoded(self, network: MoVQ, pictures: Pictures, batch: int = 20) -> Tensor:
        count, here = min(FITTED, len(pictures)), network.to(self.processes.device)
        parts = (
            pictures.pictures(range(i, min(i + batch, count))).to(self.processes.device) for i in range(0, count, batch)
        )
        latents = torch.cat([here.encode(some).cpu() for some in parts])
        network.cpu()
        return latents

    def _add_movq_decoder(self, trained: movq.Autoencoder) -> None:
        self._save("movq", trained.movq)

    def _clip(self) -> tuple[Training, run.Sheet]:
        material = self.material("clip")
        if self.own is None or catalog.PRIOR not in self.start:
            tokenizer = self._learnt_tokenizer(material.seen)
            if self.processes.first:
                save_tokenizer(self.model / catalog.PRIOR / "tokenizer", tokenizer)
            self.processes.wait()
        probed = self.own is None
        configs = self.recipe.vision, self.recipe.text_config(len(self.tokenizer.vocab))
        torch.manual_seed(0)
        network = clip.CLIP(*configs, probed=probed)
        self._warm("text", network.text)
        self._warm("vision", network.vision)
        recipe, hard = self.recipe.runs["clip"], self.recipe.hard_negatives if probed else 0
        hard -= hard % self.processes.count  # all have as many
        objective = clip.objective(
            network, self.tokenizer, material.seen, recipe, hard=hard, gathered=self.processes.gathered
        )
        training = self._training("clip", network, objective, {})
        return training, clip.sheet(network, self.tokenizer, material.held_out, recipe)

    def _learnt_tokenizer(self, sets: list[Pictures]) -> Tokenizer:
        rng, wanted = np.random.default_rng(0), CAPTIONS_TO_LEARN_FROM // len(sets)
        captions = [said for pictures in sets for said in pictures.captions(np.arange(wanted) % len(pictures), rng)]
        return learn(captions, self.recipe.vocabulary, self.recipe.text_length)

    def _add_clip(self, network: clip.CLIP) -> None:
        self._save("text", network.text)
        self._save("vision", network.vision)
        folder = self.model / catalog.PRIOR
        write_json(folder / "image_processor" / "preprocessor_config.json", self.processor.to_dict())
        stored = self.stored("vision")
        zero_image.write(folder / zero_image.SHIPPED, zero_image.compute(stored), stored.fingerprint)
        if network.probes is not None:
            save_file(network.probes.state_dict(), self.folder / PROBES)

    def _prior(self) -> tuple[Training, run.Sheet]:
        material = self.material("prior")
        told = [self._told(material, pictures) for pictures in material.seen]
        torch.manual_seed(0)
        network = PriorTransformer(self.recipe.prior)
        if not (self._warm("prior", network) and self._same_clip):
            for parameter, value in zip((network.clip_mean, network.clip_std), prior.statistics(told), strict=True):
                parameter.data.copy_(value)
        for parameter in (network.clip_mean, network.clip_std):
            parameter.requires_grad_(False)
        schedule = NoiseSchedule.from_config(self.recipe.prior_scheduler)
        text = self.text_encoder.to(self.processes.device)
        known, recipe = (text, self.tokenizer, schedule), self.recipe.runs["prior"]
        frozen = {"text_encoder": self.stored("text").fingerprint, **self._seen_by}
        training = self._training("prior", network, prior.objective(network, *known, told, recipe), frozen)
        held_out = material.held_out
        sheet = prior.sheet(network, *known, self._told(material, held_out), held_out, recipe, self._reading(held_out))
        return training, sheet

    def _told(self, material: Material, pictures: Pictures) -> prior.Told:
        return prior.Told(material.embeds(pictures, *self.embedding), pictures.captions, pictures.share)

    def _reading(self, held_out: Pictures) -> Callable[[Tensor, list[str]], dict[str, float]] | None:
        """What CLIP's probes read from embeddings of the world's pictures."""
        if not isinstance(held_out, Compositions) or not (self.folder / PROBES).exists():
            return None
        probes = Probes(self.recipe.prior.embedding_dim)
        probes.load_state_dict(load_file(self.folder / PROBES))

        def read(embeds: Tensor, captions: list[str]) -> dict[str, float]:
            scenes = [held_out.scene(i) for i in range(len(captions))]
            return probes.accuracy(embeds, labels(scenes, captions))

        return read

    def _add_prior(self, network: PriorTransformer) -> None:
        self._save("prior", network)
        write_json(self.model / catalog.PRIOR / "scheduler" / "scheduler_config.json", self.recipe.prior_scheduler)
        write_json(self.model / catalog.PRIOR / "model_index.json", catalog.PRIOR_INDEX)

    def _fit_linear_prior(self) -> Iterator[dict[str, float]]:
        """In one pass over the captions, which all processes make: there is nothing to share out."""
        material = self.material("linear-prior")
        told = [self._told(material, pictures) for pictures in material.seen]
        known = self.text_encoder.to(self.processes.device), self.tokenizer
        fitted, measured = linear_prior.fitted(*known, told, self._told(material, material.held_out))
        line = {"step": 1, "of": 1, **measured}
        if self.processes.first:
            towers = self.stored("text").fingerprint, self.stored("vision").fingerprint
            linear_prior_file.save(self.model / catalog.PRIOR / linear_prior_file.FOLDER, fitted, *towers)
            run.tell(self.folder / "linear-prior", line)
        self.processes.wait()
        yield line

    def _decoder(self) -> tuple[Training, run.Sheet]:
        return self._painter("decoder", self.recipe.unet, decoder.nothing)

    def _inpaint(self) -> tuple[Training, run.Sheet]:
        channels = 2 * self.recipe.movq.latent_channels + 1
        return self._painter("inpaint", replace(self.recipe.unet, in_channels=channels), inpaint.masked)

    def _controlnet(self) -> tuple[Training, run.Sheet]:
        channels = 2 * self.recipe.movq.latent_channels
        config = replace(self.recipe.unet, in_channels=channels, addition_embed_type="image_hint")
        return self._painter("controlnet", config, controlnet.hinted)

    def _painter(self, name: str, config: UNetConfig, beside: decoder.Beside) -> tuple[Training, run.Sheet]:
        """A U-Net of one of the three kinds; the two that see more grow from the plain decoder, unless there is better."""
        encoders = (self.latent_space, self._encode), self.embedding
        material = self.material(name)
        torch.manual_seed(0)
        network = UNet(config)
        if name != "decoder" and PAINTERS[name] not in self.start:
            network.load_state_dict(
                init_weights.grown(network.state_dict(), self.stored("decoder").load(FLOAT32, CPU).state_dict())
            )
        self._warm(name, network)
        schedule = NoiseSchedule.from_config(self.recipe.decoder_scheduler)
        zero = zero_image.zero_image_embed(self.folders[catalog.PRIOR])
        buckets = material.buckets(*encoders, hinted=config.hinted)
        unseen = material.bucket(material.held_out, *encoders, hinted=config.hinted)
        self.movq.cpu()  # it makes room for what learns
        recipe = self.recipe.runs[name]
        objective = decoder.objective(network, schedule, buckets, zero, recipe, beside)
        frozen = {"movq": self.latent_space, "prediction": schedule.prediction_type, **self._seen_by}
        training = self._training(name, network, objective, frozen)
        return training, decoder.sheet(network, self.movq, schedule, unseen, zero, recipe, beside)

    def _add_decoder(self, network: UNet) -> None:
        self._add_painter("decoder", network)
        if self.own is None and not (self.folders[catalog.DECODER] / METADATA_FILE).exists():
            about = {"defaults": self.recipe.defaults, "words": language(), "examples": EXAMPLES}
            write_json(self.model / catalog.DECODER / METADATA_FILE, about)

    def _add_inpaint(self, network: UNet) -> None:
        self._add_painter("inpaint", network)

    def _add_controlnet(self, network: UNet) -> None:
        self._add_painter("controlnet", network)

    def _add_painter(self, name: str, network: UNet) -> None:
        """Beside the plain decoder, whose MoVQ the other two use."""
        self._save(name, network)
        folder = self.model / PAINTERS[name]
        write_json(folder / "scheduler" / "scheduler_config.json", self.recipe.decoder_scheduler)
        write_json(folder / "model_index.json", catalog.decoder_index(PAINTERS[name]))

    # What there is already.

    def material(self, network: str) -> Material:
        """What a network learns from."""
        run = self.recipe.runs.get(network)
        which = network in CAPTIONED, run is None or run.bfloat16
        there = self.recipe, self.folder, self.processor, self.own, *which, self.processes, self.say
        return self._materials.setdefault(which, Material(*there))

    @property
    def folders(self) -> dict[str, Path]:
        """The folder of each part there is: this model's, else that of the one it starts with."""
        here = {part: self.model / part for part in catalog.PARTS if (self.model / part).is_dir()}
        return {**self.start, **here}

    def stored(self, name: str) -> Stored[Any, Any]:
        """A network's file. Raises `CheckpointError` where it is not trained yet."""
        part, folder, network, config = NETWORKS[name]
        path = self.folders.get(part, self.model / part) / folder
        if not path.is_dir():
            raise CheckpointError(f"{path} is not there yet; train {TRAINED_BY.get(name, name)} first")
        return Stored(path, network, config)

    @cached_property
    def processor(self) -> CLIPImageProcessor:
        """How pictures are prepared for CLIP."""
        return self.recipe.image_processor

    @cached_property
    def movq(self) -> MoVQ:
        """The trained autoencoder."""
        network: MoVQ = self.stored("movq").load(FLOAT32, CPU)
        return network

    @cached_property
    def latent_space(self) -> str:
        """What names the space of MoVQ's latents: its encoder. Its decoder may go on learning."""
        return movq.encoder_fingerprint(self.movq)

    def _encode(self, pictures: Tensor) -> Tensor:
        network = self._there(self.movq)
        return network.encode(pictures.to(self.processes.device)).cpu()

    @property
    def embedding(self) -> tuple[str, Encode]:
        """CLIP's vision tower, read when it is first asked, and what names it and what it is shown."""
        stored = self.stored("vision")
        loaded: list[CLIPVision] = []

        def encode(seen: Tensor) -> Tensor:
            if not loaded:
                loaded.append(self._there(stored.load(FLOAT32, CPU)))
            embeds: Tensor = loaded[0](seen.to(self.processes.device)).cpu()
            return embeds

        return fingerprint_of(stored.fingerprint, self.processor.to_dict()), encode

    @property
    def _seen_by(self) -> dict[str, str]:
        """What a checkpoint says of those whose embeddings it learnt from."""
        shown = fingerprint_of(self.processor.to_dict())
        return {"image_encoder": self.stored("vision").fingerprint, "image_processor": shown}

    @cached_property
    def text_encoder(self) -> CLIPText:
        """The trained text tower."""
        network: CLIPText = self.stored("text").load(FLOAT32, CPU)
        return network

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return load_tokenizer(self.folders.get(catalog.PRIOR, self.model / catalog.PRIOR) / "tokenizer")

    def _there(self, network: Any) -> Any:
        return network.to(self.processes.device)

    def _save(self, name: str, network: nn.Module) -> None:
        """In the place of what it started with, which may be in files of other names; there is always one or the other."""
        place = self._place(name)
        partial = place.with_name(f".{place.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        save(partial, network, dtype=SAVED, name=KINDS[place.name].file)
        shutil.rmtree(place, ignore_errors=True)
        partial.replace(place)

    def _place(self, name: str) -> Path:
        part, folder, _, _ = NETWORKS[name]
        return self.model / part / folder

    @property
    def _same_clip(self) -> bool:
        """Whether embeddings are those of the model that this one starts with."""
        before = self._before("vision")
        return before is not None and before.fingerprint == self.stored("vision").fingerprint

    def _training(self, name: str, network: nn.Module, objective: Objective, frozen: Mapping[str, str]) -> Training:
        learnt_from = {**frozen, "pictures": self.material(name).name}
        recipe = self.recipe.runs[name]
        steps = self.recipe.steps[name]
        return Training(network, objective, recipe, steps, learnt_from, self.processes, self.settings)

    def _warm(self, name: str, network: nn.Module) -> bool:
        """Begin with the weights of the model this one starts with, where it has them and they fit; returns whether it has."""
        before = None if self.anew else self._before(name)
        if before is not None:
            network.load_state_dict(init_weights.grown(network.state_dict(), before.load(FLOAT32, CPU).state_dict()))
        return before is not None

    def _before(self, name: str) -> Stored[Any, Any] | None:
        """A network of the model that this one starts with, if it has it."""
        part, folder, network, config = NETWORKS[name]
        path = self.start[part] / folder if part in self.start else None
        return Stored(path, network, config) if path is not None and path.is_dir() else None
