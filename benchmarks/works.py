"""One piece of work by one program, in its own process: loads, then does it once for every line on standard input.

Both programs run the same lines of code: this package's pipelines have the names and arguments of diffusers'. After
each turn it prints a line of JSON with the seconds, and the first turn's result is written to a file, for `tables.py`
to compare. Nothing of this package is imported on diffusers' side.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from turns import Turns, free_unused, keep_freed_memory

PROMPT = "three red circles over a blue triangle"
STEPS = 50  # of the run whose steps are timed one by one


class Enough(Exception):  # noqa: N818
    """Stops a pipeline when the timed part is done."""


def pipeline(a: argparse.Namespace, part: str, **changes: Any) -> Any:
    """A pipeline of the program, with the weights of the folder."""
    import torch

    if a.program == "diffusers":
        from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline
    else:
        from kandinsky22.pipelines import KandinskyV22Pipeline, KandinskyV22PriorPipeline

        changes = {}
    kind = {"prior": KandinskyV22PriorPipeline, "decoder": KandinskyV22Pipeline}[part]
    pipe = kind.from_pretrained(a.model / part, dtype=getattr(torch, a.dtype), **changes)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def read(a: argparse.Namespace, pipe: Any) -> Any:
    """The pipeline with all its weights in memory: this package reads a network when it is first needed, and both
    programs may map files without reading them."""
    names = ["text_encoder", "prior", "unet", "movq"] + ["image_encoder"] * (a.program == "diffusers")
    for name in names:
        if (network := getattr(pipe, name, None)) is not None:
            for weight in network.parameters():
                weight.sum()
    return pipe


def noise(*shape: int, seed: int) -> Any:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def embeds(a: argparse.Namespace) -> dict[str, Any]:
    """Inputs of a decoder: random embeddings and latents."""
    import torch

    dim = json.loads((a.model / "decoder/unet/config.json").read_text())["encoder_hid_dim"]
    dtype = getattr(torch, a.dtype)
    return {
        "image_embeds": noise(1, dim, seed=1).to(dtype),
        "negative_image_embeds": noise(1, dim, seed=2).to(dtype),
        "latents": noise(1, 4, a.side // 8, a.side // 8, seed=3).to(dtype),
        "guidance_scale": 4.0,
    }


def steps(a: argparse.Namespace, pipe: Any, at_each: Callable[[Any], None]) -> None:
    """Run the decoder, and call `at_each` after each step with the U-Net's output for both rows in the first step."""
    outputs: list[Any] = []
    hook = pipe.unet.register_forward_hook(lambda _m, _a, out: outputs.append(out if hasattr(out, "shape") else out[0]))

    def at_end(*_: Any) -> dict[str, Any]:
        hook.remove()
        at_each(outputs[0])
        return {}

    size = {"height": a.side, "width": a.side, "num_inference_steps": STEPS}
    pipe(**embeds(a), **size, output_type="latent", callback_on_step_end=at_end)


def unet(a: argparse.Namespace, turns: Turns) -> None:
    """Guidance steps of the decoder: two rows through the U-Net, and the sampler. One step of the same run per turn;
    the first turn is two steps, because in the second this package stores the filters that later steps use."""
    pipe = read(a, pipeline(a, "decoder"))
    steps_done = count(1)

    def at_each(output: Any) -> None:
        if next(steps_done) == 1:
            return
        turns.stop()
        turns.report(output=output)
        turns.wait()
        turns.start()

    turns.wait()
    turns.start()
    steps(a, pipe, at_each)


def first(a: argparse.Namespace, turns: Turns) -> None:
    """From the files to the first step of the decoder, in a process that ends with it."""

    def at_each(output: Any) -> None:
        turns.report(output=output)
        raise Enough

    with suppress(Enough):
        steps(a, pipeline(a, "decoder"), at_each)


