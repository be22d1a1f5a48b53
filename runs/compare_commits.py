"""Run two commits side by side on this machine, and see whether they compute the same, bit for bit.

    python runs/compare_commits.py OLD [NEW]

OLD and NEW are commits; without NEW it is the working tree as it stands. Each commit is checked out into a temporary
worktree, and each side runs in processes of its own with one thread. Only the command line, public names and files that
are written are used, so that modules may move and private names may change between the two. It proves that these are
equal:

- the pixels of all pictures of twelve requests to the model in the box, and the recipes that their files carry; not
  the contact sheet that OLD may add;
- what every pipeline class returns, with a tiny model of random weights that diffusers and transformers write;
- all that each network's training measures in ten steps, and the resulting weights;
- a training that OLD was killed in, once NEW has gone on with it, and one that OLD was left alone with;
- the prompt, seed, sampling and weights that `show` tells of the pictures that OLD saved, and what `replay` paints;
- what `Kandinsky` paints in Python, and scenes of the picture world.

Public names of packages in OLD must be there in NEW, which may have more.

Prints a line for each, and exits with 1 if anything differs or fails. Hashes are of this processor and this torch: they
are compared here, and not stored. Where something differs the temporary folder stays, with the compared values in
`old.json` and `new.json`. Needs the extra `test`, and four to six minutes.
"""

import argparse
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

REPOSITORY = Path(__file__).resolve().parents[1]
Values = dict[str, str]
"""What was found, by what it is of: a text, or a hash of what is large."""

SIDE = 128  # pixels: the size that the model in the box paints
CHUNK = "kandinsky22"  # the text chunk of a PNG that holds the recipe
SHORT = ("--steps", "8", "--prior-num-inference-steps", "6", "--seed", "7")
PROMPT = "three red circles over a blue triangle"
REQUESTS: dict[str, tuple[str, ...]] = {
    "text2img": ("text2img", PROMPT, *SHORT),
    "another sampler": ("text2img", PROMPT, *SHORT, "--sampler", "dpmpp_2m", "--prior-sampler", "ddim"),
    "batch of 3": ("text2img", PROMPT, *SHORT, "--num-images", "3"),
    "speed fast": ("text2img", PROMPT, "--seed", "7", "--speed", "fast"),
    "negative prompt": (
        *("text2img", PROMPT, *SHORT, "--negative-prompt", "a green ring"),
        *("--guidance-scale", "4", "--prior-guidance-scale", "3"),
    ),
    "guided 1 to 2": ("text2img", PROMPT, *SHORT, "--height", "64", "--width", "128", "--guidance-scale", "5"),
    "img2img": ("img2img", PROMPT, *SHORT, "--image", "photo.png", "--strength", "0.5"),
    "interpolate": ("interpolate", PROMPT, "photo.png", *SHORT, "--weights", "0.4,0.6"),
    "variations": ("variations", "--image", "photo.png", *SHORT),
    "inpaint": ("inpaint", PROMPT, *SHORT, "--image", "photo.png", "--mask-image", "mask.png"),
    "outpaint": ("outpaint", PROMPT, *SHORT, "--image", "photo.png", "--right", "64"),
    "controlnet": ("controlnet", PROMPT, *SHORT, "--image", "photo.png", "--hint", "hint.png"),
}
"""The arguments of the twelve requests to the model in the box."""
SHOWN = ("prompt", "of", "without", "seed", "prior", "decoder", "model", "weights", "dtype", "batch")
REPLAYED = ("text2img", "batch of 3", "inpaint")

NETWORKS = ("movq", "movq-decoder", "clip", "prior", "linear-prior", "decoder", "inpaint", "controlnet")
RESUMED = ("decoder",)
EVERY = 5  # steps between checkpoints
TIMES = ("seconds", "rows_per_second", "mfu", "memory_gib")  # of a line of metrics: not what was learnt
CAPTIONS = (PROMPT, "a green ring", "two purple stars on a yellow ground")
PICTURES = 24

DIM = 32  # of the tiny model's embeddings
TEXT_LENGTH = 24
NAMED = ("kandinsky22", "kandinsky22.pipelines", "kandinsky22.compositions")
IMPORTED = (*NAMED, "kandinsky22.training", "kandinsky22.evaluation")


