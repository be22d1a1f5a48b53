"""Runs of the prior and of a decoder for rows that share a generator, drawn in the order of diffusers' pipelines.

`conditions.py` and `kandinsky.py` do this for requests, each picture with a stream of its own. Here one generator (or a
list) draws for all rows: the initial state, then once after every step (spec 1.9 and 3). Everything was checked before.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kandinsky22.diffusion import Draw, NoiseSchedule, SharedNoise, keep, start_at
from kandinsky22.engine.runs import Constrain, InpaintCondition, Run, StartState, repeat_rows
from kandinsky22.engine.stages import DecoderStage, Embeds, PriorStage
from kandinsky22.models.prior import Prefix
from kandinsky22.models.unet import Conditioned
from kandinsky22.pipelines.arguments import check_finite, number, whole

Tensors = Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Told:
    """Who is told of a run after each step. on_step_end(pipe, i, t, tensors) may give other latents back, in a mapping;
    heard(i, t, latents) hears of every `every`th step. names: the tensors that the first wants to see."""

    pipe: Any
    on_step_end: Callable[..., Any] | None = None
    names: Sequence[str] = ("latents",)
    heard: Callable[..., Any] | None = None
    every: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "every", whole("callback_steps", self.every, 1))  # it is frozen

    def through(self, timesteps: Sequence[int], tensors: Tensors) -> Constrain:
        """The constraint that tells, for a run through `timesteps`; `tensors` makes what there is to see besides
        latents.

        Raises `ValueError` where anything but latents comes back changed.
        """
        if self.on_step_end is None and self.heard is None:
            return keep
        steps = count()
        others = [name for name in self.names if name != "latents"] if self.on_step_end else []
        made = tensors() if others else {}

        def tell(x: Tensor, _: int) -> Tensor:
            i = next(steps)
            t = torch.tensor(timesteps[i])
            if self.on_step_end is not None:
                shown = {name: x if name == "latents" else made[name] for name in self.names}
                back = self.on_step_end(self.pipe, i, t, dict(shown)) or {}
                if wrong := [
                    name for name, value in back.items() if name != "latents" and value is not shown.get(name)
                ]:
                    raise ValueError(
                        f"a callback may change latents and nothing else; it gave back other {', '.join(wrong)}"
                    )
                changed: Tensor = back.get("latents", x)
                if changed.shape != x.shape:
                    raise ValueError(f"a callback gave back latents {list(changed.shape)} for {list(x.shape)}")
                x = changed.to(x)
            if self.heard is not None and i % self.every == 0:
                self.heard(i, t, x)
            return x

        return tell


@dataclass(frozen=True, kw_only=True)
class How:
    """What either stage is told: guidance of 1 or less is off; `each` rows for every prompt or embedding; latents to
    begin with, if noise is not to be drawn; what a run starts from is noised to `strength`. Raises `ValueError`."""

    steps: int
    guidance: float
    sampler: str
    generator: Any
    told: Told
    each: int = 1
    latents: Tensor | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        plain = {
            "each": whole("num_images_per_prompt", self.each, 1),
            "steps": whole("num_inference_steps", self.steps, 50),
            "guidance": number("guidance_scale", self.guidance, 4),
            "strength": number("strength", self.strength, 0.3),
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)  # it is frozen

    @property
    def weight(self) -> float:
        """What guidance multiplies by."""
        return float(self.guidance) if self.guidance > 1 else 1.0

    def noise(self, dtype: torch.dtype, rows: int | None = None) -> Draw:
        """Noise in the dtype in which diffusers draws it, whatever the state is in; of a list, the first `rows`
        generators."""
        shared = SharedNoise(
            list(self.generator)[:rows] if isinstance(self.generator, list | tuple) else self.generator
        )
        return lambda x: shared.draw(tuple(x.shape), dtype, x.device).to(x.dtype)

    def check_run(self, schedule: NoiseSchedule, strength: float | None, shape: tuple[int, ...]) -> int:
        """The number of steps from noise of a shape, or from what is noised to `strength`. Raises `ValueError` where
        there are none, and for generators and latents that do not fit."""
        timesteps = schedule.timesteps(self.steps)
        if strength is not None:
            timesteps = start_at(timesteps, strength)
        several = isinstance(self.generator, list | tuple)
        for one in self.generator if several else [self.generator]:
            if not isinstance(one, torch.Generator) and (several or one is not None):
                raise ValueError(
                    f"generator must be a torch.Generator, got {one!r}; try torch.Generator().manual_seed(5)"
                )
        if several and len(self.generator) not in (1, shape[0]):
            raise ValueError(
                f"got {len(self.generator)} generators for {shape[0]} rows; pass one generator, or one for each row"
            )
        if self.latents is not None:
            if not isinstance(self.latents, Tensor) or tuple(self.latents.shape) != shape:
                got = getattr(self.latents, "shape", ())
                raise ValueError(
                    f"latents must be {list(shape)}, a tensor; got {type(self.latents).__name__} {list(got)}"
                )
            check_finite("latents", self.latents)
        return len(timesteps)

    def initial(self, shape: tuple[int, ...], noise: Draw, device: torch.device) -> Tensor:
        """The state to begin with."""
        empty = torch.empty(shape, device=device)
        return noise(empty) if self.latents is None else self.latents.to(empty)


@dataclass(frozen=True, kw_only=True)
class Words(How):
    """What the prior is asked for. start: pictures, pixels as CLIP sees them, or embeddings, noised to `strength`."""

    prompts: Sequence[str]
    negatives: Sequence[str] = ()
    start: Sequence[Image.Image] | Tensor | None = None

    @property
    def total(self) -> int:
        """Rows of the run: the negative prompts' embeddings are sampled too."""
        return self.each * (len(self.prompts) + len(self.negatives))

    def check(self, stage: PriorStage) -> int:
        """The number of steps. Raises `ValueError` for what does not fit together, or not this prior."""
        if not self.prompts or len(self.negatives) not in (0, len(self.prompts)):
            raise ValueError(
                f"{len(self.prompts)} prompts need as many negative prompts, or none; got {len(self.negatives)}"
            )
        if self.start is not None and (len(self.prompts) + len(self.negatives)) % len(self.start):
            raise ValueError(f"{len(self.start)} pictures cannot be shared out among {len(self.prompts)} prompts")
        if isinstance(self.start, Tensor) and self.start.ndim == 2 and self.start.shape[1] != stage.dim:
            raise ValueError(f"embeddings as image must be [B, {stage.dim}], got {list(self.start.shape)}")
        return self.check_run(stage.schedule, None if self.start is None else self.strength, (self.total, stage.dim))


