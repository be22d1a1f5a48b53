"""The network calls that tasks of one batch make: what is asked, how many are answered at once, what it costs.

Each function is part of a task (see `engine.scheduler`): it yields calls and returns what it computed.
"""

from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from kandinsky22.checkpoints.network import NetworkSource
from kandinsky22.diffusion import Ask, Prediction
from kandinsky22.diffusion.denoiser import Denoiser
from kandinsky22.engine.placement import Networks
from kandinsky22.engine.runs import Run, check_finite
from kandinsky22.engine.scheduler import ALL, Call, Raised
from kandinsky22.engine.stages import NO_ADAPTERS, DecoderStage, PriorAdapters, PriorStage
from kandinsky22.models.movq import TILE_PIXELS
from kandinsky22.models.prior import STEP_TOKENS, Prefix
from kandinsky22.threads import limited_threads

R = TypeVar("R")
Steps: TypeAlias = Generator[Any, Any, R]
Stage: TypeAlias = PriorStage | DecoderStage
OnStep: TypeAlias = Callable[[int, Tensor, Tensor], Iterable[Any]]
"""(steps done, the state x, the predicted x0): what to do after a step of a sampler"""
# How many cells a weight is applied to on average, for each cell of the latents, so that the costs of networks compare.
# Measured with the box as processor time (docs/performance.md); it decides whose turn it is and how many threads work.
UNET_CELLS, MOVQ_CELLS = 1 / 4, 3
LAYERS = 25  # of MoVQ's decoder that are computed in tiles
PICTURES_AT_ONCE = 8  # that CLIP encodes


class LoadedNetwork(NamedTuple):
    """A network of a model, as `scheduler.Call` takes it."""

    networks: Networks
    stored: NetworkSource[Any, Any]

    def release(self) -> None:
        """The network is not needed for now."""
        self.networks.release(self.stored)