def main() -> int:
    """Compare, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", metavar="OLD", help="a commit")
    parser.add_argument("new", metavar="NEW", nargs="?", help="another (default: the working tree as it stands)")
    parser.add_argument("--within", type=Path, help=argparse.SUPPRESS)  # this program, started by itself for one side
    options = parser.parse_args()
    if options.within is not None:
        print(json.dumps(found_within(Path(options.old), options.within)))
        return 0
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # removing the worktrees first
    folder = Path(tempfile.mkdtemp(prefix="compare-commits-"))
    with ExitStack() as stack:
        old, new = (
            Side(name, stack.enter_context(checked_out(commit, folder / f"tree-{name}")), folder)
            for name, commit in (("old", options.old), ("new", options.new))
        )
        make_material(folder)
        for side in (old, new):
            side.begin()
        values = {side.name: found_by(side) for side in (old, new)}
        add_what_old_left(old, new, values)
    same = print_comparison(values["old"], values["new"])
    if same:
        shutil.rmtree(folder)
        return 0
    for name, found in values.items():
        (folder / f"{name}.json").write_text(json.dumps(found, indent=2, ensure_ascii=False), encoding="utf-8")
    print(f"what was compared is in {folder}: diff old.json new.json")
    return 1


# The two sides.


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: the source tree that it runs, and the folder that both write into."""

    name: str
    tree: Path
    shared: Path

    @property
    def folder(self) -> Path:
        """Where it runs and writes."""
        return self.shared / self.name

    @property
    def environment(self) -> dict[str, str]:
        """One thread, no network, a cache of its own, and its tree before any installed package."""
        return {
            **os.environ,
            "PYTHONPATH": str(self.tree / "src"),
            "PYTHONSAFEPATH": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "KANDINSKY22_CACHE": str(self.folder / "cache"),
        }

    def begin(self) -> None:
        """Make its folder, and check that the code of its own tree runs."""
        self.folder.mkdir()
        where = self.python("-c", "import kandinsky22; print(kandinsky22.__file__)").stdout.strip()
        if not Path(where).is_relative_to(self.tree):
            raise SystemExit(f"the {self.name} side would run {where}, which is not in {self.tree}")
        print(f"{self.name}: {where}", flush=True)

    def python(self, *arguments: str, cwd: Path | None = None, allowed: Sequence[int] = (0,)) -> Any:
        """Run Python to its end. Raises `CalledProcessError` for an exit status that is not allowed."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd or self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in allowed:
            raise subprocess.CalledProcessError(done.returncode, arguments, done.stdout, done.stderr)
        return done

    def command(self, *arguments: str, cwd: Path | None = None, allowed: Sequence[int] = (0,)) -> Any:
        """Run its command line."""
        return self.python("-m", "kandinsky22", *arguments, cwd=cwd, allowed=allowed)


@contextmanager
def checked_out(commit: str | None, place: Path) -> Iterator[Path]:
    """The tree of a commit, with its compiled kernels, until the end; None is the working tree, in its place."""
    if commit is None:
        yield REPOSITORY
        return
    git = ["git", "-C", str(REPOSITORY), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(place), commit], check=True)
    try:
        add_kernels(place)
        yield place
    finally:
        subprocess.run([*git, "remove", "--force", str(place)], check=True)


def add_kernels(tree: Path) -> None:
    """Compile the kernels in a fresh tree, or copy those of the working tree that were built of the same source."""
    if importlib.util.find_spec("hatchling") is not None:
        subprocess.run([sys.executable, "hatch_build.py"], cwd=tree, stdout=subprocess.DEVNULL, check=True)
        return
    source = kernel_source(tree)
    built = list((REPOSITORY / "src").rglob("kernels-*.so"))
    fitting = [library for library in built if library.stem.endswith(checksum(source))]
    for library in fitting:
        shutil.copy2(library, source.with_name(library.name))
    if built and not fitting:
        raise SystemExit("the kernels here were built of another kernels.c: pip install hatchling, to compile them")


def kernel_source(tree: Path) -> Path:
    """Where kernels.c is in a tree."""
    return next((tree / "src").rglob("kernels.c"))


def checksum(source: Path) -> str:
    """As it is in the names of the libraries that are built of a source."""
    return f"{zlib.crc32(source.read_bytes()):08x}"


# What one side computes.


def found_by(side: Side) -> Values:
    """Everything that a side finds by itself."""
    values: Values = {"compiled kernels": kernels_of(side)}
    for name, arguments in REQUESTS.items():
        attempt(side, values, f"box, {name}", functools.partial(painted, side, name, arguments))
    attempt(side, values, "pipelines and names", functools.partial(by_itself, side))
    for network in NETWORKS:
        attempt(side, values, f"train {network}", functools.partial(trained, side, network))
    return values


def attempt(side: Side, values: Values, name: str, find: Callable[[], Values]) -> None:
    """Add what is found, saying how long it took; where that fails, that it did."""
    began = time.monotonic()
    try:
        values |= find()
    except (subprocess.CalledProcessError, AssertionError, OSError) as error:
        print(getattr(error, "stderr", error), file=sys.stderr)
        values[name] = f"failed: {error}"
    print(f"{side.name}: {name}, {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)


def kernels_of(side: Side) -> str:
    """For which instructions there are kernels that are built of the source as it is."""
    source = kernel_source(side.tree)
    libraries = source.parent.glob(f"kernels-*-{checksum(source)}.so")
    return ", ".join(sorted(library.stem.split("-")[1] for library in libraries)) or "none"


def painted(side: Side, name: str, arguments: Sequence[str]) -> Values:
    """The pixels of all pictures that a request is answered with, and the recipes in their files."""
    for picture in ("photo.png", "mask.png", "hint.png"):
        shutil.copy2(side.shared / picture, side.folder / picture)
    side.command(*arguments, "--quiet", "--output", name)
    pixels, recipes = {}, {}
    for path in map(side.folder.joinpath, pictures_of(side.folder, name)):
        with Image.open(path) as image:
            pixels[path.name] = pixels_of(image)
            if CHUNK in image.info:
                recipes[path.name] = json.loads(image.info[CHUNK])
    return {f"box, {name}: pixels": json.dumps(pixels), f"box, {name}: recipe": json.dumps(recipes)}


def by_itself(side: Side) -> Values:
    """What `found_within` finds, in a process of the side's."""
    this = str(Path(__file__).resolve())
    done = side.python(this, str(side.tree), "--within", str(side.shared))
    found: Values = json.loads(done.stdout.splitlines()[-1])
    return found


