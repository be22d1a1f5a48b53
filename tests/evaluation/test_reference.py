"""Reference statistics: kept and read back, added up by workers, compared only with their like; folders of every kind."""

import json
from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from kandinsky22.evaluation.distances import cmmd, frechet, kernel_distance
from kandinsky22.evaluation.reference import By, Statistics, by, load, measure, merged, pictures_in, save, sizes_of
from kandinsky22.moments import Gaussian, Moments

torch.set_num_threads(1)
DIM = 6


class Means:
    """A feature network of few words: the means of a picture's two halves."""

    name, fingerprint, resize, dim = "means", "0123456789abcdef", "not at all", DIM
    seen = 0

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        self.seen += len(pictures)
        arrays = [np.asarray(picture, dtype=np.float32) for picture in pictures]
        halves = [np.concatenate([part.mean((0, 1)) for part in np.array_split(array, 2)]) for array in arrays]
        return torch.from_numpy(np.stack(halves))


BY = By(Means.name, Means.fingerprint, Means.resize)


def noise(seed: int, width: int = 8, height: int = 6) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, rng.integers(50, 256), (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty pictures, in folders, of several kinds; and what is no picture."""
    place = tmp_path / "pictures"
    for k in range(20):
        path = place / ("a", "b/c", ".")[k % 3] / f"{k}{('.png', '.jpg', '.WEBP', '.bmp')[k % 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(k, width=8 + k % 2).save(path)
    (place / "notes.txt").write_text("not a picture")
    (place / ".hidden").mkdir()
    noise(99).save(place / ".hidden" / "thumbnail.png")
    noise(98).save(place / ".cover.png")
    return place


def equal(a: Statistics, b: Statistics) -> bool:
    assert isinstance(a.moments, Moments)
    assert isinstance(b.moments, Moments)
    return (
        (a.by, a.names, a.sizes) == (b.by, b.names, b.sizes)
        and torch.equal(a.rows, b.rows)
        and torch.allclose(a.moments.mean, b.moments.mean, rtol=1e-12)
        and torch.allclose(a.moments.scatter, b.moments.scatter, rtol=1e-10)
    )


def test_a_folder_is_measured_in_the_order_of_names(folder: Path) -> None:
    features, told = Means(), []
    pictures = pictures_in(folder)
    found = measure(pictures, features, batch=8, progress=lambda done, of: told.append((done, of)))
    assert told == [(8, 20), (16, 20), (20, 20)]
    assert found.names == tuple(sorted(pictures)) and len(found.names) == 20 and "b/c/1.jpg" in found.names
    rows = Means()([Image.open(folder / name).convert("RGB") for name in found.names])
    assert torch.equal(found.rows, rows)
    assert found.count == 20 and found.by == by(features) == BY and found.sizes == ((6, 8), (6, 9))
    assert isinstance(found.moments, Moments)
    assert torch.allclose(
        found.moments.covariance, torch.from_numpy(np.cov(rows.double().numpy(), rowvar=False)), rtol=1e-10
    )


def test_it_is_kept_and_read_back_to_the_bit(folder: Path, tmp_path: Path) -> None:
    found = measure(pictures_in(folder), Means())
    path = tmp_path / "kept" / "reference.safetensors"
    save(path, found)
    again = load(path)
    assert equal(found, again)
    assert isinstance(found.moments, Moments)
    assert isinstance(again.moments, Moments)
    assert torch.equal(found.moments.scatter, again.moments.scatter) and again.moments.scatter.dtype == torch.float64
    assert again.rows.dtype == torch.float32
    assert [file.name for file in path.parent.iterdir()] == ["reference.safetensors"]


def test_shares_of_workers_add_up_whoever_measured_what(folder: Path) -> None:
    pictures = list(pictures_in(folder).items())
    whole = measure(dict(pictures), Means())
    shares = [measure(dict(pictures[i::3]), Means(), batch=2) for i in range(3)]
    assert equal(whole, reduce(add, shares))
    assert equal(whole, shares[2] + (shares[0] + shares[1]))
    backwards = measure(dict(reversed(pictures)), Means())
    assert equal(whole, backwards)
    other = of(30)
    merged = reduce(add, reversed(shares))
    assert frechet(merged.moments, other.moments) == pytest.approx(frechet(whole.moments, other.moments), rel=1e-9)
    assert kernel_distance(merged.rows, other.rows, size=10) == kernel_distance(whole.rows, other.rows, size=10)
    assert cmmd(merged.rows, other.rows) == cmmd(whole.rows, other.rows)


def test_a_picture_counts_once(folder: Path) -> None:
    found = measure(pictures_in(folder), Means())
    with pytest.raises(ValueError, match=r"the picture 11.bmp was measured twice; leave out one of its shares"):
        _ = found + measure({"11.bmp": folder / "11.bmp"}, Means())


def test_features_that_are_not_finite() -> None:
    with pytest.raises(FloatingPointError, match="features by means are not finite"):
        Statistics.of(BY, ["a", "b"], torch.tensor([[1.0], [torch.nan]]), [])


def of(count: int = 9, size: tuple[int, int] = (64, 64), made_by: By = BY) -> Statistics:
    rows = torch.randn(count, DIM, generator=torch.Generator().manual_seed(count))
    return Statistics.of(made_by, [str(k) for k in range(count)], rows, [size])


def test_sets_that_are_alike_are_compared() -> None:
    mixed = Statistics.of(BY, ["a", "b"], torch.rand(2, DIM), [(64, 64), (480, 640)])
    of().check(of(12))
    of().check(BY)
    of().check(mixed)
    of().check(of(size=(32, 32)), any_size=True)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            of(made_by=BY._replace(fingerprint="ffff00001111x")),
            r"with means \(0123456789ab\), and .* means \(ffff00001111\); use",
        ),
        (
            BY._replace(name="medians"),
            r"measured with means .*, and the pictures with medians \(0123456789ab\); use the same",
        ),
        (
            BY._replace(resize="legacy"),
            r"resized otherwise \(not at all\) than the pictures \(legacy\); measure one of them",
        ),
        (
            of(size=(32, 48)),
            "reference's pictures are all 64x64 and the others all 32x48, .*; bring them to one size, or say",
        ),
    ],
)
def test_sets_that_are_not_alike_are_refused(other: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        of().check(other)
    assert "\n" not in str(caught.value)


def test_shares_by_different_networks_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="not made by the same network in the same way"):
        _ = of() + of(made_by=BY._replace(resize="legacy"))


def test_a_public_file_does_for_fid_alone(tmp_path: Path) -> None:
    ours = of(50)
    assert isinstance(ours.moments, Moments)
    path = tmp_path / "coco.npz"
    np.savez_compressed(path, mu=ours.moments.mean.numpy(), sigma=ours.moments.covariance.numpy())
    public = load(path)
    assert isinstance(public.moments, Gaussian) and public.count == float("inf") and public.names == ()
    public.check(ours)
    other = of(40)
    assert frechet(other.moments, public.moments) == pytest.approx(frechet(other.moments, ours.moments), rel=1e-12)
    with pytest.raises(ValueError, match="a mean and a covariance, which FID needs; KID and CMMD need its pictures"):
        _ = public.rows


@pytest.mark.parametrize("name", ["reference.npz", "reference.safetensors"])
def test_files_that_hold_no_statistics(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(ValueError, match=rf"{name} is not there; make it with `kandinsky22 evaluate stats FOLDER`"):
        load(path)
    good = tmp_path / "good.safetensors"
    save(good, of())
    for content in (b"", b"not statistics", b"PK\3\4", good.read_bytes()[:-5], bytes(64)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} holds no statistics that can be read; make them again"):
            load(path)


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": np.zeros(3)},
        {"mu": np.zeros(3), "sigma": np.eye(4)},
        {"mu": np.zeros((3, 3)), "sigma": np.eye(3)},
        {"mu": np.array(["a"] * 3), "sigma": np.eye(3)},
        {"mu": np.array([{}, {}, {}], dtype=object), "sigma": np.eye(3)},
    ],
)
def test_arrays_that_are_no_mean_and_covariance(arrays: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", **arrays)
    with pytest.raises(ValueError, match="holds no statistics that can be read"):
        load(tmp_path / "reference.npz")


@pytest.mark.parametrize(
    ("mu", "sigma", "said"),
    [
        (np.zeros(3), np.full((3, 3), np.nan), "its mu or sigma is not finite"),
        (np.array([0, np.inf, 0]), np.eye(3), "its mu or sigma is not finite"),
        (np.zeros(3), -np.eye(3), "its sigma has variances below 0"),
        (np.zeros(3), np.diag([1, 1, -0.01]), "its sigma has variances below 0"),
        (np.zeros(3), np.zeros((3, 3)), "its sigma has variances below 0"),
        (np.zeros(3), np.eye(3) + np.eye(3, k=1), "its sigma is not symmetric"),
    ],
)
def test_a_sigma_that_is_no_covariance(mu: np.ndarray, sigma: np.ndarray, said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", mu=mu, sigma=sigma)
    with pytest.raises(
        ValueError, match=f"reference.npz: {said}, so it is no mean and covariance of features; get it again"
    ):
        load(tmp_path / "reference.npz")


def test_a_covariance_that_was_rounded_is_one(tmp_path: Path) -> None:
    """Of rank 3 in 6 dimensions, as float32 keeps it: some variances are below 0 by rounding."""
    rows = np.random.default_rng(0).standard_normal((40, 3)) @ np.ones((3, DIM))
    np.savez(tmp_path / "reference.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False).astype(np.float32))
    assert load(tmp_path / "reference.npz").count == float("inf")


def test_parts_in_files_are_merged(folder: Path, tmp_path: Path) -> None:
    pictures = [*pictures_in(folder).items()]
    parts = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for i, part in enumerate(parts):
        save(part, measure(dict(pictures[i::3]), Means()))
    assert equal(merged(parts), measure(dict(pictures), Means()))
    with pytest.raises(ValueError, match="was measured twice; leave out one of its shares"):
        merged([*parts, parts[0]])


def test_several_folders_are_one_set(folder: Path, tmp_path: Path) -> None:
    assert pictures_in(folder / "a", folder / "b").keys() == {*pictures_in(folder / "a"), *pictures_in(folder / "b")}
    with pytest.raises(ValueError, match=r"0.png is in two of the folders, .*a among them; give the folder above both"):
        pictures_in(folder / "a", folder / "a")


def test_sizes_by_the_first_bytes_are_those_of_whole_pictures(folder: Path) -> None:
    pictures = pictures_in(folder)
    assert sizes_of(pictures, whole=False) == sizes_of(pictures) == [(6, 8), (6, 9)]


def test_tensors_that_are_not_of_one_set(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    save(path, of())
    tensors = load_file(path)
    about = {"weight": 8, "by": BY._asdict(), "names": [str(k) for k in range(8)], "sizes": [[6, 8]]}
    for metadata in (None, {"kandinsky22": "{}"}, {"kandinsky22": json.dumps(about)}):
        save_file(tensors, path, metadata)
        with pytest.raises(ValueError, match="holds no statistics that can be read"):
            load(path)


def test_folders_without_pictures(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"empty holds no pictures \(.jpg, .jpeg, .png, .webp, .bmp\); give the folder"
    ):
        pictures_in(tmp_path / "empty")
    for place in (tmp_path / "nowhere", folder / "notes.txt"):
        with pytest.raises(ValueError, match="is not a folder; give a folder of pictures"):
            pictures_in(place)


def test_broken_pictures_are_named_before_anything_is_computed(folder: Path) -> None:
    whole = (folder / "2.WEBP").read_bytes()
    contents = [b"", b"not a picture", whole[: len(whole) // 2], noise(1, 40, 40).tobytes()[:200]]
    for k, content in enumerate(contents):
        (folder / f"a/broken{k}.png").write_bytes(content)
    features = Means()
    with pytest.raises(
        ValueError,
        match=r"4 of 24 pictures cannot be read \(a/broken0.png, a/broken1.png, a/broken2.png and 1 more\); repair",
    ):
        measure(pictures_in(folder), features)
    assert features.seen == 0


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_pictures_of_other_modes_are_read(mode: str, tmp_path: Path) -> None:
    picture = noise(1).convert(mode)
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    picture.save(path, **({"transparency": bytes([0, 128] * 8)} if mode == "P" else {}))
    assert measure(pictures_in(tmp_path), Means()).rows.shape == (1, DIM)
