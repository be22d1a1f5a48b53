"""The model in the box, stage by stage: each stage reads what the ones before it wrote into the model's folder, trains
one network, and adds it there in the published layout. A stage that is stopped goes on where it was.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kandinsky22.checkpoints import catalog, zero_image
from kandinsky22.checkpoints.about import NAME, CheckpointError, write_json
from kandinsky22.checkpoints.store import Stored, save, weights_file
from kandinsky22.checkpoints.tokenizer import load_tokenizer, save_tokenizer
from kandinsky22.compositions import EXAMPLES, caption, language
from kandinsky22.diffusion import NoiseSchedule
from kandinsky22.files import whole
from kandinsky22.models.clip import CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.prior import PriorTransformer
from kandinsky22.models.tokenizer import Tokenizer, learn
from kandinsky22.models.unet import UNet, UNetConfig
from kandinsky22.training import clip, controlnet, decoder, grow, inpaint, movq, prior
from kandinsky22.training.data import Compositions
from kandinsky22.training.loop import Objective, Training
from kandinsky22.training.probes import Probes
from kandinsky22.training.recipes import PAINTERS, BoxRecipe
from kandinsky22.training.run import Sheet, resume, run, seconds_per_step

CPU, FLOAT32, SAVED = torch.device("cpu"), torch.float32, torch.float16
HELD_OUT_SEED, HELD_OUT = 1, 1000
WHOLE_FROM = 0.9  # of MoVQ's steps: before it, crops
CAPTIONS_TO_LEARN_FROM = 20_000


@dataclass(frozen=True)
class Box:
    """The training of a small model in `folder`; the model itself grows in `folder/model`."""

    recipe: BoxRecipe
    folder: Path
    start: Path | None = None  # a model whose weights, where they fit, a network begins with

    @property
    def decoder_folder(self) -> Path:
        """The decoder pipeline."""
        return self.folder / "model" / catalog.DECODER

    @property
    def prior_folder(self) -> Path:
        """The prior pipeline."""
        return self.folder / "model" / catalog.PRIOR

    @cached_property
    def data(self) -> Compositions:
        """What is learnt from."""
        return Compositions(self.folder, self.recipe.pictures, self.recipe.side, processor=self.recipe.image_processor)

    @cached_property
    def held_out(self) -> Compositions:
        """What progress is measured on."""
        return Compositions(
            self.folder, HELD_OUT, self.recipe.side, HELD_OUT_SEED, processor=self.recipe.image_processor
        )

    def train(
        self, network: str, *, steps: int | None = None, minutes: float | None = None
    ) -> Iterator[dict[str, float]]:
        """Train one network and add it to the model. Yields a line of metrics a step.

        `minutes` times a few steps and fixes their number; else it is `steps`, else the recipe's.
        """
        training, sheet = getattr(self, f"_{network.replace('-', '_')}")()
        folder = self.folder / network
        if resume(training, folder):
            if steps is not None and steps != training.steps:
                raise ValueError(
                    f"{folder} holds a run of {training.steps} steps, {training.step} of them done, and its schedule is fixed; "
                    f"leave --steps out to go on, or remove the folder to start anew"
                )
        else:
            training.steps = steps or self.recipe.steps[network]
            if minutes is not None:
                training.steps = max(1, round(60 * minutes / seconds_per_step(training)))
        yield from run(training, folder, sheet=sheet)
        training.network.load_state_dict(training.averaged())
        getattr(self, f"_add_{network.replace('-', '_')}")(training.network.eval().requires_grad_(False))

    def _movq(self) -> tuple[Training, Sheet]:
        torch.manual_seed(0)
        network = MoVQ(self.recipe.movq)
        movq.initialise(network, self.data.pictures(range(min(64, len(self.data)))))
        self._warm({"decoder/movq": network})
        return self._autoencoder("movq", network, {})

    def _movq_decoder(self) -> tuple[Training, Sheet]:
        network = self.stored_movq.load(FLOAT32, CPU).requires_grad_(False)
        for part in (network.post_quant_conv, network.decoder):
            part.requires_grad_(True)
        return self._autoencoder("movq-decoder", network, {"movq": self.latent_space})

    def _autoencoder(self, name: str, network: MoVQ, learnt_from: Mapping[str, str]) -> tuple[Training, Sheet]:
        whole_from = round(WHOLE_FROM * self.recipe.steps[name])
        recipe = self.recipe.runs[name]
        objective = movq.objective(network, self.data, recipe, self.recipe.crop, whole_from)
        return self._training(name, network, objective, learnt_from), movq.sheet(network, self.held_out)

    def _add_movq(self, network: MoVQ) -> None:
        movq.standardise(network, self._encoded(network.encode, self.held_out, self.held_out.pictures))
        latents = self._encoded(network.encode, self.held_out, self.held_out.pictures)
        movq.fit_codebook(network.quantize.embedding, latents)
        self._add_movq_decoder(network)

    def _add_movq_decoder(self, network: MoVQ) -> None:
        save(self.decoder_folder / "movq", network, dtype=SAVED)

    def _clip(self) -> tuple[Training, Sheet]:
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        captions = [caption(self.data.scene(i % len(self.data)), rng) for i in range(CAPTIONS_TO_LEARN_FROM)]
        tokenizer = learn(captions, self.recipe.vocabulary, self.recipe.text_length)
        save_tokenizer(self.prior_folder / "tokenizer", tokenizer)
        configs = self.recipe.vision, self.recipe.text_config(len(tokenizer.vocab))
        network, copy = clip.CLIP(*configs), clip.CLIP(*configs)
        self._warm({"prior/text_encoder": network.text, "prior/image_encoder": network.vision})
        hard = self.recipe.hard_negatives
        objective = clip.objective(network, tokenizer, self.data, self.recipe.runs["clip"], hard=hard)
        return self._training("clip", network, objective, {}), clip.sheet(copy, tokenizer, self.held_out)

    def _add_clip(self, network: clip.CLIP) -> None:
        save(self.prior_folder / "text_encoder", network.text, dtype=SAVED, name="model")
        save(self.prior_folder / "image_encoder", network.vision, dtype=SAVED, name="model")
        write_json(
            self.prior_folder / "image_processor" / "preprocessor_config.json", self.recipe.image_processor.to_dict()
        )
        stored = self.stored_vision
        zero_image.write(self.prior_folder / zero_image.SHIPPED, zero_image.compute(stored), stored.fingerprint)
        save_file(network.probes.state_dict(), self.folder / "probes.safetensors")

    def _prior(self) -> tuple[Training, Sheet]:
        torch.manual_seed(0)
        network = PriorTransformer(self.recipe.prior)
        self._warm({"prior/prior": network})
        embeds, unseen = self.embeds(self.data), self.embeds(self.held_out)
        for parameter, value in ((network.clip_mean, embeds.mean(0)), (network.clip_std, embeds.std(0))):
            parameter.requires_grad_(False).copy_(value)
        schedule = NoiseSchedule.from_config(self.recipe.prior_scheduler)
        known = self.text_encoder, self.tokenizer, schedule
        frozen = {"text_encoder": self.stored_text.fingerprint, "image_encoder": self.stored_vision.fingerprint}
        objective = prior.objective(network, *known, self.data, embeds, self.recipe.runs["prior"])
        training = self._training("prior", network, objective, frozen)
        probes = Probes(self.recipe.dim)
        probes.load_state_dict(load_file(self.folder / "probes.safetensors"))
        return training, prior.sheet(network, *known, self.held_out, unseen, probes)

    def _add_prior(self, network: PriorTransformer) -> None:
        save(self.prior_folder / "prior", network, dtype=SAVED)
        write_json(self.prior_folder / "scheduler" / "scheduler_config.json", self.recipe.prior_scheduler)
        write_json(self.prior_folder / "model_index.json", catalog.PRIOR_INDEX)

    def _decoder(self) -> tuple[Training, Sheet]:
        return self._painter("decoder", self.recipe.unet, decoder.nothing)

    def _inpaint(self) -> tuple[Training, Sheet]:
        channels = 2 * self.recipe.movq.latent_channels + 1
        return self._painter("inpaint", replace(self.recipe.unet, in_channels=channels), inpaint.masked)

    def _controlnet(self) -> tuple[Training, Sheet]:
        channels = 2 * self.recipe.movq.latent_channels
        config = replace(self.recipe.unet, in_channels=channels, addition_embed_type="image_hint")
        return self._painter("controlnet", config, controlnet.hinted)

    def _painter(self, name: str, config: UNetConfig, beside: decoder.Beside) -> tuple[Training, Sheet]:
        """A U-Net of one of the three kinds; the two that see more grow from the plain decoder, unless there is better."""
        torch.manual_seed(0)
        network = UNet(config)
        frozen = {"movq": self.latent_space, "image_encoder": self.stored_vision.fingerprint}
        kind = PAINTERS[name]
        if kind != catalog.DECODER:
            grown = self.stored_decoder.load(FLOAT32, CPU)
            network.load_state_dict(grow.grown(network.state_dict(), grown.state_dict()))
        self._warm({f"{kind}/unet": network})
        schedule = NoiseSchedule.from_config(self.recipe.decoder_scheduler)
        zero = zero_image.zero_image_embed(self.prior_folder)
        shapes = [self.data, *(self.data.stretched(*shape, self.recipe.stretched) for shape in self.recipe.shapes)]
        rare = (1 - self.recipe.square) / max(1, len(self.recipe.shapes))
        buckets = [self._bucket(data, config.hinted, rare) for data in shapes]
        buckets[0] = buckets[0]._replace(share=self.recipe.square)
        embeds = self.embeds(self.data)
        recipe = self.recipe.runs[name]
        objective = decoder.objective(network, schedule, buckets, embeds, zero, recipe, beside)
        training = self._training(name, network, objective, frozen)
        unseen = self._bucket(self.held_out, config.hinted), self.embeds(self.held_out), zero
        return training, decoder.sheet(network, self.movq, schedule, *unseen, recipe, beside)

    def _bucket(self, data: Compositions, hinted: bool, share: float = 1.0) -> decoder.Bucket:
        latents = self.latents(data)
        if not hinted:
            return decoder.Bucket(latents, None, share)
        known = data.stretched(data.height, data.width, self.recipe.hints)
        return decoder.Bucket(latents[: len(known)], known.depths, share)

    def _add_decoder(self, network: UNet) -> None:
        self._add_painter("decoder", network)
        about = {"defaults": self.recipe.defaults, "words": language(), "examples": EXAMPLES}
        write_json(self.decoder_folder / NAME, about)

    def _add_inpaint(self, network: UNet) -> None:
        self._add_painter("inpaint", network)

    def _add_controlnet(self, network: UNet) -> None:
        self._add_painter("controlnet", network)

    def _add_painter(self, name: str, network: UNet) -> None:
        """Beside the plain decoder, whose MoVQ the other two use."""
        folder = self.folder / "model" / PAINTERS[name]
        save(folder / "unet", network, dtype=SAVED)
        write_json(folder / "scheduler" / "scheduler_config.json", self.recipe.decoder_scheduler)
        write_json(folder / "model_index.json", catalog.decoder_index(PAINTERS[name]))

    def _training(self, name: str, network: nn.Module, objective: Objective, frozen: Mapping[str, str]) -> Training:
        learnt_from = {**frozen, "pictures": self.data.name}
        return Training(network, objective, self.recipe.runs[name], self.recipe.steps[name], learnt_from)

    def _warm(self, networks: Mapping[str, nn.Module]) -> None:
        """Begin with the weights of another model, where it has them and they fit."""
        for name, network in networks.items() if self.start is not None else ():
            folder = self.start / name  # type: ignore[operator]  # it is not None
            if folder.is_dir():
                network.load_state_dict(grow.grown(network.state_dict(), load_file(weights_file(folder))))

    @cached_property
    def stored_movq(self) -> Stored[MoVQ, MoVQConfig]:
        """The trained autoencoder's file."""
        return self._stage("movq", self.decoder_folder / "movq", MoVQ, MoVQConfig)

    @cached_property
    def stored_text(self) -> Stored[CLIPText, CLIPTextConfig]:
        """The trained text tower's file."""
        return self._stage("clip", self.prior_folder / "text_encoder", CLIPText, CLIPTextConfig)

    @cached_property
    def stored_vision(self) -> Stored[CLIPVision, CLIPVisionConfig]:
        """The trained vision tower's file."""
        return self._stage("clip", self.prior_folder / "image_encoder", CLIPVision, CLIPVisionConfig)

    @property
    def stored_decoder(self) -> Stored[UNet, UNetConfig]:
        """The trained plain decoder's file."""
        return self._stage("decoder", self.decoder_folder / "unet", UNet, UNetConfig)

    @staticmethod
    def _stage(stage: str, folder: Path, network: Any, config: Any) -> Stored[Any, Any]:
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not there yet; train {stage} first")
        return Stored(folder, network, config)

    @cached_property
    def movq(self) -> MoVQ:
        """The trained autoencoder."""
        return self.stored_movq.load(FLOAT32, CPU)

    @cached_property
    def latent_space(self) -> str:
        """What names the space of MoVQ's latents: its encoder. Its decoder may go on learning."""
        return movq.encoder_fingerprint(self.movq)

    @cached_property
    def text_encoder(self) -> CLIPText:
        """The trained text tower."""
        return self.stored_text.load(FLOAT32, CPU)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The learnt tokenizer."""
        return load_tokenizer(self.prior_folder / "tokenizer")

    def latents(self, data: Compositions) -> Tensor:
        """MoVQ's latents of all pictures, float16 [N, 4, h, w], computed once."""
        name = f"latents-{self.latent_space}"
        return self._computed(name, data, lambda: self.movq.encode, data.pictures)

    def embeds(self, data: Compositions) -> Tensor:
        """CLIP's embeddings of all pictures, float32 [N, D], computed once."""
        stored = self.stored_vision
        name = f"embeds-{stored.fingerprint}"
        return self._computed(name, data, lambda: stored.load(FLOAT32, CPU), data.seen).float()

    def _computed(self, name: str, data: Compositions, encoder: Any, look: Callable[[range], Tensor]) -> Tensor:
        path = self.folder / f"{name}-{data.name}.safetensors"
        if not path.exists():
            with torch.autocast("cpu", torch.bfloat16):  # twice as fast, and off by half a percent of a deviation
                values = self._encoded(encoder(), data, look)
            with whole(path) as partial:
                save_file({"values": values.to(torch.float16).contiguous()}, partial)
        return load_file(path)["values"]

    @staticmethod
    @torch.no_grad()
    def _encoded(encode: Any, data: Compositions, look: Callable[[range], Tensor], batch: int = 20) -> Tensor:
        return torch.cat([encode(look(range(i, min(i + batch, len(data))))) for i in range(0, len(data), batch)])