def trained(side: Side, network: str) -> Values:
    """The metrics of ten training steps of each network, and the resulting model."""
    run = side.folder / "runs" / network
    side.command(*training(side, network, run))
    return learnt(f"train {network}", run, network)


def training(side: Side, network: str, run: Path) -> list[str]:
    """The command that trains a network for ten steps, from the model in the box on."""
    command = ["train", network, "--folder", str(run), "--data", str(side.shared / "data"), "--device", "cpu"]
    if network != "linear-prior":  # one pass in closed form
        command += ["--steps", str(2 * EVERY), "--every", str(EVERY), "--batch", "4"]
    if network == "controlnet":
        command += ["--depth-model", str(side.shared / "depth-model")]
    return command


def learnt(name: str, run: Path, network: str) -> Values:
    """The metrics of a run, but for times, and a hash of each network's weights."""
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in metrics(run / network)]
    return {f"{name}: losses": json.dumps(lines), f"{name}: model": json.dumps(weights_of(run / "model"))}


def metrics(folder: Path) -> list[dict[str, float]]:
    """The whole lines of a run's metrics, so far."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


# What NEW makes of what OLD left.


def add_what_old_left(old: Side, new: Side, values: Mapping[str, Values]) -> None:
    """Old pictures, which both sides read, and a training of OLD that was killed, which NEW resumes."""
    for side in (old, new):
        attempt(side, values[side.name], "show", functools.partial(shown, side, old))
        for name in REPLAYED:
            attempt(side, values[side.name], f"replay {name}", functools.partial(replayed, side, old, name))
    for network in RESUMED:
        resumed, alone = functools.partial(gone_on, old, new, network), old.folder / "runs" / network
        attempt(new, values["new"], f"resume {network}", resumed)
        values["old"] |= learnt(f"resume {network}", alone, network)


def saved_by(old: Side, *, into: Path) -> Path:
    """A copy of the pictures that OLD saved and began with, for a side to read."""
    if not into.exists():
        into.mkdir()
        for picture in old.folder.glob("*.png"):
            shutil.copy2(picture, into)
        for name in REQUESTS:
            shutil.copytree(old.folder / name, into / name)
    return into


def pictures_of(folder: Path, name: str) -> list[str]:
    """The pictures of a request, from the folder that they are saved in; not the sheet, which carries no recipe."""
    paths = sorted((folder / name).glob("*.png"))
    return [str(path.relative_to(folder)) for path in paths if not path.stem.endswith("-sheet")]


def shown(side: Side, old: Side) -> Values:
    """What a side shows of the pictures that OLD saved: the lines `SHOWN`."""
    folder, values = saved_by(old, into=side.folder / "saved-by-old"), {}
    for name in REQUESTS:
        texts = [side.command("show", file, cwd=folder).stdout for file in pictures_of(folder, name)]
        lines = [line.partition(":") for text in texts for line in text.splitlines()]
        values[f"show {name}"] = json.dumps([(key, value.strip()) for key, _, value in lines if key in SHOWN])
    return values


def replayed(side: Side, old: Side, name: str) -> Values:
    """What a side says when it paints one of OLD's pictures again, and its exit status, and the pixels."""
    folder = saved_by(old, into=side.folder / "saved-by-old")
    file = pictures_of(folder, name)[-1]
    done = side.command("replay", file, "--quiet", "--output", f"{name} again", cwd=folder, allowed=(0, 1))
    if done.returncode != 0 or not done.stdout.endswith(f"the pixels are those of {file}\n"):
        return {f"replay {name}": f"failed: status {done.returncode}, {done.stdout}"}
    with Image.open(folder / done.stdout.splitlines()[0]) as again:
        return {f"replay {name}": f"{done.stdout}{pixels_of(again)}"}


