"""Run folders: seeds, shards, work units, and the refusal of settings other than those of the run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kandinsky22 import img2img, interpolate, text2img
from kandinsky22.backends.fake import DEFAULTS
from kandinsky22.backends.run_folder import Shard, seed_of
from kandinsky22.evaluation.captions import Captioned, Captions
from kandinsky22.evaluation.manifest import MANIFEST, RUN, Run, check_folder, items, with_item
from tests.backends.fakes import MADE_BY

CAPTIONS = Captions((*(Captioned(f"{k:02}", f"ring {k}") for k in range(22)), Captioned("x", "a\u2028star", 7)), "abc")
TEMPLATE = text2img("", seed=0).resolved(DEFAULTS)


def create_or_open(
    folder: Path, captions: Captions = CAPTIONS, *, made_by: dict[str, Any] = MADE_BY, **settings: Any
) -> Run:
    template = replace(TEMPLATE, **settings.pop("request", {}))
    return Run.create_or_open(folder, captions, template, made_by, **{"batch": 4, **settings})


def test_a_seed_depends_on_the_run_and_the_id_alone() -> None:
    seeds = {item.id: item.seed for item in items(CAPTIONS, 5)}
    assert seeds["x"] == 7
    assert seeds == {item.id: item.seed for item in items(replace(CAPTIONS, items=CAPTIONS.items[::-1]), 5)}
    assert seeds["00"] == seed_of(5, "00") != seed_of(6, "00")
    assert seed_of(0, "000042") == 81379227790753  # a value of existing runs, which must not change
    assert len({seed_of(run, str(k)) for run in range(3) for k in range(1000)}) == 3000
    assert all(0 <= seed_of(0, str(k)) < 2**48 for k in range(100))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 7, 30])
def test_shards_are_a_partition_of_the_same_work_units(tmp_path: Path, count: int) -> None:
    run = create_or_open(tmp_path)
    units = [unit for number in range(count) for unit in run.units(Shard(number + 1, count))]
    assert sorted(units, key=lambda unit: run.items.index(unit[0])) == run.units(Shard())
    assert [item for unit in run.units(Shard()) for item in unit] == [*run.items]
    assert [len(unit) for unit in run.units(Shard())] == [4] * 5 + [3]


def test_a_shard_of_a_run_without_batches_is_every_nth_item(tmp_path: Path) -> None:
    run = create_or_open(tmp_path, batch=1)
    assert [unit[0] for unit in run.units(Shard(2, 3))] == [*run.items[1::3]]


def test_a_shard_is_parsed_from_its_number_and_the_count() -> None:
    assert Shard.parse("2/8") == Shard(2, 8)
    assert (str(Shard(2, 8)), Shard(2, 8).name) == ("2/8", "2-of-8")
    for text in ("", "2", "a/b", "1/2/3", "-1/2", " 1/2", "1/2\n"):
        with pytest.raises(ValueError, match="such as 1/8"):
            Shard.parse(text)
    for text in ("0/8", "9/8", "1/0"):
        with pytest.raises(ValueError, match="shards are counted from 1"):
            Shard.parse(text)


def test_an_existing_run_is_opened_with_what_was_written(tmp_path: Path) -> None:
    run = create_or_open(tmp_path)
    assert Run.open(tmp_path) == run == create_or_open(tmp_path)
    first = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8").split("\n")[0])
    assert first == {"id": "00", "caption": "ring 0", "seed": seed_of(0, "00")}
    settings = json.loads((tmp_path / RUN).read_text(encoding="utf-8"))
    assert settings["captions"] == {"sha256": "abc", "count": 23}
    assert settings["weights"] == MADE_BY["weights"] and settings["request"]["decoder"]["steps"] == 2
    request = run.work_unit(run.items[:1]).requests["00"]
    assert request == replace(TEMPLATE, condition=replace(TEMPLATE.condition, prompt="ring 0"), seed=seed_of(0, "00"))  # type: ignore[arg-type, type-var]
    assert with_item(run.template, run.items[0]) == request


def test_a_manifest_without_run_json_is_written_again(tmp_path: Path) -> None:
    """A process was killed after it wrote the one and before the other."""
    run = create_or_open(tmp_path)
    (tmp_path / RUN).unlink()
    (tmp_path / MANIFEST).write_text("torn")
    assert create_or_open(tmp_path) == run == Run.open(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", MANIFEST, RUN]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    for name in (f".{RUN}.0123456789abcdef.part", f".{MANIFEST}.0123456789abcdef.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / RUN).write_text("torn")
    create_or_open(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", MANIFEST, RUN]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"captions": replace(CAPTIONS, sha256="def")}, 'captions.sha256 "abc", and now it is "def"'),
        ({"seed": 1}, "seed 0, and now it is 1"),
        ({"batch": 8}, "batch 4, and now it is 8"),
        ({"request": {"width": 128}}, "request.width 64, and now it is 128"),
        ({"request": {"decoder": replace(TEMPLATE.decoder, steps=9)}}, "request.decoder.steps 2, and now it is 9"),
        ({"request": {"prior": replace(TEMPLATE.prior, sampler="ddim")}}, 'request.prior.sampler "ddpm"'),
        ({"request": {"negative": TEMPLATE.condition}}, 'request.negative nothing, and now it is {"prompt": ""}'),
        ({"made_by": {**MADE_BY, "weights": {"unet": "def"}}}, 'weights.unet "abc", and now it is "def"'),
        ({"made_by": {**MADE_BY, "dtype": "float16"}}, 'dtype "float32", and now it is "float16"'),
        ({"made_by": {**MADE_BY, "torch": "1"}}, 'torch "0", and now it is "1"'),
        ({"made_by": {"weights": {}}}, "weights.unet"),
    ],
)
def test_a_run_refuses_other_settings(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    create_or_open(tmp_path)
    with pytest.raises(ValueError) as raised:
        create_or_open(tmp_path, **change)
    assert f"{tmp_path} was created with {message}" in str(raised.value)
    assert Run.open(tmp_path) == create_or_open(tmp_path)


def test_annotations_are_stored_and_not_compared(tmp_path: Path) -> None:
    run = create_or_open(
        tmp_path, annotations=lambda: {"command": "kandinsky22 evaluate world", "weights_sha256": {"unet": "abc"}}
    )
    again = create_or_open(tmp_path, annotations=lambda: pytest.fail("the run exists already"))
    assert again == run == Run.open(tmp_path) and run.settings["command"] == "kandinsky22 evaluate world"


def test_a_folder_of_another_kind_of_evaluation_is_refused(tmp_path: Path) -> None:
    create_or_open(tmp_path / "sweep" / "ddim-5")
    check_folder(tmp_path / "sweep", of_runs=True)
    with pytest.raises(ValueError, match=r"sweep holds other runs \(ddim-5\), as a sweep does"):
        check_folder(tmp_path / "sweep")
    create_or_open(tmp_path / "world")
    check_folder(tmp_path / "world")
    with pytest.raises(ValueError, match="world holds a run of captions, and a sweep has many; give another folder"):
        check_folder(tmp_path / "world", of_runs=True)


def test_a_run_allows_other_processors_and_threads(tmp_path: Path) -> None:
    create_or_open(tmp_path)
    create_or_open(tmp_path, made_by={**MADE_BY, "threads": 9, "processor": "another"})


def test_a_run_whose_files_were_changed_is_refused(tmp_path: Path) -> None:
    create_or_open(tmp_path)
    text = (tmp_path / MANIFEST).read_text(encoding="utf-8")
    (tmp_path / MANIFEST).write_text(text.replace("ring 3", "star 3"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"manifest\.jsonl was changed after the run was created"):
        create_or_open(tmp_path)
    (tmp_path / MANIFEST).write_text("{}\n")
    with pytest.raises(ValueError, match=r"manifest\.jsonl cannot be read"):
        create_or_open(tmp_path)
    (tmp_path / MANIFEST).write_text(text, encoding="utf-8")
    (tmp_path / RUN).write_text("{")
    with pytest.raises(ValueError, match=r"run\.json cannot be read"):
        Run.open(tmp_path)
    (tmp_path / RUN).write_text("{}")
    with pytest.raises(ValueError, match="not a request of kandinsky22"):
        Run.open(tmp_path)
    (tmp_path / RUN).unlink()
    with pytest.raises(ValueError, match=r"holds no run; there is no run\.json in it"):
        Run.open(tmp_path)


def test_a_request_without_one_prompt_cannot_be_a_template(tmp_path: Path) -> None:
    for request in (interpolate(["a ring", "a star"]), text2img("", num_images=2)):
        with pytest.raises(ValueError, match=r"captions replace a prompt|each caption is painted once"):
            Run.create_or_open(tmp_path, CAPTIONS, request.resolved(DEFAULTS), MADE_BY, batch=1)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write into .*; choose another folder"):
        create_or_open(tmp_path / "file" / "run")


def test_a_template_passes_its_picture_on_to_every_item(tmp_path: Path) -> None:
    from PIL import Image

    request = img2img("", image=Image.new("RGB", (64, 64)), seed=0).resolved(DEFAULTS)
    run = Run.create_or_open(tmp_path, CAPTIONS, request, MADE_BY, batch=1)
    assert all(picture.image for picture in run.work_unit(run.items[:1]).requests["00"].pictures.values())
    assert Run.open(tmp_path) == run  # by the picture's hash


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "../../x", "caption": "a", "seed": 1}',
        '{"id": "", "caption": "a", "seed": 1}',
        '{"id": 3, "caption": "a", "seed": 1}',
        '{"id": "a", "caption": null, "seed": 1}',
        '{"id": "a", "caption": "a", "seed": "1"}',
        '{"id": "a", "caption": "a", "seed": true}',
        "[]",
        "[" * 100_000,
    ],
    ids=range(8),
)
def test_a_manifest_of_other_values_is_refused(tmp_path: Path, line: str) -> None:
    create_or_open(tmp_path)
    (tmp_path / MANIFEST).write_text(line + "\n")
    with pytest.raises(ValueError, match=r"manifest\.jsonl cannot be read"):
        Run.open(tmp_path)


@pytest.mark.parametrize("batch", [0, -1, "4", 1.5, None, True, 10**12])
def test_settings_without_a_batch_are_refused(tmp_path: Path, batch: object) -> None:
    create_or_open(tmp_path)
    settings = json.loads((tmp_path / RUN).read_text())
    (tmp_path / RUN).write_text(json.dumps({**settings, "batch": batch}))
    with pytest.raises(ValueError, match=r"run\.json states no batch"):
        Run.open(tmp_path)
