"""Whatever is asked for or read: a result, or a refusal in one sentence. The same for hours: `runs/fuzz.py`."""

import contextlib
import json
import os
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, SearchStrategy
from runs.fuzz import TARGETS

from kandinsky22 import Embedding
from kandinsky22.cli import paint
from kandinsky22.cli.app import COMMANDS, run
from kandinsky22.request import Mask, Mix, Picture, Request, Sampling, Start, Text
from kandinsky22.request.parts import LINEAR, SAMPLERS
from kandinsky22.request.task_schema import all_tasks, parameters
from tests.cli.fake_backend import FakeBackend
from tests.hostile.corpus import WRONG_JSON
from tests.hostile.parsers import REFUSALS, Parser, parsers
from tests.hostile.pictures import CONTROLS, png_of_size, write_recipe

settings.register_profile(
    "bounded",
    deadline=None,
    database=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("bounded")

UNWANTED: tuple[Any, ...] = (None, True, False, -1, 0, 1, 2, 10**9, 10**30, 0.5, -0.0, float("inf"), float("nan"))
UNWANTED += ("", "a", "../../etc/passwd", "\ud800", CONTROLS, "a" * 300)
UNWANTED += ([], {}, [[]], [None], {"a": {}}, [1e999, 1], ["a", 0, "b", float("inf"), 3])
"""JSON values that most places do not expect."""
WORDS = ("a ring", "cat.png", "nowhere", "", "-", "~nosuchuser/x", "/", ".", "a\0b", "1", "0.5", "-1", "1e999", "nan")
WORDS += ("9" * 30, "64x128", "x", "16:9", "0:0", "yes", "0.2,0.8", ",", "=", "[/b]", CONTROLS, "\ud800", "é" * 300)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parser]:
    return parsers(tmp_path_factory.mktemp("parsers"))


@st.composite
def changed_bytes(draw: st.DrawFn, original: bytes) -> bytes:
    """A content with some bytes removed, inserted or repeated."""
    content = original
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, min(8, len(content) - start)) | st.integers(0, len(content) - start))
        copied = st.sampled_from([content[start : start + 40], bytes(8), b"\xff" * 8, b"\n", b'"', b"\x80\x02}"])
        content = content[:start] + draw(st.binary(max_size=8) | copied) + content[start + length :]
    return content


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values within a JSON value, itself included."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in inside for place in places(child, (*path, key)))]


def replaced(value: Any, path: Sequence[Any], new: Any) -> Any:
    """A JSON value with another one at a path."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@st.composite
def changed_json(draw: st.DrawFn, original: Any) -> Any:
    """A JSON value with some of the values in it replaced, or joined by unknown ones."""
    value = original
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(value)))
        new = draw(st.sampled_from(UNWANTED) | st.integers() | st.floats() | st.text(max_size=8))
        value = replaced(value, path, new)
    if isinstance(value, dict) and draw(st.booleans()):
        value = {key: value[key] for key in draw(st.permutations(list(value)))[1:]}
    return value


def changed(original: bytes) -> SearchStrategy[bytes]:
    """Other contents of a file: its JSON with other values where it is JSON or ends with a line of it, other bytes."""
    last = original.rstrip().rpartition(b"\n")[2]
    with contextlib.suppress(ValueError):
        other = changed_json(json.loads(last)).map(json.dumps).map(str.encode)
        return other.map(lambda line: original.replace(last, line)) | changed_bytes(original)
    return changed_bytes(original)


def test_every_parser_is_listed(known: dict[str, Parser]) -> None:
    assert {*TARGETS} == {*known}


@pytest.mark.parametrize("name", TARGETS)
def test_parsers_read_or_refuse(name: str, known: dict[str, Parser]) -> None:
    parser = known[name]
    for seed in parser.seeds:
        parser.read(seed)
    for content in WRONG_JSON:
        with contextlib.suppress(*REFUSALS):
            parser.read(content)

    @settings(max_examples=100)
    @given(st.sampled_from(parser.seeds).flatmap(changed) | st.binary(max_size=64))
    def reads_or_refuses(content: bytes) -> None:
        with contextlib.suppress(*REFUSALS):
            parser.read(content)

    reads_or_refuses()


def values(*expected: Any) -> SearchStrategy[Any]:
    """Mostly values that a field expects, and some that it does not."""
    return st.sampled_from(expected) | st.sampled_from(expected) | st.sampled_from(UNWANTED)


PICTURE = Picture.of(png_of_size(64, 64))
EMBEDDING = Embedding.of([1.0, -0.1], "abc")
NUMBERS = (None, 0, 0.5, 1, 4, 64, 100)
TEXTS = st.builds(Text, st.text(max_size=20))
SAMPLINGS = st.fixed_dictionaries(
    {},
    optional={
        "sampler": values(*SAMPLERS, LINEAR),
        "steps": values(1, 25, 1000, 1001),
        "guidance_scale": values(*NUMBERS),
        "guidance_interval": values((0.2, 0.8), (0, 1), [0.5, 0.5]),
        "reuse": values(1, 2, 1000),
    },
)
PARTS = TEXTS | st.just(PICTURE) | st.just(EMBEDDING) | st.builds(Text, st.just("a"), st.just(PICTURE), st.just(0.5))
FIELDS: dict[str, SearchStrategy[Any]] = {
    "height": values(64, 65, 512, 65536, 65537),
    "width": values(64, 100, 8192),
    "aspect": values("16:9", "1:0", "1e9:1"),
    "num_images": values(1, 4, 256, 257),
    **dict.fromkeys(("seed", "prior_seed", "variation_seed"), values(0, 7, 2**63 - 300, 2**63)),
    "variation_strength": values(*NUMBERS),
    "speed": values("exact", "fast", "warp"),
    "model": values("box", Path("folder")),
    "hint": values(None, PICTURE),
}


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A request of random values. Raises `ValueError` for those that are refused."""
    given = draw(st.fixed_dictionaries({}, optional=FIELDS))
    given |= {stage: Sampling(**draw(SAMPLINGS)) for stage in ("prior", "decoder") if draw(st.booleans())}
    if draw(st.booleans()):
        given["start"] = Start(PICTURE, draw(values(0.3, 1)))
    if draw(st.booleans()):
        given["mask"] = Mask(image=PICTURE, pad=draw(values((0, 8, 0, 8), (0,) * 4)), feather=draw(values(0, 4, 300)))
    weights = draw(st.lists(values(0, 0.5, -1), max_size=3))
    condition = draw(PARTS | st.just(Mix))
    if condition is Mix:
        condition = Mix(tuple(draw(PARTS) for _ in weights), tuple(weights))
    return Request(condition=condition, negative=draw(st.none() | PARTS), **given)


