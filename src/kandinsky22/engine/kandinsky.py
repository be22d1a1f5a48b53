"""Kandinsky: the whole model. Four stages in order, each callable by itself: embed, start_state, sample, decode.

`stream_many` carries out any number of requests together, with one network call per step for all of them; `stream` is
the same for one request, and calling the model is `stream` without the events.
"""

import warnings
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from PIL import Image
from torch import Tensor

import kandinsky22
from kandinsky22 import acceleration
from kandinsky22.checkpoints import catalog, hub, locate
from kandinsky22.checkpoints.lora_files import UNET
from kandinsky22.checkpoints.metadata import stale_notice
from kandinsky22.checkpoints.model import StoredModel
from kandinsky22.checkpoints.schedulers import SAMPLER_OF
from kandinsky22.console import echo, printable
from kandinsky22.engine import memory
from kandinsky22.engine.batch import Batch
from kandinsky22.engine.calls import Calls, Steps
from kandinsky22.engine.device import device_of, dtype_of, fitting_dtype, fitting_placement, processor
from kandinsky22.engine.embedder import ImageEmbedder
from kandinsky22.engine.loras import LoadedLoRAs
from kandinsky22.engine.painting import Painter
from kandinsky22.engine.placement import Networks, Placement
from kandinsky22.engine.requirements import decoder_kind, model_parts
from kandinsky22.engine.runs import StartState
from kandinsky22.engine.scheduler import Scheduler, run
from kandinsky22.engine.stages import DecoderStage, Embeds, PriorStage
from kandinsky22.files import expand
from kandinsky22.imaging import masks
from kandinsky22.imaging.canvas import Canvas
from kandinsky22.imaging.images import Painting
from kandinsky22.request import Defaults, Embedding, Request, Sampling
from kandinsky22.request.events import Event, Failed, Notice, Preview, Result, stream
from kandinsky22.request.parts import EVERYWHERE, UNSPECIFIED
from kandinsky22.request.sizes import MIN_SIDE
from kandinsky22.request.tasks import text2img
from kandinsky22.request.vocabulary import unknown_words_notice

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


def _to_stderr(line: str) -> None:
    echo(line, error=True)


