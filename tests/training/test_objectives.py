"""Each objective on a case with a known loss."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kandinsky22.compositions import COLORS, SHAPES, Group, Scene, caption, sample
from kandinsky22.diffusion import NoiseSchedule
from kandinsky22.models.unet import UNet
from kandinsky22.training import clip, controlnet, decoder, init_weights, inpaint, prior
from kandinsky22.training.loop import Recipe
from kandinsky22.training.probes import PLACES, UNSTATED, Probes, labels
from kandinsky22.training.recipes import BOX
from tests.models_on_disk import randomise


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_decoders_loss_of_the_true_prediction_is_zero(prediction: str) -> None:
    """If all latents are zero, x is scaled noise, so a network can compute the target from it."""
    schedule = NoiseSchedule.from_config({**BOX.decoder_scheduler, "prediction_type": prediction})

    class TruePrediction(torch.nn.Module):
        factor = 1.0

        def condition(self, embeds: torch.Tensor, **_: object) -> torch.Tensor:
            return embeds

        def forward(self, x: torch.Tensor, t: torch.Tensor, conditioned: torch.Tensor) -> torch.Tensor:
            a = schedule.alpha_bar(t).view(-1, 1, 1, 1)
            noise = x / (1 - a) ** 0.5
            predictions = {"epsilon": noise, "v_prediction": a**0.5 * noise, "sample": torch.zeros_like(x)}
            variance = draw(*x.shape)  # ignored
            return self.factor * torch.cat([predictions[prediction], variance], dim=1)

    network = TruePrediction()
    recipe = Recipe(batch=8, learning_rate=1.0)
    latents, embeds, zero = torch.zeros(16, 4, 8, 8), draw(16, 24), draw(1, 24)
    objective = decoder.objective(network, schedule, [decoder.Bucket(latents, embeds)], zero, recipe)  # type: ignore[arg-type]

    def losses(step: int) -> torch.Tensor:
        return objective.loss(objective.draw(step))[0]

    assert losses(0).shape == (8,) and losses(0).max() < 1e-8
    assert torch.equal(losses(0), losses(0))
    network.factor = 1.1
    assert losses(0).min() > 1e-5 or prediction == "sample"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_target_determines_the_latents(prediction: str) -> None:
    schedule = NoiseSchedule.from_config({**BOX.decoder_scheduler, "prediction_type": prediction})
    x0, noise, t = draw(3, 4, 8, 8), draw(3, 4, 8, 8, seed=1), torch.tensor([1, 400, 999])
    target = decoder.target(schedule, x0, noise, t)
    x = schedule.add_noise(x0, noise, t)
    a = schedule.alpha_bar(t).view(-1, 1, 1, 1)
    recovered = {
        "epsilon": (x - (1 - a) ** 0.5 * target) / a**0.5,
        "v_prediction": a**0.5 * x - (1 - a) ** 0.5 * target,
        "sample": target,
    }
    assert torch.allclose(recovered[prediction], x0, atol=2e-4)


def test_labels_are_those_that_the_caption_states() -> None:
    groups = (Group(3, "red", "circle"), Group(1, "blue", "triangle"))
    scene = Scene.of(groups, "above", "cream", "arcs", np.random.default_rng(0))
    full, short = caption(scene), "three red circles above a blue triangle"
    stated = labels([scene, scene], [full, short])
    red, blue = list(COLORS).index("red"), list(COLORS).index("blue")
    assert stated["count"][0, red] == 3
    assert stated["shape"][0, blue] == SHAPES.index("triangle")
    assert PLACES[stated["place"][0, red]] == "above"
    assert PLACES[stated["place"][0, blue]] == "below"
    assert (stated["count"][0] > 0).sum() == 2
    assert stated["ground"][1] == stated["decoration"][1] == UNSTATED
    assert stated["ground"][0] != UNSTATED


def test_probes_learn_to_predict_labels_from_one_hot_embeddings() -> None:
    """And fail on embeddings shuffled over the rows."""
    rng = np.random.default_rng(0)
    scenes = [sample(rng) for _ in range(64)]
    targets = labels(scenes)
    code = torch.cat([torch.nn.functional.one_hot(targets[k]).flatten(1).float() for k in targets], dim=1)
    probes = Probes(code.shape[1])
    optimizer = torch.optim.Adam(probes.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        probes.loss(code, targets).mean().backward()
        optimizer.step()
    assert min(probes.accuracy(code, targets).values()) > 0.98
    assert max(probes.accuracy(code.roll(1, 0), targets).values()) < 0.9


def test_batches_of_all_shapes_have_the_same_number_of_cells() -> None:
    """And every shape gets its share of the steps, with the embeddings of its own rows."""
    schedule = NoiseSchedule.from_config(BOX.decoder_scheduler)
    shapes: list[torch.Size] = []

    class Recorder(torch.nn.Module):
        def condition(self, embeds: torch.Tensor, **_: object) -> torch.Tensor:
            return embeds

        def forward(self, x: torch.Tensor, t: torch.Tensor, conditioned: torch.Tensor) -> torch.Tensor:
            shapes.append(x.shape)
            assert len(conditioned) == len(x) == len(t)
            return torch.cat([x, x], dim=1)

    embeds = draw(16, 24)
    buckets = [
        decoder.Bucket(draw(16, 4, 8, 8), embeds, share=0.5),
        decoder.Bucket(draw(4, 4, 8, 16), embeds, share=0.5),
    ]
    objective = decoder.objective(
        Recorder(),
        schedule,
        buckets,
        draw(1, 24),
        Recipe(batch=6, learning_rate=1.0),  # type: ignore[arg-type]
    )
    for step in range(40):
        objective.loss(objective.draw(step))
    assert {tuple(shape) for shape in shapes} == {(6, 4, 8, 8), (3, 4, 8, 16)}
    assert 8 < sum(shape[-1] == 8 for shape in shapes) < 32


def test_holes_are_rectangles_their_complements_and_strokes() -> None:
    holes = inpaint.holes(600, 16, 24, torch.Generator().manual_seed(0))
    assert holes.shape == (600, 1, 16, 24)
    assert set(holes.unique().tolist()) == {0.0, 1.0}
    kinds = {"box": 0, "surroundings": 0, "other": 0}
    for hole in holes[:, 0].bool():
        kinds["box" if is_box(hole) else "surroundings" if is_box(~hole) else "other"] += 1
    assert all(count > 60 for count in kinds.values()), kinds
    assert 0.1 < holes.mean() < 0.7
    assert (holes.mean(dim=(0, 1)) > 0.1).all(), "some cell is hardly ever in a hole"
    repeated = inpaint.holes(600, 16, 24, torch.Generator().manual_seed(0))
    assert torch.equal(holes, repeated)


def is_box(mask: torch.Tensor) -> bool:
    rows, columns = mask.any(dim=1), mask.any(dim=0)
    return bool(mask.any() and torch.equal(mask, rows[:, None] & columns[None, :]) and is_run(rows) and is_run(columns))


def is_run(values: torch.Tensor) -> bool:
    return int(values.int().diff().abs().sum()) <= 2 and not bool(values[0] & values[-1] & ~values.all())


def test_masked_inputs_are_zero_within_holes() -> None:
    x0 = draw(8, 4, 8, 8)
    bucket = decoder.Bucket(x0, draw(8, 24))
    masked = inpaint.masked_inputs(bucket, torch.arange(8), x0, torch.Generator().manual_seed(1))["masked"]
    known = masked[:, 4:]
    assert torch.equal(masked[:, :4], x0 * known)
    assert 0 < known.mean() < 1


def test_hints_are_depth_pictures_some_of_them_stretched_to_full_range() -> None:
    depths = np.full((8, 16, 16), 51, np.uint8)
    depths[:, 4:8] = 204
    bucket = decoder.Bucket(draw(8, 4, 2, 2), draw(8, 24), torch.from_numpy(depths))
    hint = controlnet.hint_inputs(bucket, torch.arange(8), draw(8, 4, 2, 2), torch.Generator().manual_seed(0))["hint"]
    assert hint.shape == (8, 3, 16, 16)
    nearest = hint.amax(dim=(1, 2, 3))
    assert {round(value, 2) for value in nearest.tolist()} == {0.8, 1.0}
    assert (hint[:, :, 4:8] > hint[:, :, :4].amax()).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["inpaint", "hint"])
def test_a_network_with_further_inputs_starts_by_predicting_what_the_plain_one_predicts(kind: str) -> None:
    config = replace(BOX.unet, block_out_channels=(32, 32), cross_attention_dim=16, encoder_hid_dim=24)
    plain = UNet(config)
    randomise(plain)
    more = {"inpaint": {"in_channels": 9}, "hint": {"in_channels": 8, "addition_embed_type": "image_hint"}}
    network = UNet(replace(config, **more[kind]))  # type: ignore[arg-type]
    network.load_state_dict(init_weights.initial_state(network.state_dict(), plain.state_dict()))
    x, t, embeds = draw(2, 4, 8, 8), torch.tensor([3, 700]), draw(2, 24)
    extra = {"masked": draw(2, 5, 8, 8)} if kind == "inpaint" else {"hint": draw(2, 3, 64, 64).sigmoid()}
    conditioned = network.condition(embeds, **extra)
    assert torch.allclose(network(x, t, conditioned), plain(x, t, plain.condition(embeds)), atol=1e-6)
    assert conditioned.extra is not None and conditioned.extra.abs().sum() > 0


def test_initial_weights_of_other_shapes_are_ignored() -> None:
    own = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "conv": torch.ones(2, 3, 1, 1)}
    given = {"a": torch.ones(2, 3), "b": torch.ones(5), "c": torch.ones(1), "conv": torch.full((2, 2, 1, 1), 7.0)}
    state = init_weights.initial_state(own, given)
    assert torch.equal(state["a"], given["a"]) and torch.equal(state["b"], own["b"]) and "c" not in state
    assert state["conv"].flatten().tolist() == [7.0, 7.0, 0.0, 7.0, 7.0, 0.0]


def test_rows_with_a_dropped_condition_have_the_zero_embedding() -> None:
    embeds, zero = draw(16, 24), torch.full((1, 24), 9.0)
    schedule = NoiseSchedule.from_config(BOX.decoder_scheduler)
    buckets = [decoder.Bucket(draw(16, 4, 8, 8), embeds)]
    for share in (0.0, 0.3):
        recipe = Recipe(batch=200, learning_rate=1.0, cond_dropout=share)
        objective = decoder.objective(None, schedule, buckets, zero, recipe)  # type: ignore[arg-type]  # the network is not used
        rows = objective.draw(3)["embeds"]
        dropped = (rows == zero).all(dim=1)
        assert float(dropped.float().mean()) == pytest.approx(share, abs=0.1)
        assert all((embeds == row).all(dim=1).any() for row in rows[~dropped])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_error_of_x0_by_the_snr_up_to_gamma(prediction: str) -> None:
    """For every prediction type, an error of d in x0 costs min(SNR, gamma) d**2."""
    schedule = NoiseSchedule.from_config({**BOX.decoder_scheduler, "prediction_type": prediction})
    x0, noise, t = draw(4, 4, 8, 8), draw(4, 4, 8, 8, seed=1), torch.tensor([5, 200, 500, 990])
    a = schedule.alpha_bar(t).view(-1, 1, 1, 1)
    wrong = x0 + 0.01
    x = schedule.add_noise(x0, noise, t)
    predictions = {
        "epsilon": (x - a**0.5 * wrong) / (1 - a) ** 0.5,
        "v_prediction": (a**0.5 * x - wrong) / (1 - a) ** 0.5,
        "sample": wrong,
    }
    errors = (predictions[prediction] - decoder.target(schedule, x0, noise, t)).square().mean(dim=(1, 2, 3))
    weighted = errors * decoder.timestep_weights(schedule, t, gamma=5.0)
    snr = (a / (1 - a)).flatten()
    assert snr[0] > 5 > snr[-1]
    assert torch.allclose(weighted, snr.clamp(max=5.0) * 0.01**2, rtol=2e-2)
    assert torch.equal(decoder.timestep_weights(schedule, t, None), torch.ones(4))


class NumberTokenizer:
    """A tokenizer of captions that are a number, which becomes the only token; the empty caption is 0."""

    def __call__(self, captions: list[str]) -> "NumberTokenizer":
        self.ids = torch.tensor([[int(caption or 0)] for caption in captions])
        self.mask = torch.ones_like(self.ids, dtype=torch.bool)
        return self

    def trimmed(self) -> "NumberTokenizer":
        return self


def test_the_priors_loss_of_the_true_embedding_is_zero() -> None:
    schedule = NoiseSchedule.from_config(BOX.prior_scheduler)
    embeds = draw(10, 6) * 3 + 1

    class TruePrior(torch.nn.Module):
        mean, std, off = embeds.mean(0), embeds.std(0), 0.0

        def normalised(self, x: torch.Tensor) -> torch.Tensor:
            return (x - self.mean) / self.std

        def prefill(self, hidden: torch.Tensor, embed: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return embed

        def forward(self, x: torch.Tensor, t: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
            return self.normalised(embeds[prefix[:, 0]]) + self.off

    class Tower(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(hidden=ids, embed=ids)

    pictures = prior.CaptionedEmbeds(embeds, lambda indices, rng: [str(i) for i in indices])
    recipe = Recipe(batch=12, learning_rate=1.0, cond_dropout=0.0)
    network = TruePrior()
    objective = prior.objective(network, Tower(), NumberTokenizer(), schedule, [pictures], recipe)  # type: ignore[arg-type]
    assert objective.loss(objective.draw(4))[0].max() < 1e-10
    network.off = 0.5
    assert torch.allclose(objective.loss(objective.draw(4))[0], torch.full((12,), 0.25))
    # type: ignore[arg-type]
    dropped = prior.objective(
        network, Tower(), NumberTokenizer(), schedule, [pictures], replace(recipe, batch=400, cond_dropout=0.25)
    )
    assert 0.15 < float((dropped.draw(0)["ids"] == 0).float().mean()) < 0.45  # a tenth of the captions are "0"


def test_clips_loss_is_the_cross_entropy_over_the_batch() -> None:
    """By the formula of Radford et al. 2021; two pictures with the same caption are not negatives of each other."""
    image, text = draw(6, 5), draw(6, 5, seed=1)
    captions = [0, 1, 2, 3, 4, 4]

    class Towers(torch.nn.Module):
        logit_scale, probes = torch.tensor(1.5), None

        def vision(self, pixels: torch.Tensor) -> torch.Tensor:
            return image[pixels[:, 0].long()]

        def text(self, ids: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(embed=text[ids[:, 0]])

    objective = clip.objective(Towers(), None, [], Recipe(batch=6, learning_rate=1.0))  # type: ignore[arg-type]
    rows = {
        "pixels": torch.arange(6)[:, None],
        "row": torch.arange(6),
        "picture": torch.arange(6),
        "ids": torch.tensor(captions)[:, None],
        "caption": torch.tensor(captions),
    }
    losses, measured = objective.loss(rows)
    units = torch.nn.functional.normalize(image, dim=1), torch.nn.functional.normalize(text[captions], dim=1)
    logits = units[0] @ units[1].T * torch.tensor(1.5).exp()
    logits[4, 5] = logits[5, 4] = float("-inf")
    expected = (-logits.log_softmax(1).diagonal() - logits.log_softmax(0).diagonal()) / 2
    assert torch.allclose(losses, expected, atol=1e-5) and measured == {}
    assert objective.coupled


def test_statistics_are_the_mean_and_deviation_of_all_embeddings() -> None:
    embeds = draw(50, 6) * 3 + 100
    sets = [prior.CaptionedEmbeds(embeds[:20], lambda i, r: []), prior.CaptionedEmbeds(embeds[20:], lambda i, r: [])]
    mean, deviation = prior.statistics(sets, batch=7)
    assert torch.allclose(mean, embeds.mean(0), atol=1e-4) and torch.allclose(deviation, embeds.std(0), atol=1e-4)
