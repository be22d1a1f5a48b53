"""Everything that reads a file from outside, as a function of the file's bytes, with valid ones to start from.

`test_properties.py` and `runs/fuzz.py` give these functions other bytes. What they may raise is `REFUSALS`.
"""

import io
import json
import struct
import tarfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from kandinsky22 import Embedding, text2img
from kandinsky22.arrays import map_rows
from kandinsky22.backends import event_json, run_state
from kandinsky22.backends.fake import DEFAULTS
from kandinsky22.backends.run_folder import Shard
from kandinsky22.checkpoints import network, single_file
from kandinsky22.checkpoints.metadata import read_metadata
from kandinsky22.checkpoints.schedulers import read_scheduler
from kandinsky22.checkpoints.tokenizer import load_tokenizer, save_tokenizer
from kandinsky22.checkpoints.weight_files import iter_tensors, tensor_shapes
from kandinsky22.cli.show import summary
from kandinsky22.compositions.things import Things
from kandinsky22.diffusion import NoiseSchedule
from kandinsky22.evaluation import captions, reference
from kandinsky22.evaluation.captions import Captioned, Captions
from kandinsky22.evaluation.manifest import Run
from kandinsky22.files import parse_json
from kandinsky22.imaging import infotext
from kandinsky22.imaging.images import RECIPE, encode, read_recipe
from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.tokenizer import learn
from kandinsky22.models.unet import UNet, UNetConfig
from kandinsky22.request.picture import Picture
from kandinsky22.request.picture_file import FORMATS
from kandinsky22.request.request import Request
from kandinsky22.training import checkpoints, run, shards
from kandinsky22.training.checkpoint_reader import CheckpointReader
from kandinsky22.training.image_index import ImageIndex
from kandinsky22.training.loop import Training
from kandinsky22.training.sources import find_pictures
from tests.backends.fakes import MADE_BY
from tests.hostile.pictures import png_of_size
from tests.training.known import RECIPE as TRAINING_RECIPE
from tests.training.known import line_fit

REFUSALS = (ValueError, OSError)
NETWORKS = {"unet": (UNet, UNetConfig), "movq": (MoVQ, MoVQConfig), "prior": (PriorTransformer, PriorConfig)}
TOWERS = {"text_encoder": (CLIPText, CLIPTextConfig), "image_encoder": (CLIPVision, CLIPVisionConfig)}
THING = {
    "hexcode": "1F431",
    "group": "animals",
    "subgroup": "cat",
    "en": [{"name": "cat", "plural": "cats", "article": True}],
    "ru": [{"name": "кошка", "forms": None}],
    "rows": {"flat": 0},
    "counted": True,
    "held_out": False,
    "weight": 0.5,
}


class Parser(NamedTuple):
    """A reader of one kind of file, and contents that it accepts.

    Contents are bytes of a file, or of that part of it which is worth changing: a header, a text in a picture.
    """

    seeds: Sequence[bytes]
    read: Callable[[bytes], object]


def file_parser(path: Path, read: Callable[[], object]) -> Parser:
    """The parser of a valid file on disk, given what reads it."""

    return _parser(path, path.read_bytes(), read, lambda content: content)


def safetensors_parser(path: Path, read: Callable[[], object]) -> Parser:
    """The parser of a safetensors file on disk whose header is replaced: a length before it always fits."""
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return _parser(path, content[8:end], read, lambda header: struct.pack("<Q", len(header)) + header + content[end:])


def _parser(path: Path, seed: bytes, read: Callable[[], object], file_of: Callable[[bytes], bytes]) -> Parser:
    """The parser of a file on disk, given the content of the file for what is changed of it.

    The valid file is left in place, since other parsers of the folder may need it.
    """
    original = path.read_bytes()

    def use(content: bytes) -> object:
        path.write_bytes(file_of(content))
        try:
            return read()
        finally:
            path.write_bytes(original)

    return Parser((seed,), use)