def gone_on(old: Side, new: Side, network: str) -> Values:
    """The result of a training of OLD that was killed after its first checkpoint and resumed by NEW."""
    killed, moved = old.folder / "killed" / network, new.folder / "killed" / network
    command = [sys.executable, "-m", "kandinsky22", *training(old, network, killed)]
    with subprocess.Popen(
        command, cwd=old.folder, env=old.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and len(metrics(killed / network)) <= EVERY:
            time.sleep(0.01)
        process.kill()
    taken = len(metrics(killed / network))  # a checkpoint is whole before the next step has its line
    assert EVERY < taken < 2 * EVERY, f"the training of {network} was killed after {taken} steps"
    shutil.copytree(killed, moved)
    new.command(*training(new, network, moved))
    return learnt(f"resume {network}", moved, network)


# What is found in a process of one side, through public names.


def found_within(tree: Path, shared: Path) -> Values:
    """Names, scenes of the picture world, what is painted in Python, and what every pipeline class returns."""
    import kandinsky22

    assert Path(kandinsky22.__file__).is_relative_to(tree), kandinsky22.__file__
    torch.set_num_threads(1)
    return public_names() | drawn() | called() | returned(shared)


def public_names() -> Values:
    """The names that packages say are public, each of which is there."""
    packages = {name: importlib.import_module(name) for name in IMPORTED}
    for name in NAMED:
        for public in packages[name].__all__:
            getattr(packages[name], public)
    return {f"names of {name}": ", ".join(sorted(packages[name].__all__)) for name in NAMED} | {
        f"import {name}": "there" for name in IMPORTED if name not in NAMED
    }


def drawn() -> Values:
    """Twenty scenes of the picture world, and their captions."""
    from kandinsky22.compositions import caption, render, sample

    rng, scenes = np.random.default_rng(5), hashlib.sha256()
    for _ in range(20):
        scene = sample(rng)
        scenes.update(render(scene).tobytes() + caption(scene, rng).encode())
    return {"compositions": scenes.hexdigest()}


def called() -> Values:
    """What `Kandinsky` paints of a blend of embeddings, and the request that its picture carries."""
    from kandinsky22 import Kandinsky, interpolate, mix, slerp, text2img

    kandinsky = Kandinsky.load()
    one, other = (kandinsky.embedding(text2img(caption, seed=1)) for caption in CAPTIONS[:2])
    blend = mix([slerp(one, other, 0.3), other], [0.5, 0.5])
    (painting,) = kandinsky(interpolate([blend, CAPTIONS[2]], seed=7, num_inference_steps=4))
    return {"Kandinsky: pixels": pixels_of(painting.image), "Kandinsky: request": painting.request.to_json()}


def returned(shared: Path) -> Values:
    """What every public pipeline class returns, with the tiny model."""
    pipelines: Any = importlib.import_module("kandinsky22.pipelines")
    model, photo = shared / "tiny-model", opened(shared / "photo.png")
    mask = np.asarray(opened(shared / "mask.png").convert("L").resize((64, 64)), dtype=np.float32) / 255
    hint = torch.tensor(np.asarray(opened(shared / "hint.png").resize((64, 64)))).movedim(-1, 0)[None] / 255
    words = {"prompt": PROMPT, "negative_prompt": "a green ring", "num_inference_steps": 4}
    prior = pipelines.KandinskyV22PriorPipeline.from_pretrained(model / "prior")
    size = {"height": 64, "width": 64, "num_inference_steps": 4, "output_type": "np"}
    decoder_options = {**prior(**words, generator=seeded()), **size}
    options = {**words, **size, "prior_num_inference_steps": 3}
    with_start, with_mask = {"image": photo, "strength": 0.5}, {"image": photo, "mask_image": mask}
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        "KandinskyV22PriorPipeline": ("prior", words),
        "KandinskyV22PriorEmb2EmbPipeline": ("prior", words | with_start),
        "KandinskyV22Pipeline": ("decoder", decoder_options),
        "KandinskyV22Img2ImgPipeline": ("decoder", decoder_options | with_start),
        "KandinskyV22InpaintPipeline": ("decoder-inpaint", decoder_options | with_mask),
        "KandinskyV22ControlnetPipeline": ("controlnet-depth", decoder_options | {"hint": hint}),
        "KandinskyV22ControlnetImg2ImgPipeline": ("controlnet-depth", decoder_options | with_start | {"hint": hint}),
        "KandinskyV22CombinedPipeline": ("decoder", options),
        "KandinskyV22Img2ImgCombinedPipeline": ("decoder", options | with_start),
        "KandinskyV22InpaintCombinedPipeline": ("decoder-inpaint", options | with_mask),
        "AutoPipelineForText2Image": ("decoder", options),
        "AutoPipelineForImage2Image": ("decoder", options | with_start),
        "AutoPipelineForInpainting": ("decoder-inpaint", options | with_mask),
    }
    public = {name for name in pipelines.__all__ if name.startswith("AutoPipeline") or name.endswith("Pipeline")}
    assert public >= set(calls), set(calls) - public
    values = {}
    for name, (folder, arguments) in calls.items():
        pipe = getattr(pipelines, name).from_pretrained(model / folder)
        values[name] = numbers_of(pipe(**arguments, generator=seeded()))
    mixed = prior.interpolate([PROMPT, photo], [0.4, 0.6], num_inference_steps=4, generator=seeded())
    values["KandinskyV22PriorPipeline.interpolate"] = numbers_of(mixed)
    decoder = pipelines.KandinskyV22Pipeline.from_pretrained(model / "decoder")
    decoder.scheduler = pipelines.DDIMScheduler.from_config(decoder.scheduler.config)
    values["KandinskyV22Pipeline with DDIMScheduler"] = numbers_of(decoder(**decoder_options, generator=seeded()))
    return values


