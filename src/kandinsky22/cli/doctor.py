"""`kandinsky22 doctor`: prints what fits this machine, what is used, and how long a picture takes. No downloads."""

import os
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from kandinsky22 import __version__
from kandinsky22.checkpoints import catalog
from kandinsky22.cli.options import Parser, size_settings
from kandinsky22.console import echo
from kandinsky22.request.tasks import text2img

EXTRAS = {
    "huggingface_hub": "downloads published weights: pip install 'kandinsky22[hub]'",
    "transformers": "estimates the depth of pictures: pip install 'kandinsky22[depth]'",
}


def main(arguments: Sequence[str]) -> None:
    """Print the report; this measures for a few seconds."""
    parser = Parser(
        "kandinsky22 doctor",
        "Print what fits this machine, what is used, and about how long a picture takes.",
        usage="kandinsky22 doctor [options]",
    )
    parser.option("size", **size_settings("size of the picture", "the model's own"))
    parser.option("model", metavar="NAME", help="a single model (default: the box and the published one)")
    parser.add_edge("device", "dtype")
    options, words, _ = parser.parse(arguments)
    if words:
        raise ValueError(f"`doctor` takes only options, got {words[0]!r}; see {parser.prog} --help")
    if "size" in options:
        text2img("", width=options["size"][0], height=options["size"][1])  # raises for an invalid size
    for line in _report(options):
        echo(line)


def _report(options: dict[str, Any]) -> Iterator[str]:
    import torch

    from kandinsky22.engine import memory
    from kandinsky22.engine.device import device_of, dtype_of

    device = device_of(options.get("device"))
    yield f"kandinsky22 {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
    )
    free = _gigabytes(memory.free(device))
    yield f"computes on {device.type} ({name}), {torch.get_num_threads()} threads, {free} of memory free"
    if device.type in ("cpu", "cuda"):
        yield f"kernels of our own: {_kernels(device)}"
    for model in [options["model"]] if "model" in options else [catalog.BOX, *catalog.published()]:
        yield ""
        yield from _model(model, device, dtype_of(options.get("dtype")), options.get("size"))
    yield ""
    for library, use in EXTRAS.items():
        yield f"{library}: {'installed' if find_spec(library) else f'not installed; it {use}'}"
    yield f"ffmpeg: {'installed' if shutil.which('ffmpeg') else 'not installed; it writes films as .mp4'}"


def _kernels(device: Any) -> str:
    """Whether the kernels are used, and if not, why."""
    from kandinsky22 import acceleration
    from kandinsky22.acceleration.flags import PARTS, uses

    if not acceleration.is_wanted(device):
        return f"not used, since {acceleration.ENV_VARIABLE} is off"
    disabled = [part for part in PARTS if not uses(part)]
    recorded = "; steps run as CUDA graphs" if device.type == "cuda" and uses("recording") else ""
    reason = acceleration.why_no_kernels(device)
    used = "used" if reason is None else f"not used, plain torch computes the same more slowly; {reason}"
    return used + recorded + (f"; {acceleration.ENV_VARIABLE} leaves out {', '.join(disabled)}" if disabled else "")


def _model(model: str, device: Any, dtype: Any, size: tuple[int, int] | None) -> Iterator[str]:
    """Lines on a model: whether it is on this machine, the memory it needs, and the time of a picture."""
    from kandinsky22 import acceleration
    from kandinsky22.checkpoints import full_size, hub
    from kandinsky22.engine import cost, memory
    from kandinsky22.engine.device import LARGE, fitting_dtype
    from kandinsky22.engine.kandinsky import Kandinsky
    from kandinsky22.engine.requirements import model_parts
    from kandinsky22.models.clip import CLIPText
    from kandinsky22.models.movq import MoVQ
    from kandinsky22.models.prior import PriorTransformer
    from kandinsky22.models.unet import UNet

    networks: tuple[Any, ...] = (CLIPText, PriorTransformer, UNet, MoVQ)
    kandinsky = None
    if catalog.is_remote(model) and (plan := hub.plan_fetch(model, model_parts(model, text2img("")))).missing:
        yield f"{model}: not here yet; {plan}"
        configs = full_size.TEXT_ENCODER, full_size.PRIOR, full_size.UNET, full_size.MOVQ
        steps = tuple(catalog.PUBLISHED_STEPS[part] for part in (catalog.PRIOR, catalog.DECODER))
        side = full_size.UNET.sample_size * full_size.MOVQ.factor
        width, height = size or (side, side)
        dtype = dtype or fitting_dtype(full_size.elements(UNet, full_size.UNET), device)
    else:
        kandinsky = Kandinsky.load(model, device=str(device), dtype=dtype)
        prior, decoder = kandinsky.stored.prior, kandinsky.stored.first
        configs = prior.text_encoder.config, prior.prior.config, decoder.unet.config, decoder.movq.config
        defaults = kandinsky.defaults
        assert defaults.prior.steps is not None and defaults.decoder.steps is not None
        steps = defaults.prior.steps, defaults.decoder.steps
        width, height = size or (defaults.width, defaults.height)
        dtype = kandinsky.dtype
        yield f"{model}: here, with weights for {', '.join(kandinsky.stored.folders)}"
    computed = acceleration.compute_dtype(dtype, device) if acceleration.is_wanted(device) else dtype
    dtypes = ", computed in ".join(str(item).removeprefix("torch.") for item in dict.fromkeys((dtype, computed)))
    counts = [
        full_size.elements(*pair) * dtype.itemsize + _more(*pair, device, dtype)
        for pair in zip(networks, configs, strict=True)
    ]
    needs = {
        placement: memory.needed(*configs[2:], [(1, height, width)], unread, computed.itemsize)
        for placement, unread in (("keep", sum(counts)), ("offload", max(counts)))
    }
    free = memory.free(device)
    fits = next((placement for placement, need in needs.items() if need < free), None)
    needed = ", ".join(f"{_gigabytes(need)} with --placement {placement}" for placement, need in needs.items())
    yield f"  a picture of {width}x{height} in {dtypes} needs about {needed}: " + (
        f"{fits} fits" if fits else "neither fits; try --placement sequential on a GPU, or a smaller --size"
    )
    if kandinsky is not None and full_size.elements(UNet, configs[2]) < LARGE:
        # The time of a small network does not follow from its number of operations, so measure a picture.
        examples = kandinsky.stored.metadata.examples
        start = time.perf_counter()
        kandinsky(examples[0] if examples else "", height=height, width=width, seed=0)
        yield f"  and took {_duration(time.perf_counter() - start)} just now, including reading the weights"
        return
    work = cost.work(*configs, height=height, width=width).of_a_picture(*steps)
    seconds = work / cost.rate(device, computed)
    yield f"  and takes about {_duration(seconds)}: {work / 1e12:.3g} TFLOP, {steps[0]} + {steps[1]} steps, guided"


def _more(network: Any, config: Any, device: Any, dtype: Any) -> int:
    """Bytes of memory that acceleration adds to the weights of a network."""
    import torch

    from kandinsky22 import acceleration

    with torch.device("meta"):
        room = acceleration.filter_budget(device)
        return acceleration.extra_bytes(network(config), dtype, room) if acceleration.is_wanted(device) and room else 0


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