def parsers(folder: Path, name: str | None = None) -> dict[str, Parser]:
    """All parsers by name, working in an empty folder; or some, of which one has this name."""
    made: dict[str, Parser] = {}
    for add in (_weights, _model, _tokenizer, _requests, _training_data, _runs, _evaluations):
        place = folder / add.__name__.removeprefix("_")
        place.mkdir()
        made |= add(place)
        if name in made:
            break
    return made


def _weights(folder: Path) -> dict[str, Parser]:
    tensors = {"a.weight": torch.ones(2, 3), "b.bias": torch.zeros(4)}
    weights, pickled, index = (
        folder / f"model{suffix}" for suffix in (".safetensors", ".bin", ".safetensors.index.json")
    )
    save_file(tensors, weights, metadata={"format": "pt"})
    torch.save(tensors, pickled)
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, weights.name)}))
    parts = folder / "parts" / "prior" / "prior"
    parts.mkdir(parents=True)
    save_file(tensors, parts / "model.safetensors", metadata={"format": "pt"})
    (parts / "config.json").write_text('{"a": 1}')
    whole = folder / "whole.safetensors"
    single_file.write_file(single_file.read_folders({"prior": folder / "parts" / "prior"}), whole, lambda *_: None)

    def unpack() -> None:
        model = single_file.read_file(whole)
        for file in model.files:
            for entry in file.entries:
                b"".join(file.read(entry.name))

    def read(path: Path) -> None:
        tensor_shapes(path)
        for _ in iter_tensors(path):
            pass

    return {
        "safetensors file": file_parser(weights, lambda: read(weights)),
        "safetensors header": safetensors_parser(weights, lambda: read(weights)),
        "bin": file_parser(pickled, lambda: read(pickled)),
        "weight index": file_parser(index, lambda: read(index)),
        "single file": safetensors_parser(whole, unpack),
    }


