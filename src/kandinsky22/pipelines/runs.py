"""Sampler runs of the prior and the decoder whose rows share one generator, with diffusers' order of random draws.

The engine runs requests, in which each picture has its own noise stream. Here one generator (or a list with one per
row) draws for all rows: the start state, then once after every step. `PriorCall` and `DecoderCall`
have a `check`, which raises `ValueError` before any network runs; the runs expect checked calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kandinsky22.diffusion import Draw, NoiseSchedule, SharedNoise, keep
from kandinsky22.engine.runs import Constrain, InpaintCondition, Run, StartState, repeat_rows
from kandinsky22.engine.stages import DecoderStage, Embeds, PriorStage
from kandinsky22.models.prior import Prefix
from kandinsky22.models.unet import UNetCondition
from kandinsky22.pipelines.arguments import check_finite, finite_number, positive_int
from kandinsky22.pipelines.callbacks import StepCallbacks
from kandinsky22.request import limits

MAX_ROWS = 2 * limits.MAX_IMAGES  # of a call: the pictures and, for a prior, their negative prompts


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """The options that prior and decoder have in common. Raises `ValueError` for wrong numbers.

    guidance_scale: guidance is off at 1 or less. images_per_prompt: rows for each prompt or embedding. latents: the
    start noise, instead of a random draw. strength: how far a start image is noised, in (0, 1].
    """

    steps: int
    guidance_scale: float
    sampler: str
    generator: Any
    callbacks: StepCallbacks
    images_per_prompt: int = 1
    latents: Tensor | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        converted = {
            "images_per_prompt": positive_int("num_images_per_prompt", self.images_per_prompt, 1),
            "steps": positive_int("num_inference_steps", self.steps, 50),
            "guidance_scale": finite_number("guidance_scale", self.guidance_scale, 4),
            "strength": finite_number("strength", self.strength, 0.3),
        }
        for name, value in converted.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @property
    def weight(self) -> float:
        """The guidance weight; 1 is no guidance."""
        return float(self.guidance_scale) if self.guidance_scale > 1 else 1.0

    def noise(self, dtype: torch.dtype, rows: int | None = None) -> Draw:
        """Draws noise in `dtype`, in which diffusers draws it, and converts it to the dtype of the state.

        rows: uses only that many of a list of generators.
        """
        several = isinstance(self.generator, list | tuple)
        shared = SharedNoise(list(self.generator)[:rows] if several else self.generator)
        return lambda x: shared.draw(tuple(x.shape), dtype, x.device).to(x.dtype)

    def check_run(self, schedule: NoiseSchedule, *, from_noise: bool, shape: tuple[int, ...], rows: str) -> int:
        """The number of steps of a run whose state has `shape`, from noise or from an image noised to `strength`.

        rows: what the rows are, for messages. Raises `ValueError` if there are no steps, and for generators and latents
        that do not fit.
        """
        limits.check_count("num_images_per_prompt times the prompts", shape[0], MAX_ROWS)
        timesteps = schedule.timesteps(self.steps) if from_noise else schedule.timesteps(self.steps, self.strength)
        several = isinstance(self.generator, list | tuple)
        for generator in self.generator if several else [self.generator]:
            if not isinstance(generator, torch.Generator) and (several or generator is not None):
                raise ValueError(
                    f"generator must be a torch.Generator, got {generator!r}; try torch.Generator().manual_seed(5)"
                )
        if several and len(self.generator) not in (1, shape[0]):
            raise ValueError(
                f"got {len(self.generator)} generators for {shape[0]} rows ({rows}); pass one generator, or one for "
                "each row"
            )
        if self.latents is not None:
            if not isinstance(self.latents, Tensor) or tuple(self.latents.shape) != shape:
                actual = f"{type(self.latents).__name__} {list(getattr(self.latents, 'shape', ()))}"
                raise ValueError(f"latents must be {list(shape)}, a tensor; got {actual}")
            check_finite("latents", self.latents)
        return len(timesteps)

    def start_noise(self, shape: tuple[int, ...], noise: Draw, device: torch.device) -> Tensor:
        """The noise that a run starts from: `latents`, or a draw."""
        empty = torch.empty(shape, device=device)
        return noise(empty) if self.latents is None else self.latents.to(empty)


@dataclass(frozen=True, kw_only=True)
class PriorCall:
    """The arguments of a prior's call.

    start: PIL pictures, pixels as CLIP's processor returns them, or embeddings, noised to `options.strength`; None
    starts from noise.
    """

    options: StageOptions
    prompts: Sequence[str]
    negative_prompts: Sequence[str] = ()
    start: Sequence[Image.Image] | Tensor | None = None

    @property
    def images(self) -> int:
        """How many embeddings are returned."""
        return self.options.images_per_prompt * len(self.prompts)

    @property
    def rows(self) -> int:
        """Rows of the run: the embeddings of the negative prompts are sampled too."""
        return self.images + self.options.images_per_prompt * len(self.negative_prompts)

    def weights(self, weight: float, device: torch.device) -> Tensor:
        """The guidance weight of each row: those of negative prompts are not guided."""
        return torch.tensor([weight] * self.images + [1.0] * (self.rows - self.images), device=device)

    def check(self, stage: PriorStage) -> int:
        """The number of steps. Raises `ValueError` for arguments that do not fit each other or this prior."""
        prompts, negatives = len(self.prompts), len(self.negative_prompts)
        if not prompts or negatives not in (0, prompts):
            raise ValueError(f"{prompts} prompts need as many negative prompts, or none; got {negatives}")
        if self.start is not None and (prompts + negatives) % len(self.start):
            raise ValueError(
                f"{len(self.start)} images cannot be divided evenly among {prompts} prompts; pass one, or {prompts}"
            )
        if isinstance(self.start, Tensor) and self.start.ndim == 2 and self.start.shape[1] != stage.dim:
            raise ValueError(f"embeddings as image must be [B, {stage.dim}], got {list(self.start.shape)}")
        shape = self.rows, stage.dim
        described = f"{prompts} prompts, {negatives} negative prompts, {self.options.images_per_prompt} of each"
        return self.options.check_run(stage.schedule, from_noise=self.start is None, shape=shape, rows=described)


def prior_run(stage: PriorStage, call: PriorCall) -> Run[Prefix]:
    """A run with rows for all prompts, then for all negative prompts; the latter are sampled without guidance."""
    options, device = call.options, stage.networks.device
    repeats = options.images_per_prompt
    noise = options.noise(stage.networks.weight_dtype)
    guided = options.weight != 1
    texts = [*call.prompts, *call.negative_prompts]
    negative = (list(call.negative_prompts) * 2 or [""] * len(texts)) if guided else texts
    distinct = list(dict.fromkeys([*texts, *negative]))
    prefix = stage.encode_prompts(distinct)

    def rows_of(prompts: Sequence[str]) -> list[int]:
        return [distinct.index(prompt) for prompt in prompts for _ in range(repeats)]

    conditions = PriorConditions(stage, call, prefix, rows_of(texts), rows_of(negative))
    if call.start is None:
        initial = options.start_noise((call.rows, stage.dim), noise, device)
        start = StartState.from_noise(stage.schedule, options.steps, initial)
    else:  # images are assigned to prompts in turn; as published, they are not normalised
        embeds = _start_embeds(stage, call.start).to(device)
        image_of_row = [row // repeats % len(embeds) for row in range(call.rows)]
        start = StartState.from_clean(stage.schedule, options.steps, embeds[image_of_row], options.strength, noise)

    callbacks = options.callbacks.constraint(start.timesteps, conditions)
    weights = call.weights(options.weight, device)
    conditions.run = stage.prepare_run(
        prefix, conditions.texts, conditions.negative, weights, options.sampler, start, noise, callbacks
    )
    return conditions.run


@dataclass
class PriorConditions:
    """The conditions of a prior's run: prompts, of which `texts` and `negative` are each row's, and guidance."""

    stage: PriorStage
    call: PriorCall
    prompts: Prefix
    texts: Sequence[int]
    negative: Sequence[int]
    run: Run[Prefix] | None = None
    changed: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """CLIP's features of the prompts, after those of the negative prompts if there is guidance."""
        call, guided = self.call, self.call.options.weight != 1
        texts = [*call.prompts, *call.negative_prompts]
        negative = list(call.negative_prompts) * 2 or [""] * len(texts)
        features = self.stage.encode_text([*negative, *texts] if guided else texts)
        names = "prompt_embeds", "text_encoder_hidden_states", "text_mask"
        parts = (repeat_rows(part, call.options.images_per_prompt) for part in features)
        return {**dict(zip(names, parts, strict=True)), **self.changed}

    def change(self, tensors: Mapping[str, Tensor], guidance_scale: float, timesteps: Sequence[int]) -> None:
        """As `Conditions` requires; the features of all rows can be changed."""
        if tensors:
            before = self.tensors()
            _check_changes(tensors, before, tuple(before), self.call.rows)
            self.changed.update(tensors)
            embed, hidden, mask = {**before, **tensors}.values()
            if not len(embed) == len(hidden) == len(mask):
                raise ValueError("a callback must return the features of as many prompts each, or all of them")
            device, dtype = self.stage.networks.device, self.stage.networks.dtype
            network = self.stage.network
            self.prompts = network.prefill(hidden.to(device, dtype), embed.to(device, dtype), mask.to(device).bool())
            rows = range(self.call.rows)
            self.texts = [len(embed) - self.call.rows + row for row in rows]
            self.negative = list(rows)
        if self.run is not None and timesteps:
            weights = self.call.weights(max(guidance_scale, 1.0), self.stage.networks.device)
            self.run.guidance = self.stage.guidance(self.prompts, self.texts, self.negative, weights, timesteps)