@settings(max_examples=300)
@given(st.data())
def test_requests_go_to_json_and_back(data: DataObject) -> None:
    try:
        request = data.draw(requests())
    except ValueError as error:
        assert str(error) and len(str(error).splitlines()) == 1
        return
    restored = Request.from_json(request.to_json())
    assert restored == request and restored.to_json() == request.to_json()


OPTIONS = sorted({name.replace("_", "-") for task in all_tasks().values() for name in parameters(task)})
OPTIONS += ["size", "output", "quiet", "device", "dtype", "placement", "json", "picture", "frames", "fps", "loop"]
OPTIONS += ["processes", "batch", "threads", "out", "captions", "reference", "shard", "plan", "folder", "data", "help"]
OPTIONS += ["version", "nonsense", "steps", "learning-rate", "recipe", "subtract", "weights", "normalise"]
NETWORK_COMMANDS = ("train", "evaluate")
WITHOUT_MODEL = ("show", "words", "mix", "depth", "convert", "train")
SUBCOMMANDS = ("prior", "decoder", "movq", "coco30k", "world", "sweep", "stats", "compare")


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command, words and options, most of them of another command."""
    known = list(all_tasks())
    line = [draw(st.sampled_from([*known, *known, *COMMANDS, *WORDS]))]
    if line[0] in NETWORK_COMMANDS:
        line.append(draw(st.sampled_from(SUBCOMMANDS)))
    word = st.sampled_from(WORDS) | st.text(max_size=10)
    for _ in range(draw(st.integers(0, 4))):
        option = f"--{draw(st.sampled_from(OPTIONS))}"
        line += draw(st.sampled_from([[draw(word)], [option, draw(word)], [f"{option}={draw(word)}"], [option]]))
    return line


@settings(max_examples=400)
@given(command_lines())
def test_command_lines_end_in_a_result_or_in_one_sentence(workplace: Path, line: list[str]) -> None:
    model = "fake" if line[0] in all_tasks() or line[0] not in COMMANDS else "nowhere"
    if line[0] not in WITHOUT_MODEL:
        start = 2 if line[0] in NETWORK_COMMANDS else 1
        line = [*line[:start], "--model", model, *line[start:]]
    out, err = StringIO(), StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = run(line)
        except SystemExit as stopped:  # --help and --version
            status = int(stopped.code or 0)
    assert status in (0, 2)
    if status == 2:
        assert len(err.getvalue().splitlines()) == 1 and err.getvalue().startswith("kandinsky22: "), err.getvalue()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a picture; in it the model "fake" paints, and nothing is fetched or trained."""
    load, backend = paint.load, FakeBackend()
    monkeypatch.setattr(
        paint,
        "load",
        lambda model, options, request=None: backend if model == "fake" else load(model, options, request),
    )
    monkeypatch.setattr("kandinsky22.training.cli.train", lambda *_: None)
    monkeypatch.setattr("kandinsky22.training.supervisor.supervise", lambda *_: 0)
    monkeypatch.setenv("KANDINSKY22_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path / "cat.png")
    return tmp_path


def test_the_model_of_command_lines_paints(workplace: Path) -> None:
    assert run(["a ring", "--model", "fake"]) == 0 and any((workplace / "out").iterdir())