def _model(folder: Path) -> dict[str, Parser]:
    tower = {"projection_dim": 8, "layer_norm_eps": 1e-5, "hidden_act": "gelu", "hidden_size": 8}
    tower |= {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    configs = {
        "text_encoder": CLIPTextConfig(vocab_size=20, max_position_embeddings=4, **tower),
        "image_encoder": CLIPVisionConfig(image_size=8, patch_size=4, num_channels=3, **tower),
        "prior": PriorConfig(
            num_layers=1, num_attention_heads=2, attention_head_dim=4, embedding_dim=8, num_embeddings=4
        ),
        "unet": UNetConfig(
            block_out_channels=(32, 32),
            layers_per_block=1,
            attention_head_dim=16,
            cross_attention_dim=8,
            encoder_hid_dim=8,
            sample_size=8,
        ),
        "movq": MoVQConfig(block_out_channels=(32, 32), layers_per_block=1, num_vq_embeddings=8),
    }
    made: dict[str, Parser] = {}
    for name, (kind, config) in {**NETWORKS, **TOWERS}.items():
        network.save(folder / name, kind(configs[name]), dtype=torch.float16)
        made[f"{name} config"] = file_parser(
            folder / name / "config.json",
            lambda name=name, kind=kind, config=config: network.Stored(folder / name, kind, config),
        )
    scheduler, processor, metadata = (
        folder / name for name in ("scheduler_config.json", "preprocessor_config.json", "kandinsky22.json")
    )
    scheduler.write_text(
        json.dumps({"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear"})
    )
    processor.write_text(
        json.dumps(CLIPImageProcessor(size=8, crop_size=8, image_mean=(0.5,) * 3, image_std=(0.5,) * 3).to_dict())
    )
    metadata.write_text(
        json.dumps({"defaults": {"prior": {"steps": 2}}, "words": {"shapes": ["a ring"]}, "examples": ["a ring"]})
    )
    made["scheduler config"] = file_parser(
        scheduler, lambda: NoiseSchedule.from_config(read_scheduler(folder)).alphas_cumprod
    )
    made["preprocessor config"] = file_parser(
        processor, lambda: network.read_config(processor, CLIPImageProcessor)([Image.new("RGB", (9, 8))])
    )
    made["model metadata"] = file_parser(metadata, lambda: read_metadata(folder))
    return made


def _tokenizer(folder: Path) -> dict[str, Parser]:
    save_tokenizer(folder, learn(["a red ring", "two red rings"], 530, 16))

    def read() -> None:
        load_tokenizer(folder)(["a red ring", ""])

    names = {"vocabulary": "vocab.json", "merges": "merges.txt", "tokenizer config": "tokenizer_config.json"}
    return {name: file_parser(folder / file, read) for name, file in names.items()}


def _requests(folder: Path) -> dict[str, Parser]:
    image = Image.new("RGB", (64, 64))
    requests = [
        text2img("a red ring", seed=1, height=64, width=64),
        text2img("a red ring", negative_prompt="blue", num_images=2, aspect="16:9", speed="fast"),
    ]
    embedding = Embedding.of([1.0, -2.0], "abc", {"sum": "a + b"})
    requests.append(replace(requests[0], condition=embedding))
    texts = [request.to_json().encode() for request in requests]
    recipe = folder / "picture.png"
    saved = embedding.save(folder / "a.safetensors")

    def read_request(content: bytes) -> None:
        request = Request.from_json(content.decode())
        assert Request.from_json(request.to_json()) == request
        request.resolved(DEFAULTS)

    def read_text(content: bytes) -> None:
        info = PngImagePlugin.PngInfo()
        info.add_itxt(RECIPE, content.decode(errors="surrogateescape").encode("utf-8", "replace").decode())
        image.save(recipe, pnginfo=info)
        summary(read_recipe(recipe))

    def read_chunk(content: bytes) -> None:
        picture = io.BytesIO()
        info = PngImagePlugin.PngInfo()
        info.add(b"iTXt", content)
        image.save(picture, "PNG", pnginfo=info)
        recipe.write_bytes(picture.getvalue())
        summary(read_recipe(recipe))

    pictures = []
    for kind in FORMATS:
        file = io.BytesIO()
        Image.linear_gradient("L").resize((8, 6)).convert("RGB").save(file, kind)
        pictures.append(file.getvalue())

    def read_picture(content: bytes) -> None:
        with warnings.catch_warnings():  # of damaged files, as in the command line
            warnings.simplefilter("ignore")
            Picture.of(content)

    made_by = b', "made_by": {"weights": {"unet": "abc"}, "threads": 1}'
    stored = [b'{"request": ' + text + made_by + b"}" for text in texts]
    stored.append(b'{"request": ' + texts[0] + made_by + b', "layout": {"kind": "strip", "labels": ["a", "b"]}}')

    def read_infotext(content: bytes) -> None:
        text = content.decode(errors="replace")
        infotext.parse(text)
        infotext.parse(infotext.read(encode(image, "png", {infotext.PARAMETERS: text})).get(infotext.PARAMETERS, ""))

    parameters = infotext.infotext(requests[0].resolved(DEFAULTS), "a, b").encode()
    event = b'{"event": "progress", "stage": "prior", "i": 1, "n": 2}'
    started = b'{"event": "started", "request": ' + texts[0] + b', "process": 1}'
    return {
        "infotext": Parser([parameters, b"Steps: 1, " + b"a" * 400], read_infotext),
        "event": Parser([event, started], lambda content: event_json.from_json(parse_json(content))),
        "picture": Parser(pictures, read_picture),
        "request": Parser(texts, read_request),
        "PNG text": Parser(stored, read_text),
        "PNG chunk": Parser([b"kandinsky22\0\0\0\0\0" + text for text in stored], read_chunk),
        "embedding": safetensors_parser(saved, lambda: Embedding.load(saved)),
    }


def _training_data(folder: Path) -> dict[str, Parser]:
    def read(place: Path) -> None:
        for picture in find_pictures(place).pictures:
            picture.describe()

    made: dict[str, Parser] = {}
    contents = {
        "captions": ("a.txt", "a red ring\nround and red\n"),
        "picture metadata": ("a.json", json.dumps({"caption": "a red ring", "width": 4, "Height": 3})),
        "metadata.jsonl": ("metadata.jsonl", json.dumps({"file_name": "a.png", "text": "a red ring"}) + "\n"),
        "metadata.csv": ("metadata.csv", 'file_name,text\na.png,"a ""red"" ring"\n'),
    }
    for name, (file, text) in contents.items():
        place = folder / name
        place.mkdir()
        (place / "a.png").write_bytes(b"")
        (place / file).write_text(text)
        made[name] = file_parser(place / file, lambda place=place: read(place))
    archive = folder / "a.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for file, content in {"a.png": png_of_size(1, 1), "a.txt": b"a ring", "a.json": b'{"caption": "a"}'}.items():
            member = tarfile.TarInfo(file)
            member.size, member.pax_headers = len(content), {"comment": "x"}
            tar.addfile(member, io.BytesIO(content))
    made["tar"] = file_parser(archive, lambda: read(archive))
    (folder / "things").mkdir()
    np.save(folder / "things" / "things.npy", np.zeros((1, 2, 2, 4), np.uint8))
    labels = folder / "things" / "things.json"
    labels.write_text(json.dumps([THING]))

    def read_things() -> None:
        things = Things.load(labels.parent)
        for thing in things.things:
            for drawing in thing.rows:
                things.picture(thing, drawing, 2)

    made["things"] = file_parser(labels, read_things)
    array = folder / "things" / "things.npy"
    made["array"] = file_parser(array, lambda: map_rows(array).sum())
    return made


def _runs(folder: Path) -> dict[str, Parser]:
    training = Training(*line_fit(), TRAINING_RECIPE, steps=2)
    for _ in run.run(training, folder, every=1):
        pass
    last = sorted((folder / "checkpoints").iterdir())[-1]
    shards.load_or_compute(folder / "shards", "abc", 3, lambda rows: torch.ones(len(rows), 2))
    index = folder / "index.jsonl"
    index.write_text(json.dumps([str(folder / "a.png"), 0, "1-2", 64, 64]) + "\n")

    def resume() -> None:
        checkpoints.settings(folder)
        checkpoints.load(Training(*line_fit(), TRAINING_RECIPE, steps=2), folder)

    return {
        "training state": file_parser(last / "state.json", resume),
        "checkpoint metadata": file_parser(last / ".metadata", lambda: CheckpointReader(last).read_metadata()),
        "checkpoint shard": file_parser(next(last.glob("*.distcp")), resume),
        "metrics": file_parser(folder / "metrics.jsonl", lambda: run.read_metrics(folder)),
        "shard index": file_parser(
            folder / "shards" / "index.json", lambda: shards.Shards(folder / "shards", "abc", 3)
        ),
        "picture index": file_parser(index, lambda: ImageIndex(index)),
    }


def _evaluations(folder: Path) -> dict[str, Parser]:
    template = text2img("", seed=0).resolved(DEFAULTS)
    Run.create_or_open(folder, Captions((Captioned("a", "a ring"),), "abc"), template, MADE_BY, batch=1)
    log = folder / "log-1-of-1.jsonl"
    log.write_text('{"id": "a", "sha256": "abc", "milliseconds": 3}\n')

    def read() -> None:
        opened = Run.open(folder)
        opened.units(Shard())
        run_state.logged(opened)

    table, text = folder / "captions.csv", folder / "captions.txt"
    table.write_text('id,caption,seed\na,"a ""red"" ring",3\nb,two rings,\n')
    text.write_text("a red ring\ntwo rings\n")
    moments = folder / "statistics.npz"
    measured = folder / "statistics.safetensors"
    source = reference.Source(*["abc"] * len(reference.Source._fields))
    reference.save(measured, reference.Statistics.of(source, ["a", "b"], torch.eye(2), [(64, 64)] * 2))
    np.savez(moments, mu=np.zeros(2), sigma=np.eye(2))
    return {
        "evaluation settings": file_parser(folder / "run.json", read),
        "manifest": file_parser(folder / "manifest.jsonl", read),
        "log": file_parser(log, read),
        "caption table": file_parser(table, lambda: captions.read(table)),
        "caption list": file_parser(text, lambda: captions.read(text)),
        "npz statistics": file_parser(moments, lambda: reference.load(moments)),
        "statistics": safetensors_parser(measured, lambda: reference.load(measured)),
    }
