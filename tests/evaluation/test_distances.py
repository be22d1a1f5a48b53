"""FID, KID, CMMD and CLIP score against scipy, torchmetrics, closed forms and the authors' formulas."""

import math
import warnings
from functools import reduce
from operator import add
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from kandinsky22.evaluation.distances import Mean, clip_score, cmmd, frechet, kernel_distance
from kandinsky22.moments import Gaussian, Moments

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchmetrics.functional.multimodal.clip_score import clip_score as their_clip_score
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

torch.set_num_threads(1)
DIM = 48


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def features(count: int, seed: int) -> Tensor:
    """Correlated, non-normal, non-negative features of unequal scales, as Inception's are."""
    mix = draw(DIM, DIM, seed=99) * torch.logspace(-2, 0.5, DIM, dtype=torch.float64)
    return (draw(count, DIM, seed=seed) @ mix + 0.1 * seed).relu()


A, B = features(400, 1), features(300, 2)


class Identity(nn.Module):
    """A feature network for torchmetrics whose input is the features."""

    num_features = DIM

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_fid_equals_the_formula_with_scipys_matrix_root() -> None:
    ours = frechet(Moments.of(A), Moments.of(B))
    p, q = (np.cov(x.numpy(), rowvar=False) for x in (A, B))
    means = ((A.mean(0) - B.mean(0)) ** 2).sum()
    theirs = float(means) + np.trace(p) + np.trace(q) - 2 * np.trace(sqrtm(p @ q).real)
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_fid_equals_torchmetrics() -> None:
    metric = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    metric.update(A, real=True)
    metric.update(B, real=False)
    assert frechet(Moments.of(A), Moments.of(B)) == pytest.approx(float(metric.compute()), rel=1e-9)


def test_fid_of_commuting_gaussians_has_its_closed_form() -> None:
    ones = torch.ones(5, dtype=torch.float64)
    p, q = torch.tensor([1.0, 2, 3, 4, 5]).double(), torch.tensor([4.0, 1, 0, 9, 5]).double()
    turn = torch.linalg.qr(draw(5, 5))[0]
    a = Gaussian(ones, turn @ p.diag() @ turn.T)
    b = Gaussian(3 * ones, turn @ q.diag() @ turn.T)  # with a singular covariance
    assert frechet(a, b) == pytest.approx(20 + float((p.sqrt() - q.sqrt()).square().sum()), rel=1e-12)


def test_fid_of_2x2_covariances_has_its_closed_form() -> None:
    """For 2x2 matrices, the trace of (AB)^(1/2) is sqrt(tr AB + 2 sqrt(det AB))."""
    p, q = (x.T @ x for x in (draw(2, 2, seed=3), draw(2, 2, seed=4)))
    common = math.sqrt(float((p @ q).trace()) + 2 * math.sqrt(float(torch.det(p @ q))))
    zero = torch.zeros(2, dtype=torch.float64)
    known = float(p.trace() + q.trace()) - 2 * common
    assert frechet(Gaussian(zero, p), Gaussian(zero, q)) == pytest.approx(known, rel=1e-10)


def test_fid_is_symmetric_and_zero_for_equal_sets() -> None:
    a, b = Moments.of(A), Moments.of(B)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-12)
    assert 0 <= frechet(a, a) < 1e-10
    assert frechet(a, Moments(a.weight, a.mean + 2, a.scatter)) == pytest.approx(4 * DIM, rel=1e-10)


def test_fid_from_added_moments_equals_fid_at_once() -> None:
    parts = reduce(add, map(Moments.of, A[torch.randperm(len(A))].split([1, 150, 249])))
    assert frechet(parts, Moments.of(B)) == pytest.approx(frechet(Moments.of(A), Moments.of(B)), rel=1e-10)


def test_fid_refuses_too_few_pictures() -> None:
    with pytest.raises(
        ValueError, match=r"^a covariance of 48 features needs more than 48 pictures, got 48 and 300; give"
    ):
        frechet(Moments.of(A[:48]), Moments.of(B))
    assert frechet(Moments.of(A[:49]), Moments.of(B)) > 0


@pytest.mark.parametrize("distance", [lambda a, b: frechet(Moments.of(a), Moments.of(b)), kernel_distance, cmmd])
def test_distances_refuse_features_of_different_dimensions(distance: Any) -> None:
    with pytest.raises(ValueError, match="48 and 47 dimensions, so they are from two networks"):
        distance(A, B[:, 1:])


@pytest.mark.parametrize(("subsets", "size", "seed"), [(7, 200, 0), (3, 300, 5)])
def test_kid_equals_torchmetrics_on_the_same_subsets(subsets: int, size: int, seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = KernelInceptionDistance(feature=Identity(), subsets=subsets, subset_size=size)
    metric.update(A, real=True)
    metric.update(B, real=False)
    torch.manual_seed(seed)
    mean, deviation = metric.compute()
    ours = kernel_distance(A, B, subsets=subsets, size=size, seed=seed)
    assert ours.mean == pytest.approx(float(mean), rel=1e-9)
    assert ours.deviation == pytest.approx(float(deviation), rel=1e-6)


def test_kid_equals_the_papers_sum() -> None:
    x, y = A[:6], B[:6]
    k = lambda p, q: (float(p @ q) / DIM + 1) ** 3  # noqa: E731  # the paper's kernel
    pairs = [(i, j) for i in range(6) for j in range(6)]
    within = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in pairs if i != j) / 30
    known = within - 2 * sum(k(x[i], y[j]) for i, j in pairs) / 36
    ours = kernel_distance(x, y, subsets=2, size=6)
    assert ours.mean == pytest.approx(known, rel=1e-10)
    assert ours.deviation < 1e-12 * abs(known)