def movq(a: argparse.Namespace, turns: Turns) -> None:
    """Decode random latents."""
    import torch

    folder, dtype = a.model / "decoder/movq", getattr(torch, a.dtype)
    draw = lambda: noise(1, 4, a.side // 8, a.side // 8, seed=3).to(dtype)  # noqa: E731
    if a.program == "diffusers":
        from diffusers import VQModel

        theirs, z = VQModel.from_pretrained(folder, dtype=dtype), draw()
        decode = lambda: theirs.decode(z, force_not_quantize=True).sample  # noqa: E731
    else:
        from kandinsky22.checkpoints.network import Stored
        from kandinsky22.engine.placement import Networks
        from kandinsky22.models.movq import MoVQ, MoVQConfig

        networks, ours, z = Networks(torch.device("cpu"), dtype), Stored(folder, MoVQ, MoVQConfig), draw()
        networks.get(ours)

        def decode() -> torch.Tensor:
            pixels = networks.get(ours).decode(z.to(networks.dtype))  # as a decoder stage does
            networks.release(ours)  # its memory is returned, as after a picture
            return pixels

    while True:
        turns.wait()
        with torch.no_grad(), turns.timed():
            pixels = decode()
        turns.report(pixels=pixels)


def prior(a: argparse.Namespace, turns: Turns) -> None:
    """The text encoder and all guided steps of the prior. Without what diffusers does afterwards if there is no
    negative prompt: embedding an empty picture."""
    import torch

    pipe = read(a, pipeline(a, "prior", image_encoder=None))
    result: dict[str, Any] = {}

    def at_end(_pipe: Any, i: int, _t: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
        if i + 1 == a.prior_steps:
            result["embedding"] = tensors["latents"]
            raise Enough
        return {}

    while True:
        turns.wait()
        generator = torch.Generator().manual_seed(0)
        with turns.timed(), suppress(Enough):
            pipe(PROMPT, num_inference_steps=a.prior_steps, generator=generator, callback_on_step_end=at_end)
        turns.report(**result)


def paint(a: argparse.Namespace, timed: Callable[[], Any], sizes: Mapping[str, Any]) -> Any:
    """The picture of the prompt, as in diffusers' documentation; the prior's pipeline is freed before the decoder's is
    loaded, since in float32 both together take 20 GB."""
    import torch

    generator = torch.Generator().manual_seed(0)
    pipe = read(a, pipeline(a, "prior"))
    guidance = {} if a.prior_guidance is None else {"guidance_scale": a.prior_guidance}
    with timed():
        embeds = pipe(PROMPT, num_inference_steps=a.prior_steps, generator=generator, **guidance)
    del pipe
    free_unused()
    pipe = read(a, pipeline(a, "decoder"))
    guidance = {} if a.guidance is None else {"guidance_scale": a.guidance}
    with timed():
        return pipe(**embeds, num_inference_steps=a.steps, generator=generator, **guidance, **sizes).images[0]


def whole(a: argparse.Namespace, turns: Turns) -> None:
    """A prompt to a picture in memory; loading is not counted."""
    import numpy as np

    while True:
        turns.wait()
        image = paint(a, turns.timed, {"height": a.side, "width": a.side})
        free_unused()
        turns.report(levels=np.asarray(image).copy())


def picture(a: argparse.Namespace, turns: Turns) -> None:
    """A prompt to a picture in a file, in a script that does nothing else."""
    import numpy as np
    import torch

    generator = torch.Generator().manual_seed(0)
    prior, decoder = pipeline(a, "prior"), pipeline(a, "decoder")
    embeds = prior(PROMPT, num_inference_steps=a.prior_steps, guidance_scale=a.prior_guidance, generator=generator)
    sizes = {"height": a.side, "width": a.side, "num_inference_steps": a.steps, "guidance_scale": a.guidance}
    image = decoder(**embeds, **sizes, generator=generator).images[0]
    image.save(a.png)
    turns.report(levels=np.asarray(image).copy())


def fast(a: argparse.Namespace, turns: Turns) -> None:
    """A prompt to a picture in memory by this package's `--speed fast`, with the preset's steps, or the given ones if
    it sets none. No result: the picture differs, and what that costs is measured elsewhere."""
    from kandinsky22 import Kandinsky, text2img
    from kandinsky22.request.presets import SPEEDS

    kandinsky = Kandinsky.load(a.model, device="cpu", dtype=a.dtype, placement="keep")
    decoder = kandinsky.decoder("decoder")
    for network in (kandinsky.prior.text_encoder, kandinsky.prior.network, decoder.unet, decoder.movq):
        for weight in network.parameters():
            weight.sum()
    chosen = SPEEDS["fast"]
    steps = {"num_inference_steps": a.steps} if chosen.decoder.steps_fraction is None else {}
    if chosen.prior.steps_fraction is None:
        steps["prior_num_inference_steps"] = a.prior_steps
    request = text2img(PROMPT, speed="fast", seed=0, height=a.side, width=a.side, **steps)
    while True:
        turns.wait()
        with turns.timed():
            for _ in kandinsky.stream_many({0: request}, together=True):  # with nothing from a cache
                pass
        turns.report()


WORKS = {work.__name__: work for work in (unet, first, movq, prior, whole, picture, fast)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=["kandinsky22", "diffusers"])
    parser.add_argument("work", choices=list(WORKS))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--side", type=int, required=True, help="of the picture, in pixels")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--prior-steps", type=int, required=True)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--prior-guidance", type=float)
    parser.add_argument("--keep-freed", action="store_true", help="with the allocator setting")
    parser.add_argument("--result", type=Path, help="the file for the first turn's result")
    parser.add_argument("--png", type=Path, help="the file for the picture")
    a = parser.parse_args()
    if a.keep_freed:
        keep_freed_memory()
    import torch

    torch.set_num_threads(a.threads)
    torch.set_grad_enabled(False)
    WORKS[a.work](a, Turns(a.result))


if __name__ == "__main__":
    main()
