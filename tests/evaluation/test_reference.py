"""Statistics of picture sets: measuring folders, adding parts, saving and loading, and comparisons that are refused."""

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
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kandinsky22.evaluation.distances import cmmd, frechet, kernel_distance
from kandinsky22.evaluation.reference import (
    METADATA_KEY,
    Source,
    Statistics,
    find_pictures,
    load,
    load_parts,
    measure,
    save,
    sizes_of,
    source_of,
)
from kandinsky22.moments import Gaussian, Moments
from tests.hostile.corpus import array_header, npz

torch.set_num_threads(1)
DIM = 6


class HalfMeans:
    """A feature network without weights: the mean colours of a picture's two halves. Counts pictures in `seen`."""

    name, fingerprint, resize, dim = "means", "0123456789abcdef", "not at all", DIM
    seen = 0

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        self.seen += len(pictures)
        arrays = [np.asarray(picture, dtype=np.float32) for picture in pictures]
        halves = [np.concatenate([part.mean((0, 1)) for part in np.array_split(array, 2)]) for array in arrays]
        return torch.from_numpy(np.stack(halves))


SOURCE = Source(HalfMeans.name, HalfMeans.fingerprint, HalfMeans.resize)


def noise(seed: int, width: int = 8, height: int = 6) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, rng.integers(50, 256), (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty pictures of several formats in subfolders, hidden pictures, and a file that is no picture."""
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
        (a.source, a.names, a.sizes) == (b.source, b.names, b.sizes)
        and torch.equal(a.rows, b.rows)
        and torch.allclose(a.moments.mean, b.moments.mean, rtol=1e-12)
        and torch.allclose(a.moments.scatter, b.moments.scatter, rtol=1e-10)
    )


def test_measure_orders_pictures_by_name(folder: Path) -> None:
    features, progress = HalfMeans(), []
    pictures = find_pictures(folder)
    statistics = measure(pictures, features, batch=8, progress=lambda done, of: progress.append((done, of)))
    assert progress == [(8, 20), (16, 20), (20, 20)]
    assert (
        statistics.names == tuple(sorted(pictures)) and len(statistics.names) == 20 and "b/c/1.jpg" in statistics.names
    )
    rows = HalfMeans()([Image.open(folder / name).convert("RGB") for name in statistics.names])
    assert torch.equal(statistics.rows, rows)
    assert (
        statistics.count == 20
        and statistics.source == source_of(features) == SOURCE
        and statistics.sizes == ((6, 8), (6, 9))
    )
    assert isinstance(statistics.moments, Moments)
    assert torch.allclose(
        statistics.moments.covariance, torch.from_numpy(np.cov(rows.double().numpy(), rowvar=False)), rtol=1e-10
    )


def test_saved_statistics_are_loaded_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    statistics = measure(find_pictures(folder), HalfMeans())
    path = tmp_path / "new" / "reference.safetensors"
    save(path, statistics)
    loaded = load(path)
    assert equal(statistics, loaded)
    assert isinstance(statistics.moments, Moments)
    assert isinstance(loaded.moments, Moments)
    assert (
        torch.equal(statistics.moments.scatter, loaded.moments.scatter)
        and loaded.moments.scatter.dtype == torch.float64
    )
    assert loaded.rows.dtype == torch.float32
    assert [file.name for file in path.parent.iterdir()] == ["reference.safetensors"]


def test_statistics_of_parts_add_up_in_any_order(folder: Path) -> None:
    pictures = list(find_pictures(folder).items())
    complete = measure(dict(pictures), HalfMeans())
    parts = [measure(dict(pictures[i::3]), HalfMeans(), batch=2) for i in range(3)]
    assert equal(complete, reduce(add, parts))
    assert equal(complete, parts[2] + (parts[0] + parts[1]))
    backwards = measure(dict(reversed(pictures)), HalfMeans())
    assert equal(complete, backwards)
    other = random_statistics(30)
    total = reduce(add, reversed(parts))
    assert frechet(total.moments, other.moments) == pytest.approx(frechet(complete.moments, other.moments), rel=1e-9)
    assert kernel_distance(total.rows, other.rows, size=10) == kernel_distance(complete.rows, other.rows, size=10)
    assert cmmd(total.rows, other.rows) == cmmd(complete.rows, other.rows)


def test_adding_statistics_refuses_a_picture_in_both(folder: Path) -> None:
    statistics = measure(find_pictures(folder), HalfMeans())
    with pytest.raises(
        ValueError, match=r"the picture 11.bmp was measured twice; leave out one of the parts that have it"
    ):
        _ = statistics + measure({"11.bmp": folder / "11.bmp"}, HalfMeans())


def test_statistics_refuse_features_that_are_not_finite() -> None:
    with pytest.raises(FloatingPointError, match="features by means are not finite"):
        Statistics.of(SOURCE, ["a", "b"], torch.tensor([[1.0], [torch.nan]]), [])


def random_statistics(count: int = 9, size: tuple[int, int] = (64, 64), source: Source = SOURCE) -> Statistics:
    rows = torch.randn(count, DIM, generator=torch.Generator().manual_seed(count))
    return Statistics.of(source, [str(k) for k in range(count)], rows, [size])


def test_check_accepts_sets_of_the_same_source_and_size() -> None:
    mixed = Statistics.of(SOURCE, ["a", "b"], torch.rand(2, DIM), [(64, 64), (480, 640)])
    random_statistics().check(random_statistics(12))
    random_statistics().check(SOURCE)
    random_statistics().check(mixed)
    random_statistics().check(random_statistics(size=(32, 32)), any_size=True)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            random_statistics(source=SOURCE._replace(fingerprint="ffff00001111x")),
            r"with means \(0123456789ab\), and .* means \(ffff00001111\); use",
        ),
        (
            SOURCE._replace(name="medians"),
            r"measured with means .*, and the pictures with medians \(0123456789ab\); use the same",
        ),
        (
            SOURCE._replace(resize="legacy"),
            r"resized by another method \(not at all\) than the pictures \(legacy\); measure one of them",
        ),
        (
            random_statistics(size=(32, 48)),
            "reference's pictures are all 64x64 and the others all 32x48, .*; use one size for both, or allow any",
        ),
    ],
)
def test_check_refuses_sets_of_another_source_or_size(other: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        random_statistics().check(other)
    assert "\n" not in str(raised.value)


def test_adding_statistics_refuses_different_sources() -> None:
    with pytest.raises(ValueError, match="not made by the same network in the same way"):
        _ = random_statistics() + random_statistics(source=SOURCE._replace(resize="legacy"))


def test_load_reads_a_published_mean_and_covariance_for_fid_alone(tmp_path: Path) -> None:
    ours = random_statistics(50)
    assert isinstance(ours.moments, Moments)
    path = tmp_path / "coco.npz"
    np.savez_compressed(path, mu=ours.moments.mean.numpy(), sigma=ours.moments.covariance.numpy())
    public = load(path)
    assert isinstance(public.moments, Gaussian) and public.count == float("inf") and public.names == ()
    public.check(ours)
    other = random_statistics(40)
    assert frechet(other.moments, public.moments) == pytest.approx(frechet(other.moments, ours.moments), rel=1e-12)
    with pytest.raises(
        ValueError, match="a mean and a covariance, which suffice for FID; KID and CMMD need its pictures'"
    ):
        _ = public.rows


@pytest.mark.parametrize("name", ["reference.npz", "reference.safetensors"])
def test_load_refuses_missing_and_damaged_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(ValueError, match=rf"{name} does not exist; make it with `kandinsky22 evaluate stats FOLDER`"):
        load(path)
    good = tmp_path / "good.safetensors"
    save(good, random_statistics())
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
def test_load_refuses_arrays_of_the_wrong_shape_or_type(arrays: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", **arrays)
    with pytest.raises(ValueError, match="holds no statistics that can be read"):
        load(tmp_path / "reference.npz")


@pytest.mark.parametrize(("offset", "value"), [(8, 1), (10, 14), (10, 12), (10, 99)])
def test_load_refuses_archives_that_are_encrypted_or_packed_in_other_ways(
    offset: int, value: int, tmp_path: Path
) -> None:
    """Changes the entries of the directory: their flags, of which bit 0 is for encryption, or their compression."""
    path = tmp_path / "reference.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    content = bytearray(path.read_bytes())
    start = -1
    while (start := content.find(b"PK\1\2", start + 1)) >= 0:
        content[start + offset] = value
    path.write_bytes(content)
    with pytest.raises(ValueError, match="holds no statistics that can be read"):
        load(path)


@pytest.mark.parametrize(
    ("mu", "sigma", "problem"),
    [
        (np.zeros(3), np.full((3, 3), np.nan), "its mu or sigma is not finite"),
        (np.array([0, np.inf, 0]), np.eye(3), "its mu or sigma is not finite"),
        (np.zeros(3), -np.eye(3), "its sigma has variances below 0"),
        (np.zeros(3), np.diag([1, 1, -0.01]), "its sigma has variances below 0"),
        (np.zeros(3), np.zeros((3, 3)), "its sigma has variances below 0"),
        (np.zeros(3), np.eye(3) + np.eye(3, k=1), "its sigma is not symmetric"),
    ],
)
def test_load_refuses_a_sigma_that_is_not_a_covariance(
    mu: np.ndarray, sigma: np.ndarray, problem: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "reference.npz", mu=mu, sigma=sigma)
    with pytest.raises(
        ValueError,
        match=f"reference.npz: {problem}, so it is not the mean and covariance of features; download it again",
    ):
        load(tmp_path / "reference.npz")


def test_load_accepts_a_covariance_with_rounding_errors(tmp_path: Path) -> None:
    """Of rank 3 in 6 dimensions, in float32: rounding makes some eigenvalues negative."""
    rows = np.random.default_rng(0).standard_normal((40, 3)) @ np.ones((3, DIM))
    np.savez(tmp_path / "reference.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False).astype(np.float32))
    assert load(tmp_path / "reference.npz").count == float("inf")


def test_load_parts_adds_statistics_from_files(folder: Path, tmp_path: Path) -> None:
    pictures = [*find_pictures(folder).items()]
    parts = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for i, part in enumerate(parts):
        save(part, measure(dict(pictures[i::3]), HalfMeans()))
    assert equal(load_parts(parts), measure(dict(pictures), HalfMeans()))
    with pytest.raises(ValueError, match="was measured twice; leave out one of the parts that have it"):
        load_parts([*parts, parts[0]])


def test_find_pictures_joins_several_folders(folder: Path, tmp_path: Path) -> None:
    assert find_pictures(folder / "a", folder / "b").keys() == {
        *find_pictures(folder / "a"),
        *find_pictures(folder / "b"),
    }
    with pytest.raises(
        ValueError, match=r"0.png is in two of the folders, one of them .*a; give the folder above both"
    ):
        find_pictures(folder / "a", folder / "a")


def test_sizes_from_headers_equal_those_of_decoded_pictures(folder: Path) -> None:
    pictures = find_pictures(folder)
    assert sizes_of(pictures, decode=False) == sizes_of(pictures) == [(6, 8), (6, 9)]


def test_load_refuses_tensors_that_do_not_fit_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    save(path, random_statistics())
    tensors = load_file(path)
    about = {"weight": 8, "by": SOURCE._asdict(), "names": [str(k) for k in range(8)], "sizes": [[6, 8]]}
    for metadata in (None, {"kandinsky22": "{}"}, {"kandinsky22": json.dumps(about)}):
        save_file(tensors, path, metadata)
        with pytest.raises(ValueError, match="holds no statistics that can be read"):
            load(path)


def test_find_pictures_refuses_folders_without_pictures(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no pictures \(.png, .jpg, .*, .bmp, .avif\); give the folder"):
        find_pictures(tmp_path / "empty")
    for place in (tmp_path / "nowhere", folder / "notes.txt"):
        with pytest.raises(ValueError, match="is not a folder; give a folder of pictures"):
            find_pictures(place)


def test_measure_names_broken_pictures_before_computing_features(folder: Path) -> None:
    webp = (folder / "2.WEBP").read_bytes()
    contents = [b"", b"not a picture", webp[: len(webp) // 2], noise(1, 40, 40).tobytes()[:200]]
    for k, content in enumerate(contents):
        (folder / f"a/broken{k}.png").write_bytes(content)
    features = HalfMeans()
    with pytest.raises(
        ValueError,
        match=r"4 of 24 pictures cannot be read \(a/broken0.png, a/broken1.png, a/broken2.png and 1 more\); repair",
    ):
        measure(find_pictures(folder), features)
    assert features.seen == 0


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_measure_reads_pictures_of_every_mode(mode: str, tmp_path: Path) -> None:
    picture = noise(1).convert(mode)
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    picture.save(path, **({"transparency": bytes([0, 128] * 8)} if mode == "P" else {}))
    assert measure(find_pictures(tmp_path), HalfMeans()).rows.shape == (1, DIM)


def test_an_npz_that_declares_more_than_it_has_is_refused(tmp_path: Path) -> None:
    """Before memory is allocated for its arrays."""
    path = tmp_path / "reference.npz"
    row = array_header((1,)) + bytes(8)
    for sigma in (
        array_header((10**6, 10**6)),
        array_header((10**4, 10**4)) + bytes(8 * 10**6),
        array_header((2, 2), "|O") + bytes(32),
        array_header((2, 2), "<i8") + bytes(32),
        array_header((-1, 2)) + bytes(32),
        b"",
    ):
        path.write_bytes(npz(mu=row, sigma=sigma))
        with pytest.raises(ValueError, match=r"reference\.npz holds no statistics that can be read"):
            load(path)


@pytest.mark.parametrize(
    "change",
    [{"names": [1, 2]}, {"names": 3}, {"weight": "x"}, {"weight": -1.0}, {"sizes": [1]}, {"by": {}}, {"by": [1, 2, 3]}],
    ids=str,
)
def test_statistics_with_metadata_of_other_types_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    features = torch.randn(2, DIM, generator=torch.Generator().manual_seed(0))
    save(tmp_path / "a.safetensors", Statistics.of(Source("a", "b", "c"), ["x", "y"], features, [(8, 8)]))
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()[METADATA_KEY])
    tensors = load_file(tmp_path / "a.safetensors")
    save_file(tensors, tmp_path / "a.safetensors", {METADATA_KEY: json.dumps({**metadata, **change})})
    with pytest.raises(ValueError, match=r"a\.safetensors holds no statistics that can be read"):
        load(tmp_path / "a.safetensors")
