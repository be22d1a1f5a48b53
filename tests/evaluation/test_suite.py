"""Whole evaluations on a small random model: what is written, what it says, and what is refused."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch import Tensor

from kandinsky22 import Kandinsky, text2img
from kandinsky22.backends.local import Here
from kandinsky22.evaluation import captions, generate, inception, protocol, reference, suite, sweep
from kandinsky22.evaluation.captions import Captions
from kandinsky22.evaluation.distances import cmmd, frechet, kernel_distance
from kandinsky22.evaluation.features import ClipFeatures
from kandinsky22.evaluation.fidelity import Rate
from kandinsky22.evaluation.manifest import Run, Shard
from kandinsky22.evaluation.report import Report, write
from kandinsky22.imaging.images import Painting, read_recipe
from kandinsky22.request import Request, Sampling
from tests.models_on_disk import DIM, write_tiny_model

COUNT = DIM + 8  # more than a covariance needs
FEW = {"num_inference_steps": 1, "prior_num_inference_steps": 1, "guidance_scale": 1.0, "prior_guidance_scale": 1.0}


def silent(what: str, done: int, of: int) -> None:
    assert 0 < done <= of


class Colours:
    """Features that need no weights: the mean of each channel and of its left half."""

    name, fingerprint, dim, resize = "colours", "1", 6, "not at all"
    seen = 0

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        self.seen += len(pictures)
        pixels = [np.asarray(picture.convert("RGB"), np.float32) / 255 for picture in pictures]
        rows = [np.concatenate([p.mean((0, 1)), p[:, : p.shape[1] // 2].mean((0, 1))]) for p in pixels]
        return torch.from_numpy(np.stack(rows))


@pytest.fixture(scope="module")
def painter(tiny_model: Path) -> Here:
    return Here(Kandinsky.load(tiny_model), batch=8)


@pytest.fixture(scope="module")
def clip(tiny_model: Path) -> ClipFeatures:
    return ClipFeatures.of_model(Kandinsky.load(tiny_model).stored.prior)


@pytest.fixture(scope="module")
def run(painter: Here, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The world's captions, painted."""
    folder = tmp_path_factory.mktemp("world") / "run"
    request = text2img("", model="tiny-model", **FEW)  # type: ignore[arg-type]
    begun = generate.begin(painter, folder, suite.world_captions(COUNT), request)
    list(generate.generate(painter, begun))
    return begun


def real(folder: Path, count: int, seed: int = 0) -> Path:
    """Pictures of noise, each of its own colour."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for i in range(count):
        pixels = rng.integers(0, 256, (64, 64, 3)) * rng.random(3)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def test_the_worlds_captions_are_of_fresh_scenes_and_stay_the_same() -> None:
    first = suite.world_captions(5)
    assert first == suite.world_captions(5) and first.items == suite.world_captions(8).items[:5]
    assert first.sha256 != suite.world_captions(6).sha256


def test_the_picture_world_is_scored_whole(run: Run, clip: ClipFeatures, tmp_path: Path) -> None:
    report = suite.world(run, clip, say=silent, command="kandinsky22 evaluate world")
    assert report.values["pictures"] == COUNT and report.protocol["run"] == run.about
    assert report.values["fidelity"]["ground"]["of"] == COUNT
    ours = reference.measure(reference.pictures_in(run.folder / "pictures"), clip)
    true = reference.measure(reference.pictures_in(run.folder / "true" / "64x64"), clip)
    assert report.values["frechet_distance"] == pytest.approx(frechet(ours.moments, true.moments))
    assert report.values["cmmd"] == pytest.approx(cmmd(ours.rows, true.rows))
    assert report.values["kid"]["mean"] == pytest.approx(kernel_distance(ours.rows, true.rows, size=COUNT // 2).mean)
    page = write(tmp_path, report).read_text("utf-8")
    assert run.items[0].caption in page and page.count("<figure>") == COUNT
    again = suite.world(run, clip, say=silent, command="kandinsky22 evaluate world")
    assert again.values == report.values


def scored(run: Run, place: Path, features: Colours | None = None, **how: Any) -> Report:
    """The card's evaluation, as the command asks for it."""
    features = features or Colours()
    theirs = suite.statistics_of(place, features, run.folder, "real-pictures", silent)
    return suite.coco(
        run, place, theirs, features, **{"kid_size": 20, "any_size": False, "say": silent, "command": "", **how}
    )