class Calls:
    """The calls of one batch. max_rows: the most pictures in one call of the prior or a U-Net."""

    def __init__(self, max_rows: int = ALL) -> None:
        self.max_rows = max_rows
        self._denoisers: dict[Stage, Denoiser[Any]] = {}

    def run(self, stage: Stage, stored: NetworkSource[Any, Any], function: Callable[[], R]) -> Steps[R]:
        """The result of a short function that needs a network for one request alone.

        Many are run together, so that requests that arrive together take their steps together.
        """
        (result,) = yield _call(stage, stored, "functions", [function], _run_all, 1, self.max_rows)
        return result

    def autoencode(self, decoder: DecoderStage, function: Callable[[], R], cells: float) -> Steps[R]:
        """The result of a function that encodes or decodes so many cells of latents with MoVQ."""
        movq = decoder.stored.movq
        (result,) = yield _call(decoder, movq, "autoencode", [function], _run_all, cells * MOVQ_CELLS, 1)
        return result

    def encode_prompts(
        self, prior: PriorStage, prompts: Sequence[str], adapters: PriorAdapters = NO_ADAPTERS
    ) -> Steps[Prefix]:
        """The prior's prefix for prompts, one row each, encoded with these adapters."""

        def answer(items: Sequence[tuple[str, PriorAdapters]]) -> list[Prefix]:
            unique = list(dict.fromkeys(items))
            encoded = prior.encode_prompts(*zip(*unique, strict=True))
            rows = (unique.index(item) for item in items)
            return [encoded[row : row + 1] for row in rows]

        items = [(prompt, adapters) for prompt in prompts]
        encoder, tokens = prior.stored.text_encoder, prior.tokenizer.max_length
        return Prefix.cat((yield _call(prior, encoder, "prompts", items, answer, tokens)))

    def map_prompt(self, prior: PriorStage, prompt: str) -> Steps[Tensor]:
        """The linear prior's image embedding of a prompt, [1, D]."""
        encoder, tokens = prior.stored.text_encoder, prior.tokenizer.max_length
        answer = lambda prompts: prior.map_prompts(list(prompts)).split(1)  # noqa: E731
        (vector,) = yield _call(prior, encoder, "linear", [prompt], answer, tokens)
        return vector

    def encode_image(self, prior: PriorStage, image: Any) -> Steps[Tensor]:
        """CLIP's image embedding of a picture, float32 [1, D]."""
        pixels, encoder = prior.preprocess([image]), prior.stored.image_encoder
        cells = (pixels.shape[-1] // encoder.config.patch_size) ** 2
        answer = lambda pixels: prior.encode_pixels(torch.cat(list(pixels))).split(1)  # noqa: E731
        (vector,) = yield _call(prior, encoder, "pictures", [pixels], answer, cells, PICTURES_AT_ONCE)
        return vector

    def sample(self, stage: Stage, run: Run[Any], on_step: OnStep) -> Steps[Tensor]:
        """The final state [n, ...] of a sampler. Raises `FloatingPointError` if it is not finite."""
        name, stored = (
            ("prior", stage.stored.prior) if isinstance(stage, PriorStage) else ("decoder", stage.stored.unet)
        )
        denoiser = self._denoisers.setdefault(
            stage, Denoiser(_Network(stage), stage.schedule, {}, stage.networks.dtype)
        )
        guidance = run.guidance.rows()
        rows = [object() for _ in guidance]
        for row, guided in zip(rows, guidance, strict=True):
            denoiser.guidance[row], denoiser.reuse[row] = guided, run.reuse

        def answer(items: Sequence[tuple[Hashable, Tensor, int]]) -> list[Prediction]:
            keys, states, timesteps = zip(*items, strict=True)
            return denoiser(keys, torch.cat(states), torch.tensor(timesteps)).split([1] * len(keys))

        step, reply, prediction = 0, None, None
        events = run.job.events()
        try:
            while True:
                try:
                    event = events.send(reply)
                except StopIteration:
                    break
                x, reply = event.x, None
                if isinstance(event, Ask):
                    cells = STEP_TOKENS if isinstance(stage, PriorStage) else x[0, 0].numel() * UNET_CELLS
                    cost = cells * (1 + (run.guidance.uncond is not None))
                    items = [(row, state, event.t) for row, state in zip(rows, x.split(1), strict=True)]
                    kind = ("step", x.shape[1:])
                    prediction = yield _call(stage, stored, kind, items, answer, cost, self.max_rows)
                    reply = prediction = Prediction.cat(prediction)
                else:
                    step += 1
                    yield from on_step(step, x, x if prediction is None else prediction.x0)
        finally:
            events.close()
            for row in rows:
                denoiser.forget(row)
            if not denoiser.guidance:  # a stage of another model may be needed never again
                self._denoisers.pop(stage, None)
        check_finite(x, name, stage.networks.dtype)
        return x

    def decode(self, decoder: DecoderStage, latents: Tensor) -> Steps[Tensor]:
        """Pixels of latents [n, 4, h, w], float32 [n, 3, H, W]; picture by picture and tile by tile."""
        pictures = []
        for z in latents.split(1):
            advance, done = partial(_advance, decoder.decode_in_tiles(z)), None
            cells = z[0, 0].numel()
            tiles = cells * decoder.stored.movq.config.factor**2 // TILE_PIXELS
            while done is None:
                done = yield from self.autoencode(decoder, advance, cells / max(1, tiles * LAYERS))
            pictures.append(done)
        return torch.cat(pictures)


class _Network:
    """A stage's network, loaded at each call: between calls it may be moved or freed."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @property
    def loaded(self) -> Any:
        return self.stage.network if isinstance(self.stage, PriorStage) else self.stage.unet

    def __call__(self, *inputs: Any) -> Tensor:
        output: Tensor = self.loaded(*inputs)
        return output

    def forward_cached(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        output: tuple[Tensor, Tensor] = self.loaded.forward_cached(*inputs)
        return output


def _run_all(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of functions; an error is that of its function alone."""
    results: list[Any] = []
    for function in functions:
        try:
            results.append(function())
        except Exception as error:
            results.append(Raised(error))
    return results


def _advance(steps: Generator[None, None, Tensor]) -> Tensor | None:
    """Run a computation to its next pause; its value at the end, None before."""
    try:
        next(steps)
    except StopIteration as stop:
        value: Tensor = stop.value
        return value
    return None


def _call(
    stage: Stage,
    stored: NetworkSource[Any, Any],
    kind: Hashable,
    items: Sequence[Any],
    answer: Callable[[Sequence[Any]], Sequence[Any]],
    cells: float,
    at_once: int = ALL,
) -> Call:
    """A call of a network that applies each of its weights to so many cells of an item."""
    network, cost = LoadedNetwork(stage.networks, stored), stored.elements * cells

    def answer_with_threads(items: Sequence[Any]) -> Sequence[Any]:
        with limited_threads(cost * len(items)):
            return answer(items)

    return Call(network, (kind, id(stage)), items, answer_with_threads, cost, at_once)