def _start_embeds(stage: PriorStage, start: Sequence[Image.Image] | Tensor) -> Tensor:
    if not isinstance(start, Tensor):
        return stage.encode_images(start)
    return start.float() if start.ndim == 2 else stage.encode_pixels(start)


@dataclass(frozen=True, kw_only=True)
class DecoderCall:
    """The arguments of a decoder's call, for `count` embeddings, on height x width pixels.

    start: pixels or latents, noised to `options.strength`; None starts from noise. A single one is noised once for all
    rows, unless `noise_per_row` is set or there are several images per prompt. inpaint: pixels [1 or n, 3, H, W] and
    where to repaint them [1 or n, 1, H, W]. hint: [1 or count, 3, H, W].
    """

    options: StageOptions
    height: int
    width: int
    count: int
    start: Tensor | None = None
    noise_per_row: bool = False
    inpaint: tuple[Tensor, Tensor] | None = None
    hint: Tensor | None = None

    @property
    def rows(self) -> int:
        """Rows of the run."""
        return self.options.images_per_prompt * self.count

    def check(self, stage: DecoderStage, embeds: Embeds | None) -> int:
        """The number of steps. Raises `ValueError` for arguments that do not fit each other or this decoder.

        embeds: None if the prior is still to make them; then only the other arguments are checked.
        """
        shape = stage.shape(self.rows, self.height, self.width)
        pixels = [3, self.height, self.width]
        if self.inpaint is not None:
            largest = max(map(len, self.inpaint))
            for part in self.inpaint:
                _check_rows("image and mask_image", part, largest)
                _check_rows("image", part, self.count)
        if self.start is not None:
            _check_rows("image", self.start, self.count)
            if list(self.start.shape[1:]) not in (pixels, list(shape[1:])):
                raise ValueError(f"latents to start from must be {list(shape[1:])}, got {list(self.start.shape[1:])}")
        if self.hint is not None:
            _check_rows("hint", self.hint, self.count)
            actual = list(self.hint.shape[1:])
            if actual != pixels:
                expected = f"[B, 3, {self.height}, {self.width}]"
                raise ValueError(f"hint must be {expected}, got {actual}; resize it, as kandinsky22.controlnet does")
        if embeds is not None:
            self._check_embeds(embeds, stage.stored.unet.config.encoder_hid_dim)
        described = f"{self.count} embeddings, {self.options.images_per_prompt} images of each"
        return self.options.check_run(stage.schedule, from_noise=self.start is None, shape=shape, rows=described)

    def _check_embeds(self, embeds: Embeds, dim: int) -> None:
        if embeds.negative is None and self.options.weight != 1:
            raise ValueError("negative_image_embeds must be given, unless guidance_scale is 1; the prior returns them")
        for name, part in zip(("image_embeds", "negative_image_embeds"), embeds, strict=True):
            if part is not None and tuple(part.shape) != (self.count, dim):
                raise ValueError(
                    f"{name} must be [{self.count}, {dim}], got {list(part.shape)}; the prior returns such embeddings"
                )


