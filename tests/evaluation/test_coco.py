"""The model card's evaluation of a small random model: its report, its references, and what it refuses to compare."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from kandinsky22 import text2img
from kandinsky22.backends.run_folder import Shard
from kandinsky22.backends.work_units import UnitPainter
from kandinsky22.evaluation import captions, coco, generate, inception, reference
from kandinsky22.evaluation.features import ClipFeatures
from kandinsky22.evaluation.manifest import Run
from kandinsky22.evaluation.painted_run import measure_shard
from kandinsky22.evaluation.report import Report
from tests.evaluation.conftest import COUNT, ColourFeatures, check_progress, few_steps, write_real_pictures


def reference_statistics(place: Path, folder: Path) -> reference.Statistics:
    return coco.reference_statistics(place, ColourFeatures(), folder, "real-pictures", check_progress)


def report_on(run: Run, place: Path, features: ColourFeatures | None = None, **options: Any) -> Report:
    """The report against a reference, as the command asks for it."""
    features = features or ColourFeatures()
    theirs = coco.reference_statistics(place, features, run.folder, "real-pictures", check_progress)
    defaults: dict[str, Any] = {"kid_size": 20, "any_size": False, "show_progress": check_progress, "command": ""}
    return coco.report(run, place, theirs, features, **defaults | options)


def test_coco_report_has_every_score_and_the_cards_table(run: Run, clip: ClipFeatures, tmp_path: Path) -> None:
    place = write_real_pictures(tmp_path / "real")
    cmmd_reference = coco.reference_statistics(place, clip, run.folder, "real-pictures-for-cmmd", check_progress)
    report = report_on(run, place, clip=clip, cmmd=(clip, cmmd_reference))
    assert {"fid", "kid", "clip_score", "cmmd", "pictures", "features"} == report.values.keys()
    card = next(table for table in report.tables if "card" in table.title)
    assert len(card.rows) == 12 and card.ours is not None and "tiny-model" in card.rows[card.ours][0]
    assert "Protocols differ" in card.about
    assert [remark[:55] for remark in report.remarks] == ["Inception's weights are not the published file (SHA-256"]
    protocol = json.loads(json.dumps(report.protocol))
    assert protocol["reference"].items() >= {"name": "real", "pictures": 40, "sizes": [[64, 64]]}.items()
    assert protocol["features"]["cmmd"]["fingerprint"] == clip.fingerprint
    assert protocol["features"]["inception"] == report.values["features"]["inception"]
    assert [(machine["device"], machine["pictures"]) for machine in protocol["painted_on"]] == [("cpu", COUNT)]
    assert protocol["comparison"] == {"any_size": False, "kid": {"subsets": 100, "size": 20, "seed": 0}}
    assert protocol["versions"]["pillow"] == PIL.__version__
    assert str(tmp_path) not in json.dumps(report.protocol) + json.dumps(report.values)

    file = tmp_path / "real.safetensors"
    reference.save(file, reference.measure(reference.find_pictures(place), ColourFeatures()))
    by_file = report_on(run, file)
    assert by_file.values["fid"] == pytest.approx(report.values["fid"], rel=1e-9)
    assert [remark.split(" is")[0] for remark in by_file.remarks[1:]] == ["The CLIP score", "CMMD"]


def test_coco_report_says_whether_inception_has_the_published_weights(run: Run, tmp_path: Path) -> None:
    features, place = ColourFeatures(), write_real_pictures(tmp_path / "real")
    features.name, features.fingerprint = inception.NAME, inception.SHA256
    report = report_on(run, place, features)
    assert report.values["features"]["inception"]["published"] is True
    assert report.protocol["features"]["inception"]["fingerprint"] == inception.SHA256
    assert not any("published file" in remark for remark in report.remarks)
    features.fingerprint = "another"
    assert report_on(run, place, features).values["features"]["inception"]["published"] is False


def test_coco_report_uses_statistics_that_shards_cached(run: Run, tmp_path: Path) -> None:
    """No picture is measured twice, the scores are those of a run measured at once, and changes are noticed."""
    place, features = write_real_pictures(tmp_path / "real"), ColourFeatures()
    expected = report_on(run, place).values
    folder = shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("*.safetensors"))
    sharded = Run.open(folder)
    for number in (1, 3):
        measure_shard(sharded, Shard(number, 3), {"pictures": features}, check_progress)
    assert features.seen == 24 and len([*folder.glob("pictures-part-*.safetensors")]) == 2
    theirs = reference_statistics(place, folder)
    options: dict[str, Any] = {"kid_size": 20, "any_size": False, "show_progress": check_progress, "command": ""}
    report = coco.report(sharded, place, theirs, features, **options)
    assert features.seen == COUNT and report.values["kid"] == expected["kid"]
    assert report.values["fid"] == pytest.approx(expected["fid"], rel=1e-9)
    for cache in folder.glob("pictures-????????????????.safetensors"):
        cache.unlink()
    os.utime(sharded.picture(sharded.items[0]), (1, 1))
    second = ColourFeatures()
    coco.report(sharded, place, theirs, second, **options)
    in_changed_part = 2 * len(sharded.units(Shard(1, 3))[0])
    assert second.seen == COUNT - 24 + in_changed_part  # those in no part, and in the part with a changed picture


def test_a_published_mean_and_covariance_suffice_for_fid_alone(run: Run, tmp_path: Path) -> None:
    place = write_real_pictures(tmp_path / "real")
    rows = reference.measure(reference.find_pictures(place), ColourFeatures()).rows.double().numpy()
    np.savez(tmp_path / "public.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    report = report_on(run, tmp_path / "public.npz")
    assert report.values["fid"] == pytest.approx(report_on(run, place).values["fid"], rel=1e-9)
    assert "kid" not in report.values and any("KID is left out" in remark for remark in report.remarks)
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match="has 3 features and colours has 6"):
        report_on(run, tmp_path / "other.npz")


def test_other_pictures_with_the_same_names_are_measured_again(tmp_path: Path) -> None:
    first, second = (write_real_pictures(tmp_path / name, seed=seed) for seed, name in enumerate(("first", "second")))
    one, other = (reference_statistics(place, tmp_path) for place in (first, second))
    assert not torch.allclose(one.rows, other.rows) and len([*tmp_path.glob("real-pictures-*")]) == 1


def test_fid_of_pictures_against_themselves_is_zero(run: Run) -> None:
    assert report_on(run, run.folder / "pictures").values["fid"] == pytest.approx(0, abs=1e-9)


def test_coco_report_refuses_other_sizes_and_other_networks(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    for i in range(24):
        Image.new("RGB", (80, 80), (i, 10 * i, 7)).save(folder / f"{i}.png")
    with pytest.raises(ValueError, match="all 80x80 and the others all 64x64"):
        report_on(run, folder)
    assert report_on(run, folder, any_size=True).values["fid"] > 0
    other = ColourFeatures()
    other.fingerprint = "2"
    file = tmp_path / "large.safetensors"
    reference.save(file, reference.measure(reference.find_pictures(folder), other))
    with pytest.raises(ValueError, match="use the same weights for both"):
        report_on(run, file, any_size=True)


def test_a_caption_file_gives_the_pictures_of_its_captions_and_seeds(painter: UnitPainter, tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("id,caption,seed\nfirst,a red circle,7\nsecond,a blue star,\n", "utf-8")
    of_file = generate.open_run(painter, tmp_path / "run", captions.read(path), few_steps())
    list(generate.generate(painter, of_file))
    request = text2img(
        "a red circle",
        seed=7,
        model="tiny-model",
        num_inference_steps=1,
        prior_num_inference_steps=1,
        guidance_scale=1.0,
        prior_guidance_scale=1.0,
    )
    with Image.open(tmp_path / "run" / "pictures" / "first.png") as picture:
        alone = painter.backend(request)[0]  # type: ignore[operator]
        assert np.abs(np.asarray(picture, int) - np.asarray(alone.image, int)).max() <= 1
