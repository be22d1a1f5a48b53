"""Parsing of the command line: options from signatures, prompts, commands, and mistakes."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kandinsky22.checkpoints.catalog import BOX
from kandinsky22.cli import options
from kandinsky22.cli.app import COMMANDS, run
from kandinsky22.cli.paint import random_prompt
from kandinsky22.compositions import WORDS
from kandinsky22.request import Request, task_schema, tasks
from kandinsky22.request.tasks import text2img
from tests.cli.fake_backend import FakeBackend, files


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "from kandinsky22.cli import main; main()"
    env = os.environ | environment
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env)


@pytest.mark.parametrize("task", task_schema.all_tasks().values(), ids=task_schema.all_tasks())
def test_parser_has_an_option_for_each_parameter_of_a_task(task: task_schema.Task) -> None:
    parameters = task_schema.parameters(task)
    help_lines = re.findall(r"^  (-.*?)(?:  |$)", options.task_parser(task, "x", usage="x").format_help(), re.MULTILINE)
    names = {re.findall(r"--([\w-]+)", line)[-1].replace("-", "_") for line in help_lines}
    others = {"size", "help", "version", "no_sheet", "yes", *options.EDGE}
    assert names - {"lora"} | {"loras"} == parameters.keys() - set(options.POSITIONALS) | others
    assert tasks.CommonOptions.__annotations__.keys() <= parameters.keys() <= tasks.HELP.keys()


def test_every_help_text_belongs_to_a_parameter() -> None:
    assert {
        name for task in task_schema.all_tasks().values() for name in task_schema.parameters(task)
    } == tasks.HELP.keys()


def test_every_option_reaches_the_request(backend: FakeBackend) -> None:
    values: dict[str, Any] = {
        "negative_prompt": "red",
        "height": 70,
        "width": 90,
        "num_images": 2,
        "seed": 3,
        "num_inference_steps": 4,
        "guidance_scale": 1.5,
        "sampler": "heun",
        "prior_num_inference_steps": 5,
        "prior_guidance_scale": 6.0,
        "prior": "diffusion",
        "prior_sampler": "ddim",
        "model": "elsewhere",
        "aspect": "2:1",
        "prior_seed": 8,
        "variation_seed": 9,
        "variation_strength": 0.25,
        "speed": "turbo",
        "guidance_interval": "0.25,0.5",
        "reuse": 3,
    }
    assert values.keys() == task_schema.parameters(text2img).keys() - {"prompt", "loras"}  # loras need files
    typed = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert run(["a red circle", *typed, "--device", "cpu", "--dtype", "float32"]) == 0
    assert backend.requests == [text2img("a red circle", **values | {"guidance_interval": (0.25, 0.5)})]
    assert (backend.options["device"], backend.options["dtype"]) == ("cpu", "float32")


def test_short_options_and_size_reach_the_request(backend: FakeBackend) -> None:
    assert run(["-n", "2", "--steps=4", "--size", "128x64", "a red circle"]) == 0
    assert run(["a red circle", "--size", "96"]) == 0
    wide, square = backend.requests
    assert wide == text2img("a red circle", num_images=2, num_inference_steps=4, height=64, width=128)
    assert square == text2img("a red circle", height=96, width=96)


def test_new_task_function_becomes_a_command(monkeypatch: pytest.MonkeyPatch, backend: FakeBackend) -> None:
    def tinted(prompt: str, *, strength: float = 0.3) -> Request:
        """Tinted pictures."""
        return text2img(f"{prompt} tinted {strength}")

    tinted.__module__ = tasks.__name__
    monkeypatch.setattr(tasks, "tinted", tinted, raising=False)
    monkeypatch.setitem(tasks.HELP, "strength", "how much")
    assert run(["tinted", "a star", "--strength", "0.5"]) == 0
    assert backend.requests == [text2img("a star tinted 0.5")]


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys; sys.argv = ['kandinsky22', '--help']\n"
        "from kandinsky22.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'numpy', 'PIL', 'rich'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("--prior-guidance-scale", *COMMANDS))


def test_help_shows_the_defaults_of_the_model(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, steps, side in ((["--help"], 20, 128), (["--help", "--model", str(tiny_model)], 3, 64)):
        with pytest.raises(SystemExit):
            run(arguments)
        text = " ".join(capsys.readouterr().out.split())
        assert f"number of steps of the decoder (default: {steps})" in text
        assert f"height in pixels, from 64 up (default: {side})" in text
        assert text.index("size and number:") < text.index("--height") < text.index("random numbers:")


def test_version_and_help_exit_with_status_zero() -> None:
    for arguments in (
        ["--version"],
        ["show", "--help"],
        ["replay", "--help"],
        ["words", "--help"],
        ["text2img", "--help"],
    ):
        with pytest.raises(SystemExit) as exit_info:
            run(arguments)
        assert exit_info.value.code == 0


@pytest.mark.parametrize(
    ("typed", "prompt"),
    [
        (["--", "--help"], "--help"),
        (["--", "-x"], "-x"),
        (["--", "show"], "show"),
        (["--seed", "7", "--", "words"], "words"),
        (["- a red circle"], "- a red circle"),
        (["show me a red circle"], "show me a red circle"),
        (["stars"], "stars"),
        (["three\tred\ncircles"], "three\tred\ncircles"),
        (["""it's $5 "red" #1"""], """it's $5 "red" #1"""),
        (["text2img", "--", "-"], "-"),
    ],
)
def test_prompt_reaches_the_request_unchanged(backend: FakeBackend, typed: list[str], prompt: str) -> None:
    assert run(typed) == 0
    assert [request.condition.prompt for request in backend.requests] == [prompt]


