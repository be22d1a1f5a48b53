"""The linear prior in closed form: the map that is known, numpy's own answer, and the same from pieces and few rows."""

import math
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from torch import Tensor

from kandinsky22.models.clip import CLIPText, CLIPTextConfig
from kandinsky22.models.tokenizer import Tokenizer, learn
from kandinsky22.training.linear_prior import fit, ridge_regression
from kandinsky22.training.prior import CaptionedEmbeds
from tests.models_on_disk import randomise

E, D = 6, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def closed_form(x: Tensor, y: Tensor, ridge: float, weights: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Numpy's least squares, where the ridge is E rows more, and a column of ones the intercept, which pays for nothing."""
    w = np.ones(len(x)) if weights is None else weights.numpy()
    mean = np.average(x.numpy(), axis=0, weights=w)
    variance = np.average((x.numpy() - mean) ** 2, axis=0, weights=w).mean()
    root = np.sqrt(w / w.sum())[:, None]
    rows = np.concatenate(
        [np.concatenate([x.numpy(), np.ones((len(x), 1))], 1) * root, np.eye(E, E + 1) * np.sqrt(ridge * variance)]
    )
    found = np.linalg.lstsq(rows, np.concatenate([y.numpy() * root, np.zeros((E, y.shape[1]))]))[0]
    return found[:-1].T, found[-1]


@pytest.fixture(scope="module")
def language() -> tuple[CLIPText, Tokenizer]:
    """A text tower of random weights, and its tokenizer."""
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


def worded(indices: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Anew at every look."""
    return [f"{i} {rng.choice(['blue', 'red', 'wide'])}" for i in indices]


@torch.no_grad()
def said(language: tuple[CLIPText, Tokenizer], count: int, first: int = 0) -> Tensor:
    text, tokenizer = language
    return text(tokenizer(captions(np.arange(first, first + count), np.random.default_rng(0))).ids).embed.double()


def test_it_is_numpys_answer() -> None:
    x, y = draw(200, E) @ draw(E, E, seed=1) + 3, draw(200, D, seed=2) - 5
    for ridge in (0.0, 1e-3, 1.0):
        ours = ridge_regression(Moments.of(torch.cat([x, y], 1)), E, ridge)
        weight, bias = closed_form(x, y, ridge)
        assert np.abs(ours.weight.numpy() - weight).max() < 1e-8
        assert np.abs(ours.bias.numpy() - bias).max() < 1e-8
        assert ours.loss == pytest.approx(float(((x @ ours.weight.T + ours.bias - y) ** 2).mean()), rel=1e-10)


def test_pieces_add_up_to_the_whole_whatever_their_sizes_and_wherever_the_rows_are() -> None:
    rows = draw(100, E + D) + 1e4
    whole = Moments.of(rows)
    parts = [Moments.of(rows[a:b]) for a, b in ((0, 1), (1, 40), (40, 41), (41, 100))]
    for order in (parts, parts[::-1]):
        together = reduce(add, order)
        assert together.weight == whole.weight == 100
        assert torch.allclose(together.mean, whole.mean, rtol=1e-12)
        assert torch.allclose(together.scatter, whole.scatter, rtol=1e-10, atol=1e-8)
        assert torch.allclose(
            ridge_regression(together, E, 0.1).weight, ridge_regression(whole, E, 0.1).weight, atol=1e-9
        )


def test_it_finds_a_map_that_is_known(language: tuple[CLIPText, Tokenizer]) -> None:
    weight, bias = draw(D, E, seed=1), 10 * draw(D, seed=2)

    def told(count: int, first: int) -> CaptionedEmbeds:
        embeds = (said(language, count, first) @ weight.T + bias).float()
        return CaptionedEmbeds(embeds, lambda indices, rng: captions(indices + first, rng))

    prior, line = fit(*language, [told(80, 0), told(13, 200)], told(20, 500), ridge=0.0, batch=32)
    assert torch.allclose(prior.weight.double(), weight, atol=1e-4)
    assert torch.allclose(prior.bias.double(), bias, atol=1e-4)
    assert line["loss"] < 1e-9 and line["validation"] < 1e-9 and line["cosine"] == pytest.approx(1, abs=1e-6)
    assert not any(parameter.requires_grad for parameter in prior.parameters())


def test_the_size_of_a_batch_changes_nothing(language: tuple[CLIPText, Tokenizer]) -> None:
    told = CaptionedEmbeds(draw(50, D).float(), captions)
    first, line = fit(*language, [told], told)
    second, same = fit(*language, [told], told, batch=7)
    assert torch.allclose(first.weight, second.weight, atol=1e-5)
    assert line == pytest.approx(same, rel=1e-5)
    assert line["loss"] == pytest.approx(line["validation"], rel=1e-5)  # of the same rows, once from sums


def test_a_set_counts_its_share_and_not_its_rows(language: tuple[CLIPText, Tokenizer]) -> None:
    large, small = draw(60, D).float(), draw(20, D, seed=1).float() + 2
    sets = [CaptionedEmbeds(large, captions, 0.25), CaptionedEmbeds(small, captions, 0.75)]
    prior, _ = fit(*language, sets, sets[0], ridge=0.1)
    x = torch.cat([said(language, 60), said(language, 20)])
    weights = torch.cat([torch.full((60,), 0.25 / 60), torch.full((20,), 0.75 / 20)])
    weight, bias = closed_form(x, torch.cat([large, small]).double(), 0.1, weights)
    assert np.abs(prior.weight.numpy() - weight).max() < 1e-5
    assert np.abs(prior.bias.numpy() - bias).max() < 1e-5


def test_every_picture_may_be_worded_several_times(language: tuple[CLIPText, Tokenizer]) -> None:
    told = CaptionedEmbeds(draw(30, D).float(), captions)
    once, twice = (fit(*language, [told], told, captions_per_picture=n)[0] for n in (1, 2))
    assert torch.allclose(once.weight, twice.weight, atol=1e-5)  # with the same words, the same
    asked: list[str] = []

    def heard(indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        asked.extend(words := worded(indices, rng))
        return words

    fit(*language, [told._replace(captions=heard)], told, captions_per_picture=3)
    assert len(asked) == 90 and len(set(asked)) > 30


def test_what_is_measured_on_held_out_pictures(language: tuple[CLIPText, Tokenizer]) -> None:
    told, held_out = (
        CaptionedEmbeds(draw(40, D).float(), captions),
        CaptionedEmbeds(draw(9, D, seed=1).float(), captions),
    )
    prior, line = fit(*language, [told], held_out)
    given = prior(said(language, 9).float())
    assert line["validation"] == pytest.approx(float((given - held_out.embeds).square().mean()), rel=1e-5)
    dots = (given * held_out.embeds).sum(1) / (given.norm(dim=1) * held_out.embeds.norm(dim=1))
    assert line["cosine"] == pytest.approx(float(dots.mean()), abs=1e-5)


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
@pytest.mark.parametrize("count", [1, 3])
def test_fewer_rows_than_numbers_stay_finite(language: tuple[CLIPText, Tokenizer], count: int, ridge: float) -> None:
    told = CaptionedEmbeds(draw(count, D).float(), captions)
    prior, line = fit(*language, [told], told, ridge=ridge)
    assert all(map(math.isfinite, line.values()))
    assert prior.weight.isfinite().all() and prior.weight.abs().max() < 100
    if not ridge:
        assert line["validation"] < 1e-8  # so few rows can all be met


def test_one_caption_for_all_gives_the_mean_picture(language: tuple[CLIPText, Tokenizer]) -> None:
    told = CaptionedEmbeds(draw(30, D).float(), lambda indices, rng: ["the same"] * len(indices))
    prior, _ = fit(*language, [told], told)
    assert torch.equal(prior.weight, torch.zeros(D, E))
    assert torch.allclose(prior.bias, told.embeds.mean(0), atol=1e-6)
