"""Fitting the linear prior: it finds a known map, equals numpy's least squares, and is stable for few rows."""

import math
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from torch import Tensor

from kandinsky22.models.clip import CLIPText, CLIPTextConfig
from kandinsky22.models.tokenizer import Tokenizer, learn
from kandinsky22.moments import Moments
from kandinsky22.training.linear_prior import fit, ridge_regression
from kandinsky22.training.prior import CaptionedEmbeds
from tests.models_on_disk import randomise

E, D = 6, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def closed_form(x: Tensor, y: Tensor, ridge: float, weights: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Numpy's least squares: the ridge is E additional rows, the intercept, which is not penalised, a column of
    ones."""
    w = np.ones(len(x)) if weights is None else weights.numpy()
    mean = np.average(x.numpy(), axis=0, weights=w)
    variance = np.average((x.numpy() - mean) ** 2, axis=0, weights=w).mean()
    root = np.sqrt(w / w.sum())[:, None]
    rows = np.concatenate(
        [np.concatenate([x.numpy(), np.ones((len(x), 1))], 1) * root, np.eye(E, E + 1) * np.sqrt(ridge * variance)]
    )
    solution = np.linalg.lstsq(rows, np.concatenate([y.numpy() * root, np.zeros((E, y.shape[1]))]))[0]
    return solution[:-1].T, solution[-1]


@pytest.fixture(scope="module")
def text_model() -> tuple[CLIPText, Tokenizer]:
    """A text tower with random weights, and its tokenizer."""
    tokenizer = learn(["picture number nine"], 600, 16)
    network = CLIPText(
        CLIPTextConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            projection_dim=E,
            layer_norm_eps=1e-5,
            hidden_act="gelu",
            vocab_size=len(tokenizer.vocab),
            max_position_embeddings=16,
        )
    )
    randomise(network)
    return network.eval(), tokenizer


def captions(indices: np.ndarray, rng: np.random.Generator) -> list[str]:
    return [f"picture {i * 7919 % 1000}" for i in indices]


def random_captions(indices: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Different captions at each call."""
    return [f"{i} {rng.choice(['blue', 'red', 'wide'])}" for i in indices]


@torch.no_grad()
def encoded_captions(text_model: tuple[CLIPText, Tokenizer], count: int, first: int = 0) -> Tensor:
    text, tokenizer = text_model
    return text(tokenizer(captions(np.arange(first, first + count), np.random.default_rng(0))).ids).embed.double()


def test_ridge_regression_equals_numpys_least_squares() -> None:
    x, y = draw(200, E) @ draw(E, E, seed=1) + 3, draw(200, D, seed=2) - 5
    for ridge in (0.0, 1e-3, 1.0):
        ours = ridge_regression(Moments.of(torch.cat([x, y], 1)), E, ridge)
        weight, bias = closed_form(x, y, ridge)
        assert np.abs(ours.weight.numpy() - weight).max() < 1e-8
        assert np.abs(ours.bias.numpy() - bias).max() < 1e-8
        assert ours.loss == pytest.approx(float(((x @ ours.weight.T + ours.bias - y) ** 2).mean()), rel=1e-10)


def test_ridge_regression_from_moments_of_parts_is_that_of_all_rows() -> None:
    rows = draw(100, E + D) + 1e4
    expected = Moments.of(rows)
    parts = [Moments.of(rows[a:b]) for a, b in ((0, 1), (1, 40), (40, 41), (41, 100))]
    for order in (parts, parts[::-1]):
        together = reduce(add, order)
        assert together.weight == expected.weight == 100
        assert torch.allclose(together.mean, expected.mean, rtol=1e-12)
        assert torch.allclose(together.scatter, expected.scatter, rtol=1e-10, atol=1e-8)
        assert torch.allclose(
            ridge_regression(together, E, 0.1).weight, ridge_regression(expected, E, 0.1).weight, atol=1e-9
        )


def test_fit_finds_a_known_map(text_model: tuple[CLIPText, Tokenizer]) -> None:
    weight, bias = draw(D, E, seed=1), 10 * draw(D, seed=2)

    def pictures(count: int, first: int) -> CaptionedEmbeds:
        embeds = (encoded_captions(text_model, count, first) @ weight.T + bias).float()
        return CaptionedEmbeds(embeds, lambda indices, rng: captions(indices + first, rng))

    prior, metrics = fit(*text_model, [pictures(80, 0), pictures(13, 200)], pictures(20, 500), ridge=0.0, batch=32)
    assert torch.allclose(prior.weight.double(), weight, atol=1e-4)
    assert torch.allclose(prior.bias.double(), bias, atol=1e-4)
    line = metrics.values
    assert line["loss"] < 1e-9 and line["validation"] < 1e-9 and line["cosine"] == pytest.approx(1, abs=1e-6)
    assert not any(parameter.requires_grad for parameter in prior.parameters())


def test_the_batch_size_does_not_change_the_fit(text_model: tuple[CLIPText, Tokenizer]) -> None:
    pictures = CaptionedEmbeds(draw(50, D).float(), captions)
    first, metrics = fit(*text_model, [pictures], pictures)
    second, same = fit(*text_model, [pictures], pictures, batch=7)
    assert torch.allclose(first.weight, second.weight, atol=1e-5)
    assert metrics.values == pytest.approx(same.values, rel=1e-5)
    # of the same rows, the first from moments
    assert metrics.loss == pytest.approx(metrics.values["validation"], rel=1e-5)


def test_a_set_is_weighted_by_its_share_and_not_by_its_rows(text_model: tuple[CLIPText, Tokenizer]) -> None:
    large, small = draw(60, D).float(), draw(20, D, seed=1).float() + 2
    sets = [CaptionedEmbeds(large, captions, 0.25), CaptionedEmbeds(small, captions, 0.75)]
    prior, _ = fit(*text_model, sets, sets[0], ridge=0.1)
    x = torch.cat([encoded_captions(text_model, 60), encoded_captions(text_model, 20)])
    weights = torch.cat([torch.full((60,), 0.25 / 60), torch.full((20,), 0.75 / 20)])
    weight, bias = closed_form(x, torch.cat([large, small]).double(), 0.1, weights)
    assert np.abs(prior.weight.numpy() - weight).max() < 1e-5
    assert np.abs(prior.bias.numpy() - bias).max() < 1e-5


def test_every_picture_may_be_encoded_with_several_captions(text_model: tuple[CLIPText, Tokenizer]) -> None:
    pictures = CaptionedEmbeds(draw(30, D).float(), captions)
    once, twice = (fit(*text_model, [pictures], pictures, captions_per_picture=n)[0] for n in (1, 2))
    assert torch.allclose(once.weight, twice.weight, atol=1e-5)  # with equal captions, the same fit
    encoded: list[str] = []

    def record(indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        encoded.extend(texts := random_captions(indices, rng))
        return texts

    fit(*text_model, [pictures._replace(captions=record)], pictures, captions_per_picture=3)
    assert len(encoded) == 90 and len(set(encoded)) > 30


def test_validation_metrics_are_those_of_held_out_pictures(text_model: tuple[CLIPText, Tokenizer]) -> None:
    pictures, held_out = (
        CaptionedEmbeds(draw(40, D).float(), captions),
        CaptionedEmbeds(draw(9, D, seed=1).float(), captions),
    )
    prior, metrics = fit(*text_model, [pictures], held_out)
    predicted = prior(encoded_captions(text_model, 9).float())
    assert metrics.values["validation"] == pytest.approx(float((predicted - held_out.embeds).square().mean()), rel=1e-5)
    dots = (predicted * held_out.embeds).sum(1) / (predicted.norm(dim=1) * held_out.embeds.norm(dim=1))
    assert metrics.values["cosine"] == pytest.approx(float(dots.mean()), abs=1e-5)


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
@pytest.mark.parametrize("count", [1, 3])
def test_fits_of_fewer_rows_than_parameters_are_finite(
    text_model: tuple[CLIPText, Tokenizer], count: int, ridge: float
) -> None:
    pictures = CaptionedEmbeds(draw(count, D).float(), captions)
    prior, metrics = fit(*text_model, [pictures], pictures, ridge=ridge)
    assert all(map(math.isfinite, metrics.values.values()))
    assert prior.weight.isfinite().all() and prior.weight.abs().max() < 100
    if not ridge:
        assert metrics.values["validation"] < 1e-8  # so few rows can be fitted exactly


def test_equal_captions_give_the_mean_embedding(text_model: tuple[CLIPText, Tokenizer]) -> None:
    pictures = CaptionedEmbeds(draw(30, D).float(), lambda indices, rng: ["the same"] * len(indices))
    prior, _ = fit(*text_model, [pictures], pictures)
    assert torch.equal(prior.weight, torch.zeros(D, E))
    assert torch.allclose(prior.bias, pictures.embeds.mean(0), atol=1e-6)
