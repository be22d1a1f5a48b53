"""Text to image on a GPU compared with diffusers: each program in its own process, with the same weights and noise.

    python benchmarks/gpu.py --model FOLDER [--sides 512,768,1024] [--batches 1,4,16] [--dtypes float16,bfloat16]
                             [--steps 50] [--repeat 5] [--programs ...] [--json out/gpu.json] [--markdown out/gpu.md]
    python benchmarks/gpu.py --model box --device cpu --dtypes float32 --sides 128 --batches 1 --steps 4   a trial of
    the script

FOLDER has the published layout, prior/ and decoder/. The seconds are those of a complete call of both pipelines,
synchronised with the GPU before and after; the first call, which compiles or records, is reported separately. Every row
is a new process. Next to each ratio is the error: the relative rms difference of the decoder's latents from diffusers'
in float32, for the same embeddings and noise.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from tables import OURS, THEIRS, relative_rms
from works import PROMPT

PROGRAMS = {
    THEIRS: "diffusers as installed",
    "diffusers-compiled": "diffusers, channels last, its U-Net by torch.compile(mode='max-autotune')",
    OURS: "this package as installed",
    "kandinsky22-plain": "this package with KANDINSKY22_ACCELERATION=off",
    "kandinsky22-compiled": "this package with compiled=True",
}
MUST = {512: 3.0, 768: 2.0, 1024: 1.5}  # times as fast as diffusers, 50 steps
Record = dict[str, Any]


def pipelines(a: argparse.Namespace) -> tuple[Any, Any]:
    """The prior and the decoder of a program, on the device."""
    import torch

    dtype, compiled = getattr(torch, a.dtype), a.program.endswith("compiled") and a.device == "cuda"
    if a.program.startswith(THEIRS):
        from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline
    else:
        from kandinsky22.pipelines import KandinskyV22Pipeline, KandinskyV22PriorPipeline
    prior = KandinskyV22PriorPipeline.from_pretrained(Path(a.model) / "prior", torch_dtype=dtype).to(a.device)
    decoder = KandinskyV22Pipeline.from_pretrained(Path(a.model) / "decoder", torch_dtype=dtype).to(a.device)
    for pipe in (prior, decoder):
        pipe.set_progress_bar_config(disable=True)
    if compiled and a.program.startswith(THEIRS):
        decoder.unet.to(memory_format=torch.channels_last)
        decoder.unet = torch.compile(decoder.unet, mode="max-autotune")
    elif compiled:
        from kandinsky22.engine.placement import Networks

        for pipe in (prior, decoder):
            pipe.networks = Networks(pipe.device, dtype, compiled=True)
    return prior, decoder


def work(a: argparse.Namespace) -> Record:
    """The measurements of one program, in its own process: a first call, then `repeat` calls."""
    import torch

    gpu = a.device == "cuda"
    torch.set_grad_enabled(False)
    prior, decoder = pipelines(a)
    generator = torch.Generator().manual_seed(0)
    dim = decoder.unet.config.encoder_hid_dim
    drawn = torch.randn(2, dim, generator=generator), torch.randn(1, 4, a.side // 8, a.side // 8, generator=generator)
    embeds, latents = (value.to(a.device, getattr(torch, a.dtype)) for value in drawn)

    def call(output_type: str = "pt", **inputs: Any) -> Any:
        draw = torch.Generator().manual_seed(1)
        if not inputs:
            sampled = prior(PROMPT, num_images_per_prompt=a.batch, num_inference_steps=a.prior_steps, generator=draw)
            inputs = {"image_embeds": sampled.image_embeds, "negative_image_embeds": sampled.negative_image_embeds}
        return decoder(
            **inputs,
            height=a.side,
            width=a.side,
            num_inference_steps=a.steps,
            guidance_scale=4.0,
            generator=draw,
            output_type=output_type,
        )[0]

    def timed() -> float:
        if gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    record: Record = {"turns": []}
    if a.repeat:
        record["first"] = timed()  # compiles, records, reads the weights
        record["turns"] = [timed() for _ in range(a.repeat)]
        record["peak"] = torch.cuda.max_memory_allocated() if gpu else 0
    shared = {"image_embeds": embeds[:1], "negative_image_embeds": embeds[1:], "latents": latents}
    given = {name: value.expand(a.batch, *value.shape[1:]).contiguous() for name, value in shared.items()}
    torch.save(call("latent", **given)[:1].float().cpu(), a.result)
    return record


def measured(a: argparse.Namespace, folder: Path) -> Iterator[Record]:
    """A record for each size, batch, dtype and program; a failed one has the error instead."""
    for dtype, side, batch, program in product(a.dtypes, a.sides, a.batches, a.programs):
        options = {"program": program, "side": side, "batch": batch, "dtype": dtype}
        result, exact = folder / f"{program}-{dtype}-{side}-{batch}.pt", folder / f"exact-{side}-{batch}.pt"
        if not exact.is_file() and not a.no_reference:
            run(a, {**options, "program": THEIRS, "dtype": "float32", "repeat": 0}, exact)
        yield {**options, **run(a, options, result), "rms": difference(result, exact)}


def run(a: argparse.Namespace, options: dict[str, Any], result: Path) -> Record:
    """The record of one program, run in its own process."""
    shared = {"model": a.model, "device": a.device, "steps": a.steps, "prior-steps": a.prior_steps, "repeat": a.repeat}
    command = [sys.executable, __file__, "--result", str(result)]
    command += [str(word) for name, value in {**shared, **options}.items() for word in (f"--{name}", value)]
    off = {"KANDINSKY22_ACCELERATION": "off"} if options["program"].endswith("plain") else {}
    done = subprocess.run(command, env={**os.environ, **off}, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no error message"])[-1]}
    answer: Record = json.loads(done.stdout.splitlines()[-1])
    return answer


def difference(result: Path, exact: Path) -> float | None:
    """The relative rms difference of a result from the exact one; None if one is missing."""
    import torch

    if not (result.is_file() and exact.is_file()):
        return None
    return relative_rms(*(torch.load(path, weights_only=True).double().numpy() for path in (result, exact)))


def about(a: argparse.Namespace) -> Record:
    """The device and the software."""
    import torch

    name = torch.cuda.get_device_name() if a.device == "cuda" else platform.machine()
    software = {package: version(package) for package in ("torch", "diffusers", "transformers")}
    return {"device": name, "cuda": torch.version.cuda, **software, "steps": a.steps, "prior_steps": a.prior_steps}


def markdown(about: Record, records: list[Record]) -> str:
    """The table, with the device and the software."""
    lines = [
        f"{about['prior_steps']} + {about['steps']} steps, guided, on {about['device']}, torch {about['torch']}, "
        f"diffusers {about['diffusers']}. Seconds of a call of both pipelines: the median (minimum - maximum).",
        "",
        "| size | batch | dtype | program | seconds | pictures/s | ratio | must | first call, s | peak, GB | rms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    base: dict[tuple[Any, ...], float] = {}
    for record in records:
        place = record["side"], record["batch"], record["dtype"]
        head = f"| {place[0]} | {place[1]} | {place[2]} | {record['program']} |"
        if "failed" in record:
            lines.append(f"{head} {record['failed']} | | | | | | |")
            continue
        seconds, turns = median(record["turns"]), record["turns"]
        base.setdefault(place, seconds) if record["program"] == THEIRS else None
        ratio = f"{base[place] / seconds:.2f}" if place in base else ""
        must = f"{MUST[place[0]]:g}" if record["program"] == OURS and place[0] in MUST else ""
        rms = "" if record["rms"] is None else f"{record['rms']:.1e}"
        lines.append(
            f"{head} {seconds:.3f} ({min(turns):.3f} - {max(turns):.3f}) | {place[1] / seconds:.2f} | {ratio} |"
            f" {must} | {record['first']:.1f} | {record['peak'] / 1e9:.1f} | {rms} |"
        )
    return "\n".join([*lines, "", *(f"- {name}: {meaning}" for name, meaning in PROGRAMS.items()), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description="Time text to image on a GPU against diffusers.")
    several: Callable[[str], list[str]] = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sides", type=lambda text: [int(side) for side in text.split(",")], default=[512, 768, 1024])
    parser.add_argument("--batches", type=lambda text: [int(rows) for rows in text.split(",")], default=[1, 4, 16])
    parser.add_argument("--dtypes", type=several, default=["float16", "bfloat16"])
    parser.add_argument("--programs", type=several, default=list(PROGRAMS))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--prior-steps", type=int, default=25)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--no-reference", action="store_true", help="leave out the run in float32")
    parser.add_argument("--json", type=Path, default=Path("out/gpu.json"))
    parser.add_argument("--markdown", type=Path)
    for name, kind in {"program": str, "dtype": str, "side": int, "batch": int, "result": Path}.items():
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)  # of one program, in its process
    a = parser.parse_args()
    if a.model == "box":
        from kandinsky22.checkpoints import locate

        a.model = locate.model_folder("box")
    if a.device != "cuda":
        a.programs = [program for program in a.programs if not program.endswith("compiled")]
    if a.result is not None:
        print(json.dumps(work(a)))
        return
    for path in (a.json, a.markdown or a.json):
        path.parent.mkdir(parents=True, exist_ok=True)
    setup, records = about(a), []
    with tempfile.TemporaryDirectory() as folder:
        for record in measured(a, Path(folder)):
            records.append(record)
            a.json.write_text(json.dumps({"about": setup, "records": records}, indent=1), encoding="utf-8")
            print(record, file=sys.stderr, flush=True)
    text = markdown(setup, records)
    print(text)
    if a.markdown is not None:
        a.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