@pytest.mark.parametrize("typed", [[], [""], ["--", ""], [" "]])
def test_missing_prompt_is_replaced_by_a_random_one_of_known_words(backend: FakeBackend, typed: list[str]) -> None:
    assert run(["--seed", "7", *typed]) == run(["--seed", "7", *typed]) == run(typed) == 0
    first, same, other = backend.requests
    assert first == same
    assert first.condition.prompt == random_prompt(7, BOX)
    assert other.condition.prompt == random_prompt(other.seed or 0, BOX)
    assert set(first.condition.prompt.split()) <= WORDS


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["shwo", "out.png"], 'no command "shwo"; did you mean show?'),
        (["shwo"], 'no command "shwo"; did you mean show?'),
        (["Replay", "out.png"], "did you mean replay?"),
        (["wrods"], "did you mean words?"),
        (["trian", "movq"], "did you mean train?"),
        (["text2image", "a star"], "did you mean text2img?"),
        (["help"], "did you mean --help?"),
        (["--seed", "3", "show", "out.png"], "the command goes first"),
        (["three", "red", "circles"], 'needs quotes: kandinsky22 "three red circles"'),
        (["--", "three", "red"], "needs quotes"),
        (["cat.png"], "did you mean kandinsky22 show cat.png"),
        (["a star", "--sed", "7"], "did you mean --seed?"),
        (["-x"], "put a prompt that begins with a dash after --"),
        (["a star", "--seed"], "--seed: expected one argument"),
        (["a star", "--seed", "x"], "--seed: 'x' is not a whole number"),
        (["a star", "--guidance-scale", "x"], "--guidance-scale: 'x' is not a number"),
        (["a star", "--size", "1x2x3"], "--size: '1x2x3' is not a size"),
        (["a star", "--size", "128,64"], "write width x height, such as 128x64"),
        (["a star", "--seed", "9" * 30], "is too large; give a number of fewer digits"),
        (["a star", "--image", "cat.png"], "kandinsky22 has no --image; use it with kandinsky22 img2img or variations"),
        (["variations", "--strength", "1", "cat.png"], "no --strength; use it with kandinsky22 img2img or controlnet"),
        (["a star", "--size", "64", "--width", "64"], "leave those out"),
        (["show"], "`show` takes one picture, got 0"),
        (["replay", "a.png", "b.png"], "`replay` takes one picture, got 2"),
        (["words", "red"], "`words` takes only options"),
    ],
)
def test_mistakes_are_refused_with_a_suggestion(
    backend: FakeBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str], typed: list[str], sentence: str
) -> None:
    (tmp_path / "cat.png").touch()
    assert run(typed) == 2
    out, err = capsys.readouterr()
    assert out == "" and sentence in err and len(err.splitlines()) == 1
    assert backend.requests == [] and files(tmp_path) == ["cat.png"]


def test_known_word_of_the_model_is_not_taken_for_a_mistyped_command(backend: FakeBackend, tiny_model: Path) -> None:
    """No word of the box resembles a command today; if one ever does, the vocabulary takes precedence."""
    assert run(["wards", "--model", str(tiny_model)]) == 2
    language = (tiny_model / "decoder" / "kandinsky22.json").read_text()
    model = Path.cwd() / "model"
    (model / "decoder").mkdir(parents=True)
    (model / "decoder" / "kandinsky22.json").write_text(language.replace('"red"', '"wards"'))
    assert run(["wards", "--model", str(model)]) == 0


def test_words_prints_the_vocabulary_by_kind(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["words", "--model", str(tiny_model)]) == 0
    out = capsys.readouterr().out
    assert "shapes:      circle, square, triangle" in out
    assert 'kandinsky22 "three red circles over a blue triangle"' in out
    assert "\x1b" not in out


def test_words_imports_no_torch(tiny_model: Path) -> None:
    code = "from kandinsky22.cli.app import run; import sys; run(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    arguments = ["words", "--model", str(tiny_model)]
    assert subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True).returncode == 0


def test_words_reports_a_model_without_a_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "decoder").mkdir()
    assert run(["words", "--model", str(tmp_path)]) == 0
    assert "use any prompt" in capsys.readouterr().out


def test_letters_missing_in_the_output_encoding_are_escaped(tiny_model: Path) -> None:
    words = command("words", "--model", str(tiny_model), PYTHONIOENCODING="ascii")
    assert words.returncode == 0
    show = command("show", "три.png", PYTHONIOENCODING="ascii")
    assert show.returncode == 2 and "Traceback" not in show.stderr


def test_closed_pipe_is_not_an_error(tiny_model: Path) -> None:
    code = "from kandinsky22.cli import main; main()"
    read, write = os.pipe()
    os.close(read)
    arguments = [sys.executable, "-c", code, "words", "--model", str(tiny_model)]
    done = subprocess.run(arguments, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
