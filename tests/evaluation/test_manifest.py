"""A run folder: seeds, shards, and that nothing else is ever painted in it than what it was begun with."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kandinsky22 import img2img, interpolate, text2img
from kandinsky22.evaluation.captions import Captioned, Captions
from kandinsky22.evaluation.manifest import MANIFEST, RUN, Run, Shard, check_place, filled, items, seed_of
from tests.backends.fakes import DEFAULTS, MADE_BY

CAPTIONS = Captions((*(Captioned(f"{k:02}", f"ring {k}") for k in range(22)), Captioned("x", "a\u2028star", 7)), "abc")
TEMPLATE = text2img("", seed=0).resolved(DEFAULTS)


def begun(folder: Path, captions: Captions = CAPTIONS, *, made_by: dict[str, Any] = MADE_BY, **how: Any) -> Run:
    return Run.begun(folder, captions, replace(TEMPLATE, **how.pop("request", {})), made_by, **{"batch": 4, **how})


def test_seeds_follow_from_the_run_and_the_id_alone() -> None:
    seeds = {item.id: item.seed for item in items(CAPTIONS, 5)}
    assert seeds["x"] == 7
    assert seeds == {item.id: item.seed for item in items(replace(CAPTIONS, items=CAPTIONS.items[::-1]), 5)}
    assert seeds["00"] == seed_of(5, "00") != seed_of(6, "00")
    assert seed_of(0, "000042") == 81379227790753  # as runs on disk have it
    assert len({seed_of(run, str(k)) for run in range(3) for k in range(1000)}) == 3000
    assert all(0 <= seed_of(0, str(k)) < 2**48 for k in range(100))


@pytest.mark.parametrize("of", [1, 2, 3, 5, 6, 7, 30])
def test_shards_are_a_partition_into_the_same_packs(tmp_path: Path, of: int) -> None:
    run = begun(tmp_path)
    shared = [pack for number in range(of) for pack in run.packs(Shard(number + 1, of))]
    assert sorted(shared, key=lambda pack: run.items.index(pack[0])) == run.packs(Shard())
    assert [item for pack in run.packs(Shard()) for item in pack] == [*run.items]
    assert [len(pack) for pack in run.packs(Shard())] == [4] * 5 + [3]


def test_in_packs_of_one_a_shard_is_every_nth_item(tmp_path: Path) -> None:
    run = begun(tmp_path, batch=1)
    assert [pack[0] for pack in run.packs(Shard(2, 3))] == [*run.items[1::3]]


def test_shards_are_said_as_a_number_of_a_number() -> None:
    assert Shard.parsed("2/8") == Shard(2, 8)
    assert (str(Shard(2, 8)), Shard(2, 8).name) == ("2/8", "2-of-8")
    for text in ("", "2", "a/b", "1/2/3", "-1/2", " 1/2", "1/2\n"):
        with pytest.raises(ValueError, match="such as 1/8"):
            Shard.parsed(text)
    for text in ("0/8", "9/8", "1/0"):
        with pytest.raises(ValueError, match="parts are counted from 1"):
            Shard.parsed(text)


def test_a_run_is_read_back_and_gone_on_with(tmp_path: Path) -> None:
    run = begun(tmp_path)
    assert Run.opened(tmp_path) == run == begun(tmp_path)
    first = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8").split("\n")[0])
    assert first == {"id": "00", "caption": "ring 0", "seed": seed_of(0, "00")}
    about = json.loads((tmp_path / RUN).read_text(encoding="utf-8"))
    assert about["captions"] == {"sha256": "abc", "count": 23}
    assert about["weights"] == MADE_BY["weights"] and about["request"]["decoder"]["steps"] == 3
    request = run.pack(run.items[:1]).requests["00"]
    assert request == replace(TEMPLATE, condition=replace(TEMPLATE.condition, prompt="ring 0"), seed=seed_of(0, "00"))  # type: ignore[arg-type, type-var]
    assert filled(run.template, run.items[0]) == request


def test_a_manifest_without_its_run_is_written_anew(tmp_path: Path) -> None:
    """The run was killed between the two."""
    run = begun(tmp_path)
    (tmp_path / RUN).unlink()
    (tmp_path / MANIFEST).write_text("torn")
    (tmp_path / f".{MANIFEST}.1.part").write_text("torn")
    assert begun(tmp_path) == run == Run.opened(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", MANIFEST, RUN]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"captions": replace(CAPTIONS, sha256="def")}, 'captions.sha256 "abc", and now it is "def"'),
        ({"seed": 1}, "seed 0, and now it is 1"),
        ({"batch": 8}, "batch 4, and now it is 8"),
        ({"request": {"width": 128}}, "request.width 64, and now it is 128"),
        ({"request": {"decoder": replace(TEMPLATE.decoder, steps=9)}}, "request.decoder.steps 3, and now it is 9"),
        ({"request": {"prior": replace(TEMPLATE.prior, sampler="ddim")}}, 'request.prior.sampler "unclip"'),
        ({"request": {"negative": TEMPLATE.condition}}, 'request.negative nothing, and now it is {"prompt": ""}'),
        ({"made_by": {**MADE_BY, "weights": {"unet": "def"}}}, 'weights.unet "abc", and now it is "def"'),
        ({"made_by": {**MADE_BY, "dtype": "float16"}}, 'dtype "float32", and now it is "float16"'),
        ({"made_by": {**MADE_BY, "torch": "1"}}, 'torch "0", and now it is "1"'),
        ({"made_by": {"weights": {}}}, "weights.unet"),
    ],
)
def test_a_folder_in_which_something_else_was_begun_is_refused(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    begun(tmp_path)
    with pytest.raises(ValueError) as raised:
        begun(tmp_path, **change)
    assert f"{tmp_path} was begun with {sentence}" in str(raised.value)
    assert Run.opened(tmp_path) == begun(tmp_path)


def test_what_is_noted_is_kept_and_not_compared(tmp_path: Path) -> None:
    run = begun(tmp_path, noted=lambda: {"command": "kandinsky22 evaluate world", "weights_sha256": {"unet": "abc"}})
    again = begun(tmp_path, noted=lambda: pytest.fail("it was begun already"))
    assert again == run == Run.opened(tmp_path) and run.about["command"] == "kandinsky22 evaluate world"


def test_a_folder_of_another_kind_of_evaluation_is_refused(tmp_path: Path) -> None:
    begun(tmp_path / "sweep" / "ddim-5")
    check_place(tmp_path / "sweep", of_runs=True)
    with pytest.raises(ValueError, match=r"sweep holds other runs \(ddim-5\), such as a sweep has"):
        check_place(tmp_path / "sweep")
    begun(tmp_path / "world")
    check_place(tmp_path / "world")
    with pytest.raises(ValueError, match="world holds a run of captions, and a sweep has many; give another folder"):
        check_place(tmp_path / "world", of_runs=True)


def test_what_only_rounds_may_differ(tmp_path: Path) -> None:
    begun(tmp_path)
    begun(tmp_path, made_by={**MADE_BY, "threads": 9, "processor": "another"})


def test_a_folder_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    text = (tmp_path / MANIFEST).read_text(encoding="utf-8")
    (tmp_path / MANIFEST).write_text(text.replace("ring 3", "star 3"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"manifest\.jsonl was changed after the run began"):
        begun(tmp_path)
    (tmp_path / MANIFEST).write_text("{}\n")
    with pytest.raises(ValueError, match=r"manifest\.jsonl cannot be read"):
        begun(tmp_path)
    (tmp_path / MANIFEST).write_text(text, encoding="utf-8")
    (tmp_path / RUN).write_text("{")
    with pytest.raises(ValueError, match=r"run\.json cannot be read"):
        Run.opened(tmp_path)
    (tmp_path / RUN).write_text("{}")
    with pytest.raises(ValueError, match="no request of kandinsky22"):
        Run.opened(tmp_path)
    (tmp_path / RUN).unlink()
    with pytest.raises(ValueError, match=r"holds no run; there is no run\.json in it"):
        Run.opened(tmp_path)


def test_requests_that_are_no_template_are_refused(tmp_path: Path) -> None:
    for request in (interpolate(["a ring", "a star"]), text2img("", num_images=2)):
        with pytest.raises(ValueError, match=r"captions take the place of a prompt|a caption is painted once"):
            Run.begun(tmp_path, CAPTIONS, request.resolved(DEFAULTS), MADE_BY, batch=1)


def test_a_folder_that_cannot_be_written_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write into .*; choose another folder"):
        begun(tmp_path / "file" / "run")


def test_a_template_keeps_its_picture(tmp_path: Path) -> None:
    from PIL import Image

    request = img2img("", image=Image.new("RGB", (64, 64)), seed=0).resolved(DEFAULTS)
    run = Run.begun(tmp_path, CAPTIONS, request, MADE_BY, batch=1)
    assert all(picture.image for picture in run.pack(run.items[:1]).requests["00"].pictures.values())
    assert Run.opened(tmp_path) == run  # by the picture's hash