class Kandinsky:
    """A model, loaded from folders in the published layout: a prior, and a decoder for each kind of task.

    Every file is checked before anything runs. A network is loaded when it is first needed; `placement` says whether it
    stays. Text-to-image never loads the image encoder: the one embedding it is needed for is stored (see
    `checkpoints/zero_image.py`).
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        *,
        name: str,
        device: torch.device,
        dtype: torch.dtype | None = None,
        placement: Placement | None = None,
        accelerated: bool | None = None,
        compiled: bool = False,
    ) -> None:
        self.stored = StoredModel(folders)
        self.name = name
        first = self.stored.first
        elements = sum(n.elements for n in (*self.stored.prior.networks.values(), *first.networks.values()))
        dtype = dtype or fitting_dtype(first.unet.elements, device)
        placement = placement or fitting_placement(first.unet.elements, elements, device, dtype)
        self.networks = Networks(device, dtype, placement, accelerated=accelerated, compiled=compiled)
        self._compiled: set[tuple[int, ...]] = set()  # the shapes that have been compiled
        self.prior = PriorStage(self.stored.prior, self.networks)
        self.loras = LoadedLoRAs(self.networks)
        self.embedder = ImageEmbedder(self.prior, self.loras)
        self._decoders: dict[str, DecoderStage] = {}
        self.decoder(self.stored.first.kind)  # raises now if it cannot be loaded
        self.defaults = self._defaults()

    @classmethod
    def load(
        cls,
        model: str | Path = catalog.BOX,
        *,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        placement: Placement | None = None,
        accelerated: bool | None = None,
        compiled: bool = False,
        request: Request | Sequence[Request] | None = None,
        say: Callable[[str], None] = _to_stderr,
    ) -> Self:
        """The model in the box, a published one, or the one in a folder.

        Of a published model, what is missing on this machine is downloaded: no more than `request` needs, which may be
        several (None: text to image). Before that, `say` is called with what will be downloaded, how much, and how much
        room there is.

        device: "auto" (or None) is cuda if there is one, else mps, else cpu. dtype: "auto" (or None) is float16 on cuda
        and mps; on a CPU it is bfloat16 for large models if the processor has instructions for it, else float32, in
        which a seed reproduces its picture most exactly. Half precision on a CPU without such instructions applies to
        the weights alone: everything is computed in float32, with half the memory. placement: "keep" networks,
        "offload" each when its stage is done, or move them "sequential"ly, weight by weight; None offloads a large
        model on a CPU, where loading it again takes little time compared with painting, and on an accelerator without
        room for all of it. accelerated: False computes by plain torch alone: the same numbers up to rounding, on a CPU
        at less than half the speed. compiled: on cuda, torch also compiles each step; the first picture of a size then
        takes minutes, and the compiled code is stored in the user's cache. Raises `ValueError` if the folder, the
        device or the dtype cannot be used.
        """
        acceleration.request_huge_pages()
        text, place = str(model), device_of(device)
        if catalog.is_remote(text):
            requests = [request] if isinstance(request, Request) else request or [text2img("")]
            parts = dict.fromkeys(part for needed in requests for part in model_parts(text, needed))
            folders = hub.fetch(text, list(parts), say=say)
        else:
            folders = locate.part_folders(text)
        name = text if text in (catalog.BOX, *catalog.published()) else expand(text).resolve().name
        return cls(
            folders,
            name=name,
            device=place,
            dtype=dtype_of(dtype),
            placement=placement,
            accelerated=accelerated,
            compiled=compiled,
        )

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return self.networks.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights. It computes in `networks.dtype`; states between steps are float32."""
        return self.networks.weight_dtype

    def decoder(self, kind: str) -> DecoderStage:
        """The decoder of a kind of task (a name of `catalog`). Raises `CheckpointError` if the model has none."""
        if kind not in self._decoders:
            self._decoders[kind] = DecoderStage(self.stored.decoder(kind), self.networks)
        return self._decoders[kind]

    def describe(self, request: Request) -> dict[str, Any]:
        """What decides the pixels of a resolved request besides it: weights, versions, device, dtype, threads."""
        cuda = self.device.type == "cuda"
        linear = {"linear_prior": self.stored.prior.linear_prior.fingerprint} if request.prior.linear else {}
        return {
            "weights": self.stored.fingerprints(decoder_kind(request)) | linear,
            "kandinsky22": kandinsky22.__version__,
            "torch": str(torch.__version__),
            "device": self.device.type,
            "processor": torch.cuda.get_device_name(self.device) if cuda else processor(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            **({"acceleration": self.networks.described()} if self.networks.accelerated else {}),
        }

    def __call__(self, what: str | Request, **options: Any) -> list[Painting]:
        """Paint a request, or a prompt with the options of `tasks.text2img`. Notices become warnings."""
        for event in self.stream(as_request(what, **options)):
            if isinstance(event, Notice):
                warnings.warn(printable(event.text), stacklevel=2)
            if isinstance(event, Result):
                return event.pictures
        raise AssertionError("a stream ends with its result")

    def stream(
        self, request: str | Request, preview: Preview | None = None, **options: Any
    ) -> Generator[Event, None, None]:
        """The events of a request, or of a prompt with the options of `tasks.text2img`; the last is its `Result`.

        Closing the generator cancels it. Raises `ValueError` for a request that cannot be carried out, before anything
        runs; `FloatingPointError` for a result that is not finite; `MemoryError` where memory ran out.
        """
        return stream(self, as_request(request, **options), preview)

    def stream_many(
        self,
        requests: Mapping[K, Request | str],
        preview: Preview | None = None,
        *,
        together: bool = False,
        max_rows: int | None = None,
    ) -> Generator[tuple[K, Event], None, None]:
        """Carry out many requests or prompts in one `Batch`; yields (key, event). See `request.events.Backend`.

        max_rows: see `Batch`. Raises `ValueError` for anything but a mapping.
        """
        if not isinstance(requests, Mapping):
            raise ValueError("requests must have keys, by which their events are known: dict(enumerate(requests))")
        return self._stream_many(requests, preview, together, max_rows)

    def _stream_many(
        self, requests: Mapping[K, Request | str], preview: Preview | None, together: bool, max_rows: int | None
    ) -> Generator[tuple[K, Event], None, None]:
        with closing(self.batch(together=together, max_rows=max_rows)) as batch:
            for key, request in requests.items():
                try:
                    batch.submit(key, as_request(request), preview)
                except ValueError as error:
                    yield key, Failed("refused", str(error))
            while len(batch):
                yield from batch.step()

    def batch(self, *, together: bool = False, max_rows: int | None = None) -> Batch[Any]:
        """An empty batch of this model, for requests that join while others are painted; see `Batch`."""
        return Batch(self, max_rows=max_rows, together=together)

    def resolve(self, request: Request) -> Request:
        """The request with every open field filled in. Raises `ValueError` for what this model cannot do."""
        if expand(request.model).resolve().name not in (catalog.BOX, self.name):
            raise ValueError(f"the request is for {request.model!r}, and this model is {self.name!r}; load that one")
        request = replace(request.resolved(self.defaults), model=self.name)  # a name, so that no path is saved
        decoder, prior = self.decoder(decoder_kind(request)), self.stored.prior
        self.loras.check(request.loras, {UNET: decoder.stored.unet, **prior.networks})
        self.embedder.check(request)
        decoder.schedule.timesteps(
            _set(request.decoder.steps), request.start.strength if request.start else None
        )  # raises
        return request

    def canvas(self, request: Request) -> Canvas:
        """The canvas of a resolved request. Raises `ValueError` for a mask that repaints nothing, or missing pixels."""
        for picture in request.pictures.values():
            _ = picture.image  # raises if only the reference is known
        return Canvas.of(request, (self.defaults.height, self.defaults.width))

    def embed(self, request: Request) -> Embeds:
        """Stage 1: the image embeddings of a request. Called by itself it needs a request with a seed: `resolve`."""
        return self._run(self.embedder.embed(self._seeded(request), Calls()))

    def embedding(self, request: str | Request, **options: Any) -> Embedding:
        """The image embedding of a request's first picture, or of a prompt, as a value that can be saved.

        options: of `tasks.text2img`, for a prompt, whose seed is drawn if there is none.
        """
        prompt, request = isinstance(request, str), as_request(request, **options)
        request = self._seeded(self.resolve(request) if prompt else request)
        vector = self.embed(request).image[0].cpu().numpy()
        made_by = {"weights": {"prior": self.stored.prior.prior.fingerprint, "clip": self.stored.prior.space}}
        return Embedding.of(vector, self.stored.prior.space, {"request": request.to_json(), **made_by})

    def start_state(self, request: Request) -> StartState:
        """Stage 2: the latents [n, 4, h, w], float32, that sampling starts from."""
        return self._run(Painter(self, self._seeded(request), Calls()).start_state())

    def sample(self, request: Request, embeds: Embeds, start: StartState) -> Tensor:
        """Stage 3: finished latents [n, 4, h, w], from what `embed` and `start_state` returned."""
        painter = Painter(self, self._seeded(request), Calls())
        painter.noise(start.x)  # skips the draw that `start_state` made
        return self._run(painter.sample(embeds, start))

    def decode(self, request: Request, latents: Tensor) -> list[Image.Image]:
        """Stage 4: the pictures of latents [n, 4, h, w]."""
        return self._run(Painter(self, self._seeded(request), Calls()).decode(latents))

    @torch.inference_mode()
    def _run(self, task: Steps[T]) -> T:
        """Run a task by itself."""
        return run(Scheduler(memory.is_exhausted), task)

    def in_float32(self) -> "Kandinsky":
        """The same model with its weights in float32, on the same device."""
        networks = self.networks
        return type(self)(
            self.stored.folders,
            name=self.name,
            device=networks.device,
            dtype=torch.float32,
            placement=networks.placement,
            accelerated=networks.accelerated,
        )

    def _defaults(self) -> Defaults:
        """The defaults of the model's folder, else those of the published pipelines."""
        first = self.stored.first
        stages = {}
        for part, scheduler in ((catalog.PRIOR, self.stored.prior.scheduler), (catalog.DECODER, first.scheduler)):
            published = Sampling(
                sampler=SAMPLER_OF[scheduler["_class_name"]],
                steps=catalog.PUBLISHED_STEPS[part],
                guidance_scale=catalog.PUBLISHED_GUIDANCE,
            )
            if part == catalog.DECODER:
                published = replace(published, guidance_interval=EVERYWHERE, reuse=1)
            stages[part] = self.stored.metadata.defaults.get(part, UNSPECIFIED).with_defaults(published)
        return Defaults(height=first.side, width=first.side, **stages)

    def _seeded(self, request: Request) -> Request:
        """The request resolved, for a stage called by itself."""
        if request.seed is None:
            raise ValueError("each stage would draw its own seed; start with request = kandinsky.resolve(request)")
        return self.resolve(request)

    def check_memory(self, sizes: Sequence[memory.Size]) -> None:
        """Raises `ValueError` for requests that do not fit into memory together, with the weights that must still be
        loaded. sizes: how many pictures each has, and the size of its canvas."""
        first = self.stored.first
        needed = [*self.stored.prior.networks.values(), *first.networks.values()]
        unread = self.networks.bytes_to_load(needed)
        memory.check(first.unet.config, first.movq.config, sizes, unread, self.networks.dtype.itemsize, self.device)

    def notices(self, request: Request, canvas: Canvas) -> Iterator[str]:
        """What the user should know before the request starts."""
        for dropped in self.prior.tokenizer(list(request.texts)).dropped if request.texts else ():
            if dropped:
                yield f"the prompt is too long for this model; it does not see: {dropped}"
        if stale := stale_notice(self.stored.metadata.stale, self.stored.folders[catalog.PRIOR].parent):
            yield stale
        if unknown := unknown_words_notice(request.texts, self.stored.metadata.words):
            yield unknown
        if canvas.inpainting is not None and request.mask is not None and not any(request.mask.pad):
            reminder = masks.reminder(masks.share(canvas.inpainting.area), request.mask.repaint)
            if reminder:
                yield reminder
        composed = request.start is None and request.mask is None and request.hint is None
        if composed and canvas.size != (canvas.height, canvas.width):
            height, width = canvas.size
            yield (
                f"painted at {width}x{height} and cropped to {canvas.width}x{canvas.height}, so the edges may "
                f"cut things; sides that are multiples of {MIN_SIDE} need no cropping"
            )
        if not request.decoder.exact and self.name != catalog.BOX:
            yield (
                "guidance_interval and reuse were only evaluated with the model in the box; with this one they are "
                "untested"
            )
        shape = (request.num_images, *canvas.size)
        if self.networks.compiled and shape not in self._compiled:
            self._compiled.add(shape)
            height, width = canvas.size
            yield f"compiling for {request.num_images} of {width}x{height}, once; it may take minutes"
        if self.networks.dtype == torch.float16 and self.device.type == "cpu":
            yield "float16 is slow and coarse on a CPU without acceleration; use float32 there"


def as_request(what: str | Request, **options: Any) -> Request:
    """A request, or the one of a prompt with the options of `tasks.text2img`. Raises `ValueError` for anything else."""
    if not isinstance(what, str | Request):
        raise ValueError(f"give a prompt or a request, such as text2img('a red star'), got {type(what).__name__}")
    if isinstance(what, str):
        return text2img(what, **options)
    if options:
        raise ValueError(f"options belong in the request: replace(request, {next(iter(options))}=...)")
    return what


def _set(value: T | None) -> T:
    """A field of a resolved request, which is never None."""
    assert value is not None
    return value