def test_the_cards_evaluation_stands_beside_the_cards_table(run: Run, clip: ClipFeatures, tmp_path: Path) -> None:
    place = real(tmp_path / "real", 40)
    cmmd_reference = suite.statistics_of(place, clip, run.folder, "real-pictures-for-cmmd", silent)
    report = scored(run, place, clip=clip, cmmd=(clip, cmmd_reference))
    assert {"fid", "kid", "clip_score", "cmmd", "pictures", "features"} == report.values.keys()
    card = next(table for table in report.tables if "card" in table.title)
    assert len(card.rows) == 12 and card.ours is not None and "tiny-model" in card.rows[card.ours][0]
    assert "Protocols differ" in card.about
    assert [remark[:55] for remark in report.remarks] == ["Inception's weights are not the published file (SHA-256"]
    protocol = json.loads(json.dumps(report.protocol))
    assert protocol["reference"].items() >= {"name": "real", "pictures": 40, "sizes": [[64, 64]]}.items()
    assert protocol["features"]["cmmd"]["fingerprint"] == clip.fingerprint
    assert protocol["features"]["inception"] == report.values["features"]["inception"]
    assert [(by["device"], by["pictures"]) for by in protocol["painted_on"]] == [("cpu", COUNT)]
    assert protocol["comparison"] == {"any_size": False, "kid": {"subsets": 100, "size": 20, "seed": 0}}
    assert protocol["versions"]["pillow"] == PIL.__version__
    assert str(tmp_path) not in json.dumps(report.protocol) + json.dumps(report.values)

    kept = tmp_path / "kept.safetensors"
    reference.save(kept, reference.measure(reference.pictures_in(place), Colours()))
    by_file = scored(run, kept)
    assert by_file.values["fid"] == pytest.approx(report.values["fid"], rel=1e-9)
    assert [remark.split(" is")[0] for remark in by_file.remarks[1:]] == ["The CLIP score", "CMMD"]


def test_the_published_inception_is_told_from_others(run: Run, tmp_path: Path) -> None:
    features, place = Colours(), real(tmp_path / "real", 40)
    features.name, features.fingerprint = inception.NAME, inception.SHA256
    report = scored(run, place, features)
    assert report.values["features"]["inception"]["published"] is True
    assert report.protocol["features"]["inception"]["fingerprint"] == inception.SHA256
    assert not any("published file" in remark for remark in report.remarks)
    features.fingerprint = "another"
    assert scored(run, place, features).values["features"]["inception"]["published"] is False


def test_every_painter_that_took_part_is_told_of(run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "run")
    some = Run.opened(folder)
    for item in some.items[:3]:
        with Image.open(some.picture(item)) as picture:
            recipe = read_recipe(some.picture(item))
            Painting(picture.convert("RGB"), recipe.request, {**recipe.made_by, "device": "cuda"}).save(
                some.picture(item)
            )
    told = protocol.painters(some)
    assert [(by["device"], by["pictures"]) for by in told] == [("cpu", COUNT - 3), ("cuda", 3)]


def test_parts_that_workers_measured_are_taken(run: Run, tmp_path: Path) -> None:
    """Each picture is seen once, whoever sees it, and the numbers are those of the whole; what has changed is seen again."""
    place, features = real(tmp_path / "real", 40), Colours()
    known = scored(run, place).values
    folder = shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("*.safetensors"))
    shared = Run.opened(folder)
    for number in (1, 3):
        suite.measure_part(shared, Shard(number, 3), {"pictures": features}, silent)
    assert features.seen == 24 and len([*folder.glob("pictures-part-*.safetensors")]) == 2
    theirs = suite.statistics_of(place, Colours(), folder, "real-pictures", silent)
    report = suite.coco(shared, place, theirs, features, kid_size=20, any_size=False, say=silent, command="")
    assert features.seen == COUNT and report.values["kid"] == known["kid"]
    assert report.values["fid"] == pytest.approx(known["fid"], rel=1e-9)
    for kept in folder.glob("pictures-????????????????.safetensors"):
        kept.unlink()
    os.utime(shared.picture(shared.items[0]), (1, 1))
    again = Colours()
    suite.coco(shared, place, theirs, again, kid_size=20, any_size=False, say=silent, command="")
    assert again.seen == COUNT - 24 + len(shared.packs(Shard(1, 3))[0]) * 2  # the part it was in, and what no part has