def prior_run(stage: PriorStage, a: Words) -> Run[Prefix]:
    """A run for all prompts and then all negative prompts, which are led away from themselves: not at all."""
    device = stage.networks.device
    noise = a.noise(stage.networks.weight_dtype)
    sampled, led = [*a.prompts, *a.negatives], a.weight != 1
    away = (list(a.negatives) * 2 or [""] * len(sampled)) if led else sampled
    weights = [a.weight] * (a.each * len(a.prompts)) + [1.0] * (a.each * len(a.negatives))
    words = list(dict.fromkeys([*sampled, *away]))
    read = stage.encode_prompts(words)

    def places(texts: Sequence[str]) -> list[int]:
        return [words.index(text) for text in texts for _ in range(a.each)]

    if a.start is None:
        start = StartState.from_noise(stage.schedule, a.steps, a.initial((a.total, stage.dim), noise, device))
    else:  # one after the other, again and again; as published, not normalised (spec 1.3)
        clean = _embeddings(stage, a.start).to(device)
        shared = [row // a.each % len(clean) for row in range(a.total)]
        start = StartState.from_clean(stage.schedule, a.steps, clean[shared], a.strength, noise)

    def tensors() -> dict[str, Tensor]:
        embed, hidden, mask = (
            repeat_rows(part, a.each) for part in stage.encode_text([*away, *sampled] if led else sampled)
        )
        return {"prompt_embeds": embed, "text_encoder_hidden_states": hidden, "text_mask": mask}

    told = a.told.through(start.timesteps, tensors)
    weight = torch.tensor(weights, device=device)
    return stage.prepare_run(read, places(sampled), places(away), weight, a.sampler, start, noise, told)


def _embeddings(stage: PriorStage, start: Sequence[Image.Image] | Tensor) -> Tensor:
    if not isinstance(start, Tensor):
        return stage.encode_images(start)
    return start.float() if start.ndim == 2 else stage.encode_pixels(start)


@dataclass(frozen=True, kw_only=True)
class Canvas(How):
    """What a decoder is asked for, on height x width pixels, for `count` embeddings.

    start: pixels or latents to begin with, noised to `strength`; one for all is noised once, unless `apart` or `each`
    is more than 1, and then for every row. known: pixels, and where they are repainted. hint: [1 or count, 3, H, W].
    """

    height: int
    width: int
    count: int
    start: Tensor | None = None
    apart: bool = False
    known: tuple[Tensor, Tensor] | None = None
    hint: Tensor | None = None

    @property
    def total(self) -> int:
        """Rows of the run."""
        return self.each * self.count

    def check(self, stage: DecoderStage, embeds: Embeds | None) -> int:
        """The number of steps. Raises `ValueError` for what does not fit together, or not this decoder; embeddings that
        are still to come are not looked at."""
        shape = stage.shape(self.total, self.height, self.width)
        pixels = [3, self.height, self.width]
        if self.known is not None:
            many = max(map(len, self.known))
            for part in self.known:
                _check_number("image and mask_image", part, many)
                _check_number("image", part, self.count)
        if self.start is not None:
            _check_number("image", self.start, self.count)
            if list(self.start.shape[1:]) not in (pixels, list(shape[1:])):
                raise ValueError(f"latents to start from must be {list(shape[1:])}, got {list(self.start.shape[1:])}")
        if self.hint is not None:
            _check_number("hint", self.hint, self.count)
            if list(self.hint.shape[1:]) != pixels:
                got = list(self.hint.shape[1:])
                wanted = f"[B, 3, {self.height}, {self.width}]"
                raise ValueError(f"hint must be {wanted}, got {got}; resize it, as kandinsky22.controlnet does")
        if embeds is not None:
            self._check_embeds(embeds, stage.stored.unet.config.encoder_hid_dim)
        return self.check_run(stage.schedule, None if self.start is None else self.strength, shape)

    def _check_embeds(self, embeds: Embeds, dim: int) -> None:
        if embeds.negative is None and self.weight != 1:
            raise ValueError("negative_image_embeds must be given, unless guidance_scale is 1; the prior makes them")
        for name, part in zip(("image_embeds", "negative_image_embeds"), embeds, strict=True):
            if part is not None and tuple(part.shape) != (self.count, dim):
                raise ValueError(f"{name} must be [{self.count}, {dim}], got {list(part.shape)}; the prior makes them")


def decoder_run(stage: DecoderStage, a: Canvas, embeds: Embeds) -> tuple[Run[Conditioned], Constrain]:
    """A run led by `embeds`, one for `each` rows; and what to do with its end, which has t = -1."""
    device, dtype = stage.networks.device, stage.networks.weight_dtype
    image = repeat_rows(embeds.image.to(device), a.each)
    negative = None if embeds.negative is None else repeat_rows(embeds.negative.to(device), a.each)
    noise = a.noise(dtype)
    known: InpaintCondition | None = None
    held: Constrain = keep
    if a.start is not None:
        start = _start_from(stage, a, a.start.to(device))
    else:
        start = StartState.from_noise(
            stage.schedule, a.steps, a.initial(stage.shape(a.total, a.height, a.width), noise, device)
        )
    if a.known is not None:
        many = max(map(len, a.known))
        known = stage.inpaint_condition(*(part.expand(many, -1, -1, -1).to(device) for part in a.known))
        known = InpaintCondition(*(repeat_rows(part, a.each) if many > 1 else part for part in known))
        held = known.constraint(start, stage.schedule)
    hint = a.hint if a.hint is None or len(a.hint) == 1 else repeat_rows(a.hint, a.each)

    def tensors() -> dict[str, Tensor]:
        led = a.weight != 1 and negative is not None
        shown = {"image_embeds": image if negative is None or not led else torch.cat([negative, image])}
        if negative is not None:
            shown["negative_image_embeds"] = negative
        if known is not None:
            where = known.mask.expand(a.total, -1, -1, -1)
            masked = (known.z * known.mask).expand(a.total, -1, -1, -1)
            shown |= {"masked_image": repeat_rows([masked] * (1 + led)), "mask_image": repeat_rows([where] * (1 + led))}
        return shown

    told = a.told.through(start.timesteps, tensors)
    run = stage.prepare_run(
        Embeds(image, negative), a.weight, a.sampler, start, noise, hint=hint, inpaint=known, constrain=told
    )
    return run, held


def _start_from(stage: DecoderStage, a: Canvas, start: Tensor) -> StartState:
    """From pixels or latents (spec 7, row 6)."""
    z = start if start.shape[1] == stage.stored.movq.config.latent_channels else stage.encode(start)
    z = repeat_rows(z, a.each)
    if (a.apart or a.each > 1) and len(z) != a.total:
        z = z[:1].expand(a.total, -1, -1, -1)
    noise = a.noise(stage.networks.weight_dtype, len(z))
    state = StartState.from_clean(stage.schedule, a.steps, z, a.strength, noise)
    return state._replace(x=state.x.expand(a.total, -1, -1, -1))


def _check_number(name: str, part: Tensor, many: int) -> None:
    if len(part) not in (1, many):
        raise ValueError(f"{name} must be one for all or {many}, got {len(part)}")
