"""Training speed compared with diffusers: the same weights, rows, optimiser and threads in one process, taking turns.

    python benchmarks/training.py [--rounds 5] [--steps 2] [--batch 8] [--threads 2] [--device cpu] [--output
    FILE.md|FILE.json]

diffusers' side is the recipe of its example scripts for Kandinsky 2.2 with its own networks, as a plain loop. Two rows
per network: in "same work" both sides get the same latents and embeddings of pictures, from memory; in "as shipped"
diffusers encodes the pictures in every step, as its scripts do, and kandinsky22 reads what it precomputed, from its
shards. Precomputing and preparing pixels are counted for neither. Both encode the captions in every step. kandinsky22
also maintains a moving average of the weights (EMA), which the scripts do only on request.

Prints samples per second and their ratio, as medians of the rounds, and the losses of both sides, which must be equal
because the rows are.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.checkpoints.network import save
from kandinsky22.diffusion import NoiseSchedule
from kandinsky22.engine.device import computes_bfloat16
from kandinsky22.files import atomic_write
from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.tokenizer import Tokenizer, learn
from kandinsky22.models.unet import UNet, UNetConfig
from kandinsky22.training import decoder, prior, shards
from kandinsky22.training.data import Compositions
from kandinsky22.training.decoder import Rows
from kandinsky22.training.loop import Batch, Objective, Recipe, Training, move_batch
from kandinsky22.training.processes import Processes

SIDE, PICTURES, DIM, TEXT_LENGTH, VOCABULARY = 128, 64, 256, 77, 1024
PRIOR_TIMES = 4  # as many rows in the prior's batch as in the decoder's
DECODER_SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
}
PRIOR_SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "sample",
}

TOWER: dict[str, Any] = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "hidden_size": DIM,
    "intermediate_size": 4 * DIM,
    "projection_dim": DIM,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
}
VISION = CLIPVisionConfig(**TOWER, image_size=64, patch_size=8, num_channels=3)
MOVQ = MoVQConfig(block_out_channels=(32, 32, 64, 96), layers_per_block=1, num_vq_embeddings=1024)
UNET = UNetConfig(
    block_out_channels=(64, 128, 192, 256),
    layers_per_block=2,
    attention_head_dim=32,
    cross_attention_dim=64,
    encoder_hid_dim=DIM,
)
PRIOR = PriorConfig(
    num_layers=6, num_attention_heads=8, attention_head_dim=64, embedding_dim=DIM, num_embeddings=TEXT_LENGTH
)
THEIRS: dict[type[nn.Module], Any] = {
    UNet: diffusers.UNet2DConditionModel,
    PriorTransformer: diffusers.PriorTransformer,
    MoVQ: diffusers.VQModel,
    CLIPText: transformers.CLIPTextModelWithProjection,
    CLIPVision: transformers.CLIPVisionModelWithProjection,
}

Step = Callable[[int], float]
"""Takes a step of this number, and returns its loss."""
Predict = Callable[[Batch], tuple[Tensor, Tensor]]
"""The rows of a step -> the prediction of diffusers' network, and its target."""


@dataclass(frozen=True)
class Case:
    """One row of the table: two sides that take the same steps."""

    name: str
    batch: int
    ours: Step
    theirs: Step


@dataclass(frozen=True)
class Result:
    """The measurements of a case: samples per second of each round, mean losses of the last one, and the largest
    relative difference of the losses of a step."""

    name: str
    products: str
    ours: list[float]
    theirs: list[float]
    our_loss: float
    their_loss: float
    apart: float

    @property
    def ratio(self) -> float:
        """The ratio of samples per second: the median over rounds, since both sides of a round met the same load of the
        machine."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True))


@dataclass(frozen=True)
class Encoded:
    """Rows that are encoded each time they are read, as in diffusers' scripts; a `decoder.Rows`."""

    inputs: Tensor
    encode: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.inputs)

    @torch.no_grad()
    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.encode(self.inputs[rows]).float().cpu()

    @property
    def shape(self) -> Sequence[int]:
        """The shape of all rows together, for latents."""
        return len(self), 4, SIDE // MOVQ.factor, SIDE // MOVQ.factor