def decoder_run(stage: DecoderStage, call: DecoderCall, embeds: Embeds) -> tuple[Run[UNetCondition], Constrain]:
    """A run conditioned on embeddings, and the constraint to apply to the finished latents, with t = -1."""
    options, device = call.options, stage.networks.device
    repeats = options.images_per_prompt
    image = repeat_rows(embeds.image.to(device), repeats)
    negative = None if embeds.negative is None else repeat_rows(embeds.negative.to(device), repeats)
    noise = options.noise(stage.networks.weight_dtype)
    if call.start is not None:
        start = _start_from_image(stage, call, call.start.to(device))
    else:
        initial = options.start_noise(stage.shape(call.rows, call.height, call.width), noise, device)
        start = StartState.from_noise(stage.schedule, options.steps, initial)
    inpaint: InpaintConditions | None = None
    if call.inpaint is not None:
        largest = max(map(len, call.inpaint))
        known = stage.inpaint_condition(*(part.expand(largest, -1, -1, -1).to(device) for part in call.inpaint))
        if largest > 1:
            known = InpaintCondition(*(repeat_rows(part, repeats) for part in known))
        inpaint = InpaintConditions(known, known.channels)
    hint = call.hint if call.hint is None or len(call.hint) == 1 else repeat_rows(call.hint, repeats)
    conditions = DecoderConditions(stage, call, Embeds(image, negative), hint, inpaint, options.weight != 1)
    callbacks = options.callbacks.constraint(start.timesteps, conditions)
    conditions.run = stage.prepare_run(
        conditions.embeds,
        options.weight,
        options.sampler,
        start,
        noise,
        hint=hint,
        inpaint=inpaint,
        constrain=callbacks,
    )
    return conditions.run, keep if inpaint is None else inpaint.constraint(start, stage.schedule)