def numbers_of(output: Any) -> str:
    """A hash of all arrays and tensors in what a pipeline returns."""
    digest = hashlib.sha256()
    for part in output.to_tuple():
        array = np.ascontiguousarray(part)
        assert np.isfinite(array).all() and array.std() > 0, "what says nothing cannot differ"
        digest.update(f"{array.shape} {array.dtype}".encode() + array.tobytes())
    return digest.hexdigest()


def seeded() -> torch.Generator:
    """A generator with a fixed seed."""
    return torch.Generator().manual_seed(3)


# What both sides begin with.


def make_material(folder: Path) -> None:
    """Pictures, captions, and models of random weights, the same for both sides."""
    from transformers.utils import logging

    began = time.monotonic()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    drawing(0).save(folder / "photo.png")
    y, x = np.mgrid[:SIDE, :SIDE]
    hole = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(hole).ellipse((24, 40, 88, 104), fill=255)
    hole.save(folder / "mask.png")
    near = np.clip(255 - 2 * np.hypot(y - 70, x - 60), 0, 255).astype(np.uint8)
    Image.fromarray(near).convert("RGB").save(folder / "hint.png")
    data = folder / "data"
    data.mkdir()
    for number in range(PICTURES):
        drawing(number).save(data / f"{number:02}.png")
        (data / f"{number:02}.txt").write_text(f"{CAPTIONS[number % len(CAPTIONS)]}\n", encoding="utf-8")
    make_depth_model(folder / "depth-model")
    make_tiny_model(folder / "tiny-model")
    print(f"material, {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)


def drawing(seed: int) -> Image.Image:
    """Four discs on a ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    pixels = np.full((SIDE, SIDE, 3), rng.integers(180, 256, 3), dtype=np.uint8)
    for _ in range(4):
        top, left, radius = rng.integers(10, SIDE - 10), rng.integers(10, SIDE - 10), rng.integers(8, 40)
        pixels[(y - top) ** 2 + (x - left) ** 2 < radius**2] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def make_depth_model(folder: Path) -> None:
    """A network of random weights that estimates depth."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessorPil

    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        is_hybrid=False,
        use_auxiliary_head=False,
    )
    randomised(DPTForDepthEstimation(config)).save_pretrained(folder)
    processor = DPTImageProcessorPil(size={"height": 32, "width": 32}, keep_aspect_ratio=False, ensure_multiple_of=8)
    processor.save_pretrained(folder)


