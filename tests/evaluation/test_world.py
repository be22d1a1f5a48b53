"""The picture world's evaluation of a small random model."""

from pathlib import Path

import pytest

from kandinsky22.backends.work_units import UnitPainter
from kandinsky22.evaluation import generate, reference, world
from kandinsky22.evaluation.distances import cmmd, frechet, kernel_distance
from kandinsky22.evaluation.features import ClipFeatures
from kandinsky22.evaluation.manifest import Run
from kandinsky22.evaluation.report import write
from tests.evaluation.conftest import COUNT, check_progress, few_steps


def test_world_captions_are_reproducible_and_a_prefix_of_longer_lists() -> None:
    first = world.captions(5)
    assert first == world.captions(5) and first.items == world.captions(8).items[:5]
    assert first.sha256 != world.captions(6).sha256


def test_world_report_has_the_scores_computed_by_hand(run: Run, clip: ClipFeatures, tmp_path: Path) -> None:
    report = world.report(run, clip, show_progress=check_progress, command="kandinsky22 evaluate world")
    assert report.values["pictures"] == COUNT and report.protocol["run"] == run.settings
    assert report.values["fidelity"]["ground"]["of"] == COUNT
    ours = reference.measure(reference.find_pictures(run.folder / "pictures"), clip)
    true = reference.measure(reference.find_pictures(run.folder / "true" / "64x64"), clip)
    assert report.values["frechet_distance"] == pytest.approx(frechet(ours.moments, true.moments))
    assert report.values["cmmd"] == pytest.approx(cmmd(ours.rows, true.rows))
    assert report.values["kid"]["mean"] == pytest.approx(kernel_distance(ours.rows, true.rows, size=COUNT // 2).mean)
    page = write(tmp_path, report).read_text("utf-8")
    assert run.items[0].caption in page and page.count("<figure>") == COUNT
    again = world.report(run, clip, show_progress=check_progress, command="kandinsky22 evaluate world")
    assert again.values == report.values


def test_world_report_refuses_an_unfinished_run(painter: UnitPainter, clip: ClipFeatures, tmp_path: Path) -> None:
    unfinished = generate.open_run(painter, tmp_path / "run", world.captions(16), few_steps())
    list(generate.generate(painter, unfinished, max_units=1))
    with pytest.raises(ValueError, match=r"8 of 16 pictures of .* are not painted yet"):
        world.report(unfinished, clip, show_progress=check_progress, command="")