@dataclass
class InpaintConditions:
    """An `InpaintCondition` that a callback can change during a run: what is known, and the U-Net's channels of it."""

    known: InpaintCondition
    channels: Tensor

    def constraint(self, start: StartState, schedule: NoiseSchedule) -> Constrain:
        """See `InpaintCondition.constraint`."""
        return lambda x, t: self.known.constraint(start, schedule)(x, t)


@dataclass
class DecoderConditions:
    """The conditions of a decoder's run.

    guided: whether the tensors that callbacks see have a negative row before each image's, as with guidance.
    """

    stage: DecoderStage
    call: DecoderCall
    embeds: Embeds
    hint: Tensor | None
    inpaint: InpaintConditions | None
    guided: bool
    run: Run[UNetCondition] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The embeddings, and for inpainting the masked latents and their mask."""
        image, negative = self.embeds
        available = {"image_embeds": torch.cat([negative, image]) if self.guided and negative is not None else image}
        if negative is not None:
            available["negative_image_embeds"] = negative
        if self.inpaint is not None:
            masked, mask = self.inpaint.channels.expand(self.call.rows, -1, -1, -1).split([4, 1], dim=1)
            available["masked_image"] = torch.cat([masked] * (1 + self.guided))
            available["mask_image"] = torch.cat([mask] * (1 + self.guided))
        return available

    def change(self, tensors: Mapping[str, Tensor], guidance_scale: float, timesteps: Sequence[int]) -> None:
        """As `Conditions` requires; `negative_image_embeds` cannot be changed, as `image_embeds` contains them.

        Tensors may have rows for the images alone, or before these negative rows, whatever the guidance is.
        """
        rows, device = self.call.rows, self.stage.networks.device
        _check_changes(tensors, self.tensors(), ("image_embeds", "masked_image", "mask_image"), rows)
        if "image_embeds" in tensors:
            given = tensors["image_embeds"].to(device)
            negative = given[:rows] if len(given) > rows else self.embeds.negative
            self.embeds, self.guided = Embeds(given[-rows:], negative), len(given) > rows
        if self.inpaint is not None:
            masked, mask = self.inpaint.channels.split([4, 1], dim=1)
            if "masked_image" in tensors:
                masked = tensors["masked_image"][-rows:].to(masked)
            if "mask_image" in tensors:
                mask = tensors["mask_image"][-rows:].to(mask)
                self.inpaint.known = self.inpaint.known._replace(mask=mask)
            self.inpaint.channels = torch.cat([part.expand(rows, -1, -1, -1) for part in (masked, mask)], dim=1)
        if guidance_scale > 1 and self.embeds.negative is None:
            raise ValueError("guidance above 1 needs negative_image_embeds, which this call does not have; pass them")
        if self.run is not None and timesteps:
            self.run.guidance = self.stage.guidance(
                self.embeds,
                max(guidance_scale, 1.0),
                timesteps,
                hint=self.hint,
                masked=None if self.inpaint is None else self.inpaint.channels,
            )


def _check_changes(
    returned: Mapping[str, Tensor], available: Mapping[str, Tensor], names: Sequence[str], rows: int = 0
) -> None:
    """Raises `ValueError` for a tensor that a callback may not change, or of another shape than it was given.

    rows: a tensor may also have that many rows, or twice as many.
    """
    if wrong := [name for name in returned if name not in names or name not in available]:
        changeable = ", ".join(["latents", *(name for name in names if name in available)])
        raise ValueError(f"a callback may change {changeable}; it returned other {', '.join(wrong)}")
    for name, value in returned.items():
        shape = available[name].shape
        if value.shape[1:] != shape[1:] or len(value) not in {shape[0], rows or shape[0], 2 * rows or shape[0]}:
            raise ValueError(f"a callback must return {name} {list(shape)}, got {list(value.shape)}")


def _start_from_image(stage: DecoderStage, call: DecoderCall, image: Tensor) -> StartState:
    """The start state from pixels or latents."""
    options = call.options
    z = image if image.shape[1] == stage.stored.movq.config.latent_channels else stage.encode(image)
    z = repeat_rows(z, options.images_per_prompt)
    if (call.noise_per_row or options.images_per_prompt > 1) and len(z) != call.rows:
        z = z[:1].expand(call.rows, -1, -1, -1)
    noise = options.noise(stage.networks.weight_dtype, len(z))
    state = StartState.from_clean(stage.schedule, options.steps, z, options.strength, noise)
    return state._replace(x=state.x.expand(call.rows, -1, -1, -1))


def _check_rows(name: str, part: Tensor, count: int) -> None:
    if len(part) not in (1, count):
        raise ValueError(f"{name} must be one for all or {count}, got {len(part)}")