def make_tiny_model(folder: Path) -> None:
    """A whole model of random weights in the published layout, written by diffusers and transformers."""
    import diffusers

    prior = tiny_prior(folder / "tokenizer")
    prior.save_pretrained(folder / "prior")
    shutil.copytree(folder / "tokenizer", folder / "prior" / "tokenizer", dirs_exist_ok=True)  # in the published files
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=True, prediction_type="epsilon"
    )
    movq = randomised(
        diffusers.VQModel(
            block_out_channels=(32, 32, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            latent_channels=4,
            num_vq_embeddings=32,
            vq_embed_dim=4,
            norm_type="spatial",
        )
    )
    decoders: dict[str, tuple[Any, dict[str, Any]]] = {
        "decoder": (diffusers.KandinskyV22Pipeline, {}),
        "decoder-inpaint": (diffusers.KandinskyV22InpaintPipeline, {"in_channels": 9}),
        "controlnet-depth": (
            diffusers.KandinskyV22ControlnetPipeline,
            {"in_channels": 8, "addition_embed_type": "image_hint"},
        ),
    }
    for name, (kind, changes) in decoders.items():
        kind(unet=tiny_unet(**changes), scheduler=scheduler, movq=movq).save_pretrained(folder / name)
        card = f"---\nprior:\n  - {folder / 'prior'}\n---\n"
        (folder / name / "README.md").write_text(card, encoding="utf-8")


def tiny_prior(tokenizer: Path) -> Any:
    """The pipeline of a prior, both of CLIP's towers, and a tokenizer that spells every word."""
    import diffusers
    import transformers

    write_tokenizer(tokenizer)
    tower: dict[str, Any] = {
        "hidden_size": DIM,
        "projection_dim": DIM,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_act": "gelu",
    }
    read = transformers.CLIPTokenizer.from_pretrained(tokenizer)
    text = transformers.CLIPTextConfig(
        vocab_size=len(read),
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=read.bos_token_id,
        eos_token_id=read.eos_token_id,
        pad_token_id=read.pad_token_id,
        **tower,
    )
    vision = transformers.CLIPVisionConfig(image_size=32, patch_size=16, **tower)
    prior = diffusers.PriorTransformer(
        num_layers=1, num_attention_heads=2, attention_head_dim=16, embedding_dim=DIM, num_embeddings=TEXT_LENGTH
    )
    grey = (0.5, 0.5, 0.5)
    return diffusers.KandinskyV22PriorPipeline(
        prior=randomised(prior),
        image_encoder=randomised(transformers.CLIPVisionModelWithProjection(vision)),
        text_encoder=randomised(transformers.CLIPTextModelWithProjection(text)),
        tokenizer=read,
        scheduler=diffusers.UnCLIPScheduler(
            clip_sample_range=10.0, prediction_type="sample", variance_type="fixed_small_log"
        ),
        image_processor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=grey, image_std=grey
        ),
    )