def test_kid_is_near_zero_for_samples_of_one_distribution() -> None:
    """The unbiased estimate is near 0 for samples of the same distribution, and far from 0 for another."""
    one, same, other = draw(600, 16), draw(600, 16, seed=1), draw(600, 16, seed=2) + 0.5
    alike, unlike = (kernel_distance(one, rows, subsets=20, size=200) for rows in (same, other))
    assert abs(alike.mean) < 3 * alike.deviation < unlike.mean / 2


def test_kid_is_reproducible_and_leaves_torchs_global_generator_alone() -> None:
    state = torch.get_rng_state()
    one = kernel_distance(A, B, subsets=3, size=50, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert kernel_distance(A.float(), B.float(), subsets=3, size=50, seed=1) == pytest.approx(one, rel=1e-4)
    assert kernel_distance(A, B, subsets=3, size=50, seed=1) == one
    assert kernel_distance(A, B, subsets=3, size=50, seed=2) != one


@pytest.mark.parametrize("size", [1, 301, 1000])
def test_kid_refuses_too_few_pictures(size: int) -> None:
    with pytest.raises(
        ValueError, match=rf"subsets of {size} need at least 2 .*: 400 and 300; .* a size of at most 300,"
    ):
        kernel_distance(A, B, size=size)


def google_cmmd(x: np.ndarray, y: np.ndarray) -> float:
    """google-research/cmmd/distance.py, step by step, in float64; its embedding network normalises."""
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    gamma = 1 / (2 * 10**2)

    def mean_kernel(p: np.ndarray, q: np.ndarray) -> float:
        squares = (p**2).sum(1)[:, None] + (q**2).sum(1)[None, :] - 2 * p @ q.T
        return np.exp(-gamma * squares).mean()

    return 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))


@pytest.mark.parametrize("block", [2048, 64, 31])
def test_cmmd_equals_googles_formula(block: int) -> None:
    ours = cmmd(A.float(), 4 * B.float(), block=block)
    assert ours == pytest.approx(google_cmmd(A.float().double().numpy(), B.float().double().numpy()), rel=1e-9)


def test_cmmd_of_single_embeddings_has_its_closed_form() -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    assert cmmd(a, b) == pytest.approx(1000 * (2 - 2 * math.exp(-2 / 200)), rel=1e-12)
    assert cmmd(a, -a) == pytest.approx(1000 * (2 - 2 * math.exp(-4 / 200)), rel=1e-12)


def test_cmmd_is_symmetric_and_zero_for_equal_sets() -> None:
    assert abs(cmmd(A, A)) < 1e-9
    assert cmmd(A, B) == pytest.approx(cmmd(B.flip(0), A.flip(0)), rel=1e-9)


def test_cmmd_refuses_an_empty_set() -> None:
    with pytest.raises(ValueError, match="pictures on both sides, got 0 and 300"):
        cmmd(A[:0], B)


def test_clip_score_equals_torchmetrics() -> None:
    texts, images = draw(20, 8), draw(20, 8, seed=1) * 0.5 + draw(20, 8)
    assert (torch.cosine_similarity(texts, images) > 0).all()

    class Model(nn.Module):
        config = SimpleNamespace()
        get_image_features = staticmethod(lambda pixels: pixels)
        get_text_features = staticmethod(lambda ids, mask: ids)

    def processor(images: Any = None, text: Any = None, **_: Any) -> dict[str, Tensor]:
        if images is not None:
            return {"pixel_values": torch.stack(images)[:, 0, 0]}
        chosen = texts[[int(index) for index in text]]
        return {"input_ids": chosen, "attention_mask": chosen}

    theirs = their_clip_score([*images[:, None, None]], [str(i) for i in range(20)], lambda: (Model(), processor))
    assert clip_score(texts, images).value == pytest.approx(float(theirs), rel=1e-9)


def test_clip_score_clamps_each_picture_at_zero() -> None:
    texts = torch.tensor([[1.0, 0.0]] * 3)
    images = torch.tensor([[3.0, 0.0], [-1.0, 0.0], [1.0, 1.0]])
    score = clip_score(texts, images)
    values = torch.tensor([100, 0, 100 * 0.5**0.5]).double()
    assert score.value == pytest.approx(float(values.mean()), rel=1e-7)
    assert score.error == pytest.approx(float(values.std()) / 3**0.5, rel=1e-6)
    assert score.interval == pytest.approx((score.value - 1.959964 * score.error, score.value + 1.959964 * score.error))


def test_clip_scores_of_parts_add_up() -> None:
    texts, images = draw(100, 8), draw(100, 8, seed=1)
    complete = clip_score(texts, images)
    parts = [clip_score(t, i) for t, i in zip(texts.split([1, 60, 39]), images.split([1, 60, 39]), strict=True)]
    merged = reduce(add, reversed(parts))
    assert merged.count == 100
    assert (merged.value, merged.error) == pytest.approx((complete.value, complete.error), rel=1e-12)
    assert math.isnan(Mean.of(texts[:1, 0]).error)


def test_clip_score_refuses_unpaired_embeddings() -> None:
    with pytest.raises(
        ValueError, match=r"one caption embedding per picture, of the same CLIP, got \[3, 8\] of texts and \[2, 8\]"
    ):
        clip_score(draw(3, 8), draw(2, 8))