def test_a_published_mean_and_covariance_do_for_fid(run: Run, tmp_path: Path) -> None:
    place = real(tmp_path / "real", 40)
    rows = reference.measure(reference.pictures_in(place), Colours()).rows.double().numpy()
    np.savez(tmp_path / "public.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    report = scored(run, tmp_path / "public.npz")
    assert report.values["fid"] == pytest.approx(scored(run, place).values["fid"], rel=1e-9)
    assert "kid" not in report.values and any("KID is left out" in remark for remark in report.remarks)
    np.savez(tmp_path / "other.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match="has 3 features and colours makes 6"):
        scored(run, tmp_path / "other.npz")


def test_other_pictures_under_the_same_names_are_measured_anew(run: Run, tmp_path: Path) -> None:
    first, second = (real(tmp_path / name, 40, seed=seed) for seed, name in enumerate(("first", "second")))
    one = suite.statistics_of(first, Colours(), tmp_path, "real-pictures", silent)
    other = suite.statistics_of(second, Colours(), tmp_path, "real-pictures", silent)
    assert not torch.allclose(one.rows, other.rows) and len([*tmp_path.glob("real-pictures-*")]) == 1


def test_pictures_against_themselves_are_no_distance_apart(run: Run) -> None:
    assert scored(run, run.folder / "pictures").values["fid"] == pytest.approx(0, abs=1e-9)


def test_other_sizes_and_other_networks_are_refused(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    for i in range(24):
        Image.new("RGB", (80, 80), (i, 10 * i, 7)).save(folder / f"{i}.png")
    with pytest.raises(ValueError, match="all 80x80 and the others all 64x64"):
        scored(run, folder)
    assert scored(run, folder, any_size=True).values["fid"] > 0
    other = Colours()
    other.fingerprint = "2"
    kept = tmp_path / "kept.safetensors"
    reference.save(kept, reference.measure(reference.pictures_in(folder), other))
    with pytest.raises(ValueError, match="use the same weights for both"):
        scored(run, kept, any_size=True)


def test_a_complete_run_is_scored_without_its_model(run: Run, tmp_path: Path) -> None:
    captions = suite.world_captions(COUNT)
    request = text2img("", model="tiny-model", **FEW)  # type: ignore[arg-type]
    found = suite.complete(run.folder, captions, request)
    assert found is not None and found.items == run.items
    assert suite.complete(run.folder, captions, text2img("", model="tiny-model")) is not None  # what it leaves open
    assert suite.complete(tmp_path, captions, request) is None


def test_a_complete_run_is_scored_as_it_was_painted_alone(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    """Whatever decides pixels is compared: what is said, and the weights, where they are at hand."""
    captions, request = suite.world_captions(COUNT), text2img("", model="tiny-model", **FEW)  # type: ignore[arg-type]
    as_painted: dict[str, Any] = {"seed": 0, "batch": 8, "dtype": "float32", "model": Kandinsky.load(tiny_model)}
    assert suite.complete(run.folder, captions, request, **as_painted) is not None
    assert suite.complete(run.folder, captions, replace(request, speed="fast")) is not None  # of which model's steps?
    with pytest.raises(ValueError, match=r"was begun with request.decoder.*"):
        suite.complete(run.folder, captions, replace(request, speed="fast"), **as_painted)
    other = tmp_path / "tiny-model"  # of the same name
    write_tiny_model(other, seed=1)
    differs: list[tuple[str, Captions, Request, dict[str, Any]]] = [
        ("captions.sha256", suite.world_captions(COUNT - 1), request, {}),
        ("request.decoder.steps 1, and now it is 2", captions, replace(request, decoder=Sampling(steps=2)), {}),
        ('request.model "tiny-model", and now it is "box"', captions, replace(request, model="box"), {}),
        ("seed 0, and now it is 1", captions, request, {"seed": 1}),
        ("batch 8, and now it is 4", captions, request, {"batch": 4}),
        ('dtype "float32", and now it is "bfloat16"', captions, request, {"dtype": "bfloat16"}),
        ("weights.unet", captions, request, {"model": Kandinsky.load(other)}),
    ]
    for said, of, asked, how in differs:
        with pytest.raises(ValueError, match=f"was begun with {said}"):
            suite.complete(run.folder, of, asked, **how)


def test_the_command_that_painted_stays_in_the_protocol(run: Run, clip: ClipFeatures, tmp_path: Path) -> None:
    painted = replace(run, about={**run.about, "command": "kandinsky22 evaluate world --steps 1"})
    report = suite.world(painted, clip, say=silent, command="kandinsky22 evaluate world")
    assert report.protocol["command"] == "kandinsky22 evaluate world --steps 1"
    assert report.protocol["scored_by"] == "kandinsky22 evaluate world"
    assert "scored_by" not in scored(run, real(tmp_path / "real", 40), command="x").protocol


def test_a_run_that_is_not_complete_is_not_scored(painter: Here, clip: ClipFeatures, tmp_path: Path) -> None:
    request = text2img("", model="tiny-model", **FEW)  # type: ignore[arg-type]
    begun = generate.begin(painter, tmp_path / "run", suite.world_captions(16), request)
    list(generate.generate(painter, begun, packs=1))
    with pytest.raises(ValueError, match=r"8 of 16 pictures of .* are not painted yet"):
        suite.world(begun, clip, say=silent, command="")


@pytest.fixture(scope="module")
def swept(painter: Here, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a painted sweep."""
    folder = tmp_path_factory.mktemp("sweep")
    before = sweep.expect(painter, folder, CELLS, scenes=3, seeds=2)
    assert before.pictures == 4 * 6 - 2 * 6 and before.calls == (1 + 2) * 6  # two packs were timed: those of the ends
    assert before.seconds is not None and before.seconds > 0
    standings = list(sweep.paint(painter, folder, CELLS, scenes=3, seeds=2))
    assert list(dict.fromkeys(name for name, _ in standings)) == ["ddim-1", "ddim-2", "heun-1", "heun-2"]
    after = sweep.expect(painter, folder, CELLS, scenes=3, seeds=2)
    assert (after.pictures, after.calls, after.bytes, after.seconds) == (0, 0, 0, 0)
    return folder


CELLS = sweep.grid(text2img("", model="tiny-model", **FEW), ["ddim", "heun"], [1, 2])  # type: ignore[arg-type]


def test_a_sweep_paints_every_cell_and_chooses(swept: Path, clip: ClipFeatures, tmp_path: Path) -> None:
    judged = sweep.judge(swept, [*CELLS], clip, silent, seeds=2)
    assert [cell.calls for cell in judged] == [1, 2, 1, 3]
    assert all(cell.rates["plain"].of == 6 and len(cell.by_seed) == 2 for cell in judged)
    assert sweep.best(judged).name == "ddim-1"  # of random weights all are as bad
    report = sweep.report("tiny-model", judged, judged[1:2], judged[2:3], {})
    assert report.values["chosen"] == "ddim-1" and len(report.tables[0].rows) == 4
    assert [row[0] for row in report.tables[1].rows] == ["ddim-1", "ddim-2", "heun-1"]
    assert report.values["around"][2]["against"] == [0, 0, 0] and "heun-1" in {number.name for number in report.numbers}
    seeds = {(item.caption, item.seed) for item in Run.opened(swept / "ddim-1").items}
    assert seeds == {(item.caption, item.seed) for item in Run.opened(swept / "heun-2").items} and len(seeds) == 6
    *captioned, beside = report.grids
    assert len(captioned) == 3 and all(grid.columns == ["1 steps", "2 steps"] for grid in captioned)
    assert [heading for heading, _ in captioned[0].rows] == ["ddim", "heun"] and len(beside.rows) == 3
    assert write(tmp_path, report).read_text("utf-8").count("<img") == 3 * 4 + 3 * 3


def test_a_sweeps_protocol_says_what_the_pictures_follow_from(swept: Path, clip: ClipFeatures) -> None:
    protocol = sweep.protocol(swept, [*CELLS], clip, "kandinsky22 evaluate sweep")
    assert protocol["command"] == "kandinsky22 evaluate sweep"
    run = protocol["run"]
    assert run["weights"]["unet"] and run["captions"]["sha256"] and run["dtype"] == "float32" and run["batch"] == 8
    assert run["request"]["height"] == 64 and run["request"]["decoder"]["guidance_scale"] == 1
    assert protocol["cells"]["ddim-1"] == {}
    assert protocol["cells"]["heun-2"] == {"request.decoder.sampler": "heun", "request.decoder.steps": 2}
    assert protocol["captions"] == {"scenes": 3, "pictures": 6} and protocol["painted_on"][0]["device"] == "cpu"
    assert json.loads(json.dumps(protocol)) == protocol


def cell(name: str, shares: Sequence[float], *, steps: int = 20, scale: float = 4.0) -> sweep.Cell:
    request = text2img("", sampler="ddim", num_inference_steps=steps, guidance_scale=scale)
    right = Rate(round(100 * float(np.sum(shares))), 100 * len(shares))
    rates = {"plain": right, "whole": right}
    return sweep.Cell(name, request, rates, {str(i): share for i, share in enumerate(shares)}, (), 0.0, 0.0)


def test_the_cheapest_cell_near_the_best_is_best() -> None:
    cells = [
        cell("poor", [0.5, 0.6], steps=5),
        cell("enough", [0.6, 0.7], steps=20),
        cell("as many calls", [0.6, 0.69], steps=20),
        cell("most", [0.61, 0.73], steps=50),
    ]
    assert sweep.best(cells).name == "enough" and sweep.best([cells[0], cells[3]]).name == "most"


def test_style_counts_as_well() -> None:
    """A cell that paints what is asked in another style is not near; where none is near in both, the sum decides."""

    def of(name: str, steps: int, plain: int, whole: int) -> sweep.Cell:
        return replace(cell(name, [], steps=steps), rates={"plain": Rate(plain, 100), "whole": Rate(whole, 100)})

    assert sweep.best([of("blurred", 5, 66, 40), of("full", 20, 65, 50)]).name == "full"
    assert sweep.best([of("one", 5, 70, 40), of("other", 20, 60, 52)]).name == "other"


def test_guidance_is_chosen_by_the_same_rule() -> None:
    """Of as many calls, that of guidance 1 computes half; else the highest rate counts."""
    four, six, none = (
        cell("4", [0.5, 0.7, 0.6]),
        cell("6", [0.52, 0.72, 0.61], scale=6),
        cell("1", [0.5, 0.7, 0.6], scale=1),
    )
    assert sweep.best([four, six]).name == "6" and sweep.best([four, six, none]).name == "1"
    assert sweep.best([four, six, cell("1", [0.1, 0.2, 0.1], scale=1)]).name == "6"


def test_captions_that_one_cell_could_not_paint_are_left_out_of_a_comparison() -> None:
    whole, part = cell("whole", [0.5, 0.7, 0.1]), cell("part", [0.4, 0.6])
    assert whole.above(part) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match=r"whole and none have no caption in common; see failed-\*\.jsonl in both"):
        whole.above(cell("none", []))


def test_what_is_painted_around_the_best_cell() -> None:
    chosen = text2img("", sampler="ddim", num_inference_steps=20, guidance_scale=4.0)
    beside = sweep.around("ddim-20", chosen)
    assert [*beside] == [f"ddim-20-guidance-{scale}" for scale in (1, 2, 3, 6)]  # its own is painted already
    linear = sweep.linear("ddim-20", chosen)
    assert linear["ddim-20-linear-prior"].prior.linear
    assert all(r.decoder.steps == 20 and r.decoder.sampler == "ddim" for r in (*beside.values(), *linear.values()))


def test_captions_of_a_file_are_painted_as_they_stand(painter: Here, tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("id,caption,seed\nfirst,a red circle,7\nsecond,a blue star,\n", "utf-8")
    request = text2img("", model="tiny-model", **FEW)  # type: ignore[arg-type]
    begun = generate.begin(painter, tmp_path / "run", captions.read(path), request)
    list(generate.generate(painter, begun))
    with Image.open(tmp_path / "run" / "pictures" / "first.png") as picture:
        alone = painter.backend(text2img("a red circle", seed=7, model="tiny-model", **FEW))[0]  # type: ignore[operator]
        assert np.abs(np.asarray(picture, int) - np.asarray(alone.image, int)).max() <= 1