def write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer without merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    start, end = "<|startoftext|>", "<|endoftext|>"
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), start, end]
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TEXT_LENGTH,
        "bos_token": start,
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,
    }
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def tiny_unet(**changes: Any) -> Any:
    """A decoder's U-Net."""
    import diffusers

    return randomised(
        diffusers.UNet2DConditionModel(
            **{
                "in_channels": 4,
                "out_channels": 8,
                "block_out_channels": (32, 64),
                "layers_per_block": 1,
                "sample_size": 8,
                "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
                "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
                "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
                "attention_head_dim": 16,
                "cross_attention_dim": 16,
                "encoder_hid_dim": DIM,
                "encoder_hid_dim_type": "image_proj",
                "addition_embed_type": "image",
                "resnet_time_scale_shift": "scale_shift",
                **changes,
            }
        )
    )


def randomised(network: Any) -> Any:
    """The network, with every parameter random: several start at zero, which would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            is_scale = (parameter.ndim == 1 and name.endswith("weight")) or name == "clip_std"
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            drawn *= fan_in**-0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(drawn.abs() + 0.5 if is_scale else drawn)
    return network.eval()


# Hashes, and the table.


def opened(path: Path) -> Image.Image:
    """A picture in RGB."""
    with Image.open(path) as image:
        return image.convert("RGB")


def pixels_of(image: Image.Image) -> str:
    """A hash of a picture's size and pixels."""
    return hashlib.sha256(f"{image.size}".encode() + image.convert("RGB").tobytes()).hexdigest()


def weights_of(folder: Path) -> Values:
    """A hash of the weights of each network of a model."""
    paths = [*folder.rglob("model.safetensors"), *folder.rglob("diffusion_pytorch_model.safetensors")]
    return {str(path.relative_to(folder)): hashlib.sha256(content_of(path)).hexdigest() for path in sorted(paths)}


def content_of(path: Path) -> bytes:
    """What is in a file of tensors, with a sorted header: safetensors writes metadata in no fixed order."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.dumps(json.loads(content[8:end]), sort_keys=True).encode() + content[end:]


def print_comparison(old: Values, new: Values) -> bool:
    """Print the values of both commits; return whether all are equal."""
    names = list(dict.fromkeys([*old, *new]))
    width, same = max(map(len, names)), 0
    print(f"\n{'check':{width}}  {'old':12}  {'new':12}")
    for name in names:
        is_whole = all(name in values and not values[name].startswith("failed") for values in (old, new))
        more = name.startswith("names of") and is_whole and set(old[name].split(", ")) <= set(new[name].split(", "))
        equal = is_whole and (more or old[name] == new[name])
        same += equal
        hashes = (prefix(values.get(name)) for values in (old, new))
        print(f"{name:{width}}  {'  '.join(hashes)}  {'equal' if equal else 'DIFFERS'}")
    print(f"\n{same} of {len(names)} are equal")
    return same == len(names)


def prefix(value: str | None) -> str:
    """The beginning of a value's hash, twelve letters."""
    if value is None:
        return f"{'missing':12}"
    return f"{'failed':12}" if value.startswith("failed") else hashlib.sha256(value.encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
