"""docs/training.md: its commands run, it lists all options, and its tables are those of the recipes and plans."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from kandinsky22.cli.app import run
from kandinsky22.training import cli, options
from kandinsky22.training.network_plans import GPU, plan_of
from kandinsky22.training.photos import Filter, shapes
from kandinsky22.training.plan_table import GIB, expected_rate
from kandinsky22.training.recipes import PUBLISHED, STAGES, Stage
from kandinsky22.training.registry import NETWORK_TRAINING
from kandinsky22.training.run import read_metrics

DOCUMENT = Path(__file__).parents[2] / "docs" / "training.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"<!-- stages[^\n]*-->\n(.*?)<!-- end of stages -->", re.DOTALL)
PLANS = re.compile(r"<!-- plans[^\n]*-->\n(.*?)<!-- end of plans -->", re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
COLUMNS = {"data": "pictures", "filter": "filter", "begins": "begins with", "steps": "steps"}
"""The values of a stage that the model card may give -> their names in the document."""


@pytest.mark.slow
def test_commands_run_and_write_the_documented_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the blocks marked `run` in order in one folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KANDINSKY22_CACHE", str(tmp_path / "cache"))
    for kind, block in FENCED.findall(TEXT):
        if kind == "python run":
            exec(compile(block, str(DOCUMENT), "exec"), {})
        elif kind == "sh run":
            for command in block.replace("\\\n", " ").splitlines():
                words = shlex.split(command)
                status = run(words[1:]) if words[0] == "kandinsky22" else subprocess.call(words)
                assert status == 0, command

    folder = Path("runs/mine")
    for network, steps in (("decoder", 12), ("prior", 6), ("inpaint", 2)):
        assert [line["step"] for line in read_metrics(folder / network)] == [*range(steps + 1)]
        with Image.open(folder / network / "sheet.png") as sheet:
            assert sheet.height >= 128
    assert len([*Path("out").glob("three-purple-stars*.png")]) >= 1
    layout = TEXT[TEXT.index("## Files of a run") : TEXT.index("## Resume")]
    written = {path.name for path in folder.iterdir()} | {path.name for path in (folder / "decoder").iterdir()}
    for name in written:
        assert re.sub(r"-\w+-photos-.*", "-", name) in layout, name


def test_document_names_every_option_and_no_other() -> None:
    known = {*OPTION.findall(options.parser().format_help())}
    prose = FENCED.sub("", TEXT)
    commands = [line for _, block in FENCED.findall(TEXT) for line in block.splitlines() if " train " in line]
    arguments = [line[line.index(" train ") :] for line in commands]
    named = {option for text in (prose, *arguments) for option in OPTION.findall(text)}
    others = {
        "--help",
        "--model",
        "--prior",
        "--logdir",
        "--step",
        "--best",
    }  # of text-to-image, export and TensorBoard
    assert named - others == known - others


def test_table_of_options_has_the_defaults_of_the_parser() -> None:
    rows = {
        option: [cell.strip(" `") for cell in row.split("|")][3]
        for row in TEXT.splitlines()
        if row.startswith("| `--")
        for option in OPTION.findall(row.split("|")[1])
    }
    defaults = vars(options.parser().parse_args(["decoder"]))
    assert defaults.pop("network") == "decoder"
    for name, default in defaults.items():
        if default is not False:
            assert rows[f"--{name}"].split()[0] == str(default), name


def test_table_of_options_has_the_networks_of_each_option() -> None:
    cells = {
        option: networks_in(row.split("|")[2])
        for row in TEXT.splitlines()
        if row.startswith("| `--")
        for option in OPTION.findall(row.split("|")[1])
    }
    for option, networks in cells.items():
        name = option[2:].removeprefix("no-").replace("-", "_")
        assert networks == set(options.APPLIES_TO.get(name, NETWORK_TRAINING)), option


def networks_in(cell: str) -> set[str]:
    """The networks that a cell of the table names."""
    named = {*re.findall(r"`([a-z][a-z-]*)`", cell), *(("prior",) if "prior," in cell else ())}
    named |= {*options.APPLIES_TO["predict"]} if "decoders" in cell else set()
    return {*NETWORK_TRAINING} - named if "all" in cell else named or {*NETWORK_TRAINING}


def test_table_of_recipes_is_that_of_the_stages() -> None:
    table = TABLE.search(TEXT)
    assert table and table[1] == table_of_stages()
    assert all(f"`{name}`" in TEXT for name in (*options.RECIPES, *NETWORK_TRAINING))


@pytest.mark.slow  # counts the operations of the full-size networks
def test_table_of_plans_is_computed_from_the_recipes() -> None:
    table = PLANS.search(TEXT)
    assert table and table[1] == table_of_plans()


def table_of_plans() -> str:
    """The requirements of the published recipes, as a Markdown table."""
    heads = [
        "network",
        "rows a step",
        "memory in a step",
        "while a sample grid is drawn",
        "before the first step",
        "operations of a step",
        "of a sample grid",
        "100,000 steps, assumed",
        "their 400 sample grids, assumed",
        "a million pictures before them, assumed",
    ]
    rows, rate, single, processes = (
        [heads, ["---"] * len(heads)],
        expected_rate(GPU),
        expected_rate(GPU, bfloat16=False),
        8,
    )
    for network, title in (("decoder", "decoder"), ("prior", "prior"), ("movq", "MoVQ")):
        plan = plan_of(PUBLISHED, network, 100_000, processes)
        recomputed = f", and {plan.recomputed / 1e12:.0f} T again" if plan.recomputed else ""
        before, hours = plan.preprocess, plan.seconds(rate) / 3600
        drawn = plan.sample_grids * plan.sample_grid.operations / single
        operations = f"{plan.operations / 1e12:.0f} T{recomputed}"
        rows.append(
            [
                title,
                f"{plan.recipe.batch}{', checkpointed' if plan.recipe.checkpointing else ''}",
                f"{plan.step_memory / GIB:.1f} GiB",
                f"{plan.sampling_memory / GIB:.1f} GiB",
                f"{before.memory / GIB:.1f} GiB" if before else "",
                operations,
                f"{plan.sample_grid.operations / 1e12:.0f} T",
                f"{hours:.1f} hours",
                f"{drawn / 3600:.1f} hours",
                f"{before.operations / processes / rate / 3600:.1f} hours, {before.disk / GIB:.0f} GiB on disk"
                if before
                else "",
            ]
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def test_table_of_shapes_has_the_training_shapes() -> None:
    for side in (128, 512, 768):
        row = next(row for row in TEXT.splitlines() if row.startswith(f"| {side} |"))
        sizes = [(int(height), int(width)) for height, width in re.findall(r"(\d+) x (\d+)", row)]
        if "lying" in row:
            sizes += [(width, height) for height, width in sizes[1:]]
        assert sorted(sizes) == sorted(shapes(side))


def table_of_stages() -> str:
    """The published schedule, as a Markdown table."""
    heads = ["recipe", "network", *COLUMNS.values(), "rate", "the card gives"]
    rows = [heads, ["---"] * len(heads)]
    rows += [[f"`{name}`", stage.network, *_cells(stage)] for name, stage in STAGES.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cells(stage: Stage) -> list[str]:
    card = ", ".join(COLUMNS[name] for name in stage.card)
    return [stage.data, _filter(stage.filter), stage.begins, f"{stage.steps:,}", f"{stage.learning_rate:g}", card]


def _filter(filter: Filter) -> str:
    conditions = [f"`--min-side {filter.side}`"] if filter.side else []
    conditions += [f"`--min-aesthetic {filter.aesthetic:g}`"] if filter.aesthetic is not None else []
    return " ".join(conditions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["decoder", "--data", "photos", "--side", "100"], "multiple of 64, got 100; use 64 or 128"),
        (["decoder", "--data", "photos:0"], "positive number, got '0'; try photos:2"),
        (["decoder", "--data", "photo"], "photo is not there"),
        (["decoder", "--data", "photos", "--recipe", "fine-tune", "--start-from", "photos"], "no decoder/ folder"),
        (["decoder", "--min-side", "512"], "--min-side is about pictures of yours"),
        (["decoder", "--recipe", "fine-tune"], "name them with --data"),
        (["controlnet", "--data", "photos"], "name what estimates those of yours: --depth-model"),
        (["controlnet", "--data", "photos", "--depth-model", "nowhere"], "the depth checkpoint nowhere is not here"),
        (["prior", "--data", "photos", "--recipe", "decoder-curated"], "trains the decoder, not the prior"),
        (["decoder", "--data", "photos", "--recipe", "decoder-curated"], "name its model with --start-from"),
        (["linear-prior", "--data", "photos", "--steps", "3"], "--steps does not apply to linear-prior"),
        (["decoder", "--warmup", "-5"], "from 0 up"),
    ],
)
def test_invalid_training_data_is_refused_before_a_picture_is_read(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        cli.main(arguments)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