@dataclass(frozen=True)
class Bench:
    """What all cases share: pictures, encoders, the device, and the dtype of matrix products."""

    folder: Path
    pictures: Compositions
    tokenizer: Tokenizer
    movq: MoVQ
    vision: CLIPVision
    text: CLIPText
    device: torch.device
    products: torch.dtype
    batch: int

    def decoders(self) -> list[Case]:
        """The cases of a decoder step."""
        schedule = NoiseSchedule.from_config(DECODER_SCHEDULER)
        scheduler = diffusers.DDPMScheduler.from_config(DECODER_SCHEDULER)
        recipe, zero = self.recipe(self.batch), torch.zeros(1, DIM)

        def case(name: str, ours: decoder.Bucket, theirs: decoder.Bucket) -> Case:
            network, twin = self.twins(UNet(UNET))
            objective = decoder.objective(network, schedule, [ours], zero, recipe)
            draw = decoder.objective(network, schedule, [theirs], zero, recipe).draw

            def predict(rows: Batch) -> tuple[Tensor, Tensor]:
                noisy = scheduler.add_noise(rows["x0"], rows["noise"], rows["t"])
                added = {"image_embeds": rows["embeds"]}
                return twin(noisy, rows["t"], None, added_cond_kwargs=added).sample[:, :4], rows["noise"]

            return self.case(f"decoder, {name}", network, objective, recipe, twin, draw, predict)

        latents, embeds = self.latents(), self.embeds()
        known = decoder.Bucket(latents[:].float(), embeds[:].float())
        theirs = decoder.Bucket(self.encoding_pictures(), self.encoding_clip_pixels())
        shipped = decoder.Bucket(latents, embeds)
        return [case("same work", known, known), case("as shipped", shipped, theirs)]

    def priors(self) -> list[Case]:
        """The cases of a prior step."""
        schedule = NoiseSchedule.from_config(PRIOR_SCHEDULER)
        scheduler = diffusers.DDPMScheduler.from_config(PRIOR_SCHEDULER)
        recipe, known = self.recipe(PRIOR_TIMES * self.batch), (self.text.to(self.device), self.tokenizer, schedule)
        _, encoder = self.twins(self.text)
        encoder = self.frozen(encoder)

        def case(name: str, ours: Rows, theirs: Rows) -> Case:
            network, twin = self.twins(PriorTransformer(PRIOR))
            for fixed in (network.clip_mean, network.clip_std):
                fixed.requires_grad_(False)
            captions = self.pictures.captions
            objective = prior.objective(network, *known, [prior.CaptionedEmbeds(ours, captions)], recipe)
            draw = prior.objective(network, *known, [prior.CaptionedEmbeds(theirs, captions)], recipe).draw
            mean, std = twin.clip_mean.detach().clone(), twin.clip_std.detach().clone()

            def predict(rows: Batch) -> tuple[Tensor, Tensor]:
                cut = TEXT_LENGTH - rows["ids"].shape[1]  # diffusers pads every caption to the full length
                ids, mask = F.pad(rows["ids"], (0, cut), value=self.tokenizer.end), F.pad(rows["mask"], (0, cut))
                with torch.no_grad():
                    text = encoder(ids)
                    x0 = (rows["x0"] - mean) / std
                    noisy = scheduler.add_noise(x0, rows["noise"], rows["t"])
                answer = twin(
                    noisy,
                    timestep=rows["t"],
                    proj_embedding=text.text_embeds,
                    encoder_hidden_states=text.last_hidden_state,
                    attention_mask=mask,
                )
                return answer.predicted_image_embedding, x0

            return self.case(f"prior, {name}", network, objective, recipe, twin, draw, predict)

        embeds = self.embeds()
        same = embeds[:].float()
        return [case("same work", same, same), case("as shipped", embeds, self.encoding_clip_pixels())]

    def case(
        self,
        name: str,
        network: nn.Module,
        objective: Objective,
        recipe: Recipe,
        twin: Any,
        draw: Callable[[int], Batch],
        predict: Predict,
    ) -> Case:
        """Our training of `network`, and the scripts' loop with `twin`."""
        training = Training(network, objective, recipe, 10**9, processes=Processes(device=self.device))
        optimizer = torch.optim.AdamW(
            twin.parameters(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        for parameter in twin.parameters():
            parameter.requires_grad_(True)
        twin.train()

        def theirs(step: int) -> float:
            rows = move_batch(draw(step), self.device)
            with self.autocast():
                predicted, target = predict(rows)
            loss = F.mse_loss(predicted.float(), target.float())
            value = loss.item()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(twin.parameters(), recipe.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            return value

        def ours(step: int) -> float:
            assert training.step == step
            return training.advance()["loss"]

        return Case(name, recipe.batch, ours, theirs)

    def recipe(self, batch: int) -> Recipe:
        """The recipe of the scripts."""
        return Recipe(
            batch=batch,
            learning_rate=1e-4,
            warmup=0,
            decay=False,
            betas=(0.9, 0.999),
            weight_decay=0.01,
            bfloat16=self.products == torch.bfloat16,
            cond_dropout=0.0,
        )

    def autocast(self) -> AbstractContextManager[object]:
        """The autocast of diffusers' side."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.products == torch.bfloat16)

    def twins(self, network: Any) -> tuple[Any, Any]:
        """Our network and diffusers' with the same weights, which it reads from a folder that ours is written to."""
        with TemporaryDirectory() as folder:
            save(Path(folder), network, dtype=torch.float32)
            if isinstance(network, CLIPText | CLIPVision):  # transformers expects another name
                (weights,) = Path(folder).glob("*.safetensors")
                weights.rename(weights.with_name("model.safetensors"))
            return network, THEIRS[type(network)].from_pretrained(folder).to(self.device)

    def frozen(self, network: Any) -> Any:
        """A frozen network as in the scripts: in the dtype of matrix products."""
        network = network.eval().requires_grad_(False)
        return network if self.products == torch.float32 else network.to(self.products)

    def latents(self) -> shards.Shards:
        """Latents of all pictures, precomputed by our network."""
        return shards.load_or_compute(
            self.folder / "latents", "movq", PICTURES, lambda rows: self.movq.encode(self.pictures.pictures(rows))
        )

    def embeds(self) -> shards.Shards:
        """Embeddings of all pictures, precomputed by our network."""
        return shards.load_or_compute(
            self.folder / "embeds", "vision", PICTURES, lambda rows: self.vision(self.pictures.clip_inputs(rows))
        )

    def encoding_pictures(self) -> Encoded:
        """Latents, encoded by diffusers' network each time."""
        network = self.frozen(self.twins(self.movq)[1])
        pixels = self.pictures.pictures(range(PICTURES))
        return Encoded(pixels, lambda chosen: network.encode(chosen.to(self.device, self.products)).latents)

    def encoding_clip_pixels(self) -> Encoded:
        """Embeddings, encoded by transformers' network each time."""
        network = self.frozen(self.twins(self.vision)[1])
        pixels = self.pictures.clip_inputs(range(PICTURES))
        return Encoded(pixels, lambda chosen: network(chosen.to(self.device, self.products)).image_embeds)


def bench(folder: Path, device: torch.device, products: torch.dtype, batch: int) -> Bench:
    """The pictures, and the frozen networks with random weights from a fixed seed."""
    torch.manual_seed(0)
    processor = CLIPImageProcessor(size=64, crop_size=64, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
    pictures = Compositions(folder, PICTURES, SIDE, processor=processor)
    captions = pictures.captions([*range(PICTURES)] * 20, np.random.default_rng(0))
    tokenizer = learn(captions, VOCABULARY, TEXT_LENGTH)
    text = CLIPTextConfig(**TOWER, vocab_size=len(tokenizer.vocab), max_position_embeddings=TEXT_LENGTH)
    networks = MoVQ(MOVQ), CLIPVision(VISION), CLIPText(text)
    for network in networks:
        network.eval().requires_grad_(False)
    return Bench(folder, pictures, tokenizer, *networks, device, products, batch)


def measured(case: Case, bench: Bench, rounds: int, steps: int) -> Result:
    """Measure rounds of `steps` steps; the sides take turns at being first. A round before them warms up."""
    sides = {"ours": case.ours, "theirs": case.theirs}
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in sorted(sides, reverse=number % 2 == 1):
            began = time.perf_counter()
            losses[name] += [sides[name](step) for step in range(number * steps, (number + 1) * steps)]
            if bench.device.type == "cuda":
                torch.cuda.synchronize(bench.device)
            if number:
                speeds[name].append(steps * case.batch / (time.perf_counter() - began))
        print(f"{case.name}, {bench.products}: round {number} of {rounds}", file=sys.stderr)
    apart = max(abs(a - b) / b for a, b in zip(losses["ours"], losses["theirs"], strict=True))
    last = {name: statistics.fmean(values[-steps:]) for name, values in losses.items()}
    kind = str(bench.products).removeprefix("torch.")
    return Result(case.name, kind, speeds["ours"], speeds["theirs"], last["ours"], last["theirs"], apart)


def spread(values: Sequence[float]) -> str:
    """The median, with the minimum and the maximum."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} - {max(values):.3g})"


def table(results: Sequence[Result], about: str) -> str:
    """The results as a Markdown table."""
    lines = [
        "| step | products | kandinsky22, samples/s | diffusers, samples/s | ratio | last losses | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
        lines.append(
            f"| {one.name} | {one.products} | {spread(one.ours)} | {spread(one.theirs)} | {one.ratio:.2f} "
            f"| {one.our_loss:.5f}, {one.their_loss:.5f} | {one.apart:.1e} |"
        )
    return "\n".join([*lines, "", about, ""])


def millions(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a step of training against diffusers.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="in each round")
    parser.add_argument(
        "--batch", type=int, default=8, help=f"of the decoder; the prior's is {PRIOR_TIMES} times as large"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, help="a file for the results: JSON if its name ends so, else Markdown")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    transformers.utils.logging.disable_progress_bar()
    device = torch.device(chosen.device)

    results = []
    kinds = [torch.float32, *([torch.bfloat16] if computes_bfloat16(device) else [])]
    with TemporaryDirectory() as folder:
        for products in kinds:
            shared = bench(Path(folder), device, products, chosen.batch)
            for cases in (shared.decoders, shared.priors):
                results += [measured(case, shared, chosen.rounds, chosen.steps) for case in cases()]
        captions = shared.pictures.captions(range(PICTURES), np.random.default_rng(0))
        lengths = shared.tokenizer(captions).mask.sum(dim=1).tolist()
        about = (
            f"{chosen.device}, {chosen.threads} threads, torch {torch.__version__}, diffusers {diffusers.__version__}; "
            f"{chosen.rounds} rounds of {chosen.steps} steps, median (minimum - maximum). "
            f"U-Net {millions(UNet(UNET))}, prior {millions(PriorTransformer(PRIOR))}, MoVQ {millions(shared.movq)}, "
            f"CLIP {millions(shared.vision)} and {millions(shared.text)}; {SIDE} px, captions of {min(lengths)} to "
            f"{max(lengths)} tokens (diffusers pads to {TEXT_LENGTH}), a batch of "
            f"{chosen.batch} and of {PRIOR_TIMES * chosen.batch}."
        )
    print(table(results, about))
    if chosen.output is not None:
        rows = [{**asdict(one), "ratio": one.ratio} for one in results]
        written = json.dumps({"about": about, "results": rows}, indent=2) + "\n"
        with atomic_write(chosen.output) as partial:
            partial.write_text(written if chosen.output.suffix == ".json" else table(results, about), encoding="utf-8")


if __name__ == "__main__":
    main()
