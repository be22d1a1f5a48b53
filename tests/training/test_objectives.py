"""Each objective on a case with a known answer."""

import numpy as np
import pytest
import torch
from tests.models_on_disk import randomise
from tests.oracle.tiny import MOVQ

from kandinsky22.compositions import COLORS, SHAPES, Group, Scene, caption, sample
from kandinsky22.diffusion import NoiseSchedule
from kandinsky22.models.movq import MoVQ
from kandinsky22.training import decoder, movq
from kandinsky22.training.loop import Recipe
from kandinsky22.training.probes import PLACES, UNSTATED, Probes, labels
from kandinsky22.training.recipes import BOX


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_standardising_latents_changes_no_picture() -> None:
    network = MoVQ(MOVQ)
    randomise(network)
    pictures = draw(4, 3, 64, 64).tanh()
    before = network.decode(network.encode(pictures))
    movq.standardise(network, network.encode(pictures))
    z = network.encode(pictures)
    assert torch.allclose(z.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(z.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4)
    assert (network.decode(z) - before).abs().max() < 1e-4 * before.abs().max()


@torch.no_grad()
def test_training_starts_with_latents_of_unit_size() -> None:
    network = MoVQ(MOVQ)
    pictures = draw(4, 3, 64, 64).tanh()
    movq.initialise(network, pictures)
    assert torch.allclose(network.encode(pictures).std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3)


def test_the_codebook_finds_the_clusters() -> None:
    centres = torch.tensor([[5.0, 0, 0, 0], [0, 5, 0, 0], [0, 0, 5, 0], [0, 0, 0, 5]])
    cells = centres.repeat(64, 1) + 0.01 * draw(256, 4)
    codes = torch.nn.Embedding(4, 4)
    used = movq.fit_codebook(codes, cells.view(16, 16, 1, 4).permute(0, 3, 1, 2), seed=3)
    nearest = torch.cdist(centres, codes.weight.detach()).min(dim=1)
    assert used == 1.0
    assert (nearest.values < 2.6).all()


def test_reconstruction_is_free_for_the_picture_itself_and_hue_costs_more_than_brightness() -> None:
    pictures = draw(2, 3, 32, 32).tanh()
    assert movq.reconstruction_loss(pictures, pictures) == 0
    grey = torch.full((1, 3, 32, 32), 0.1)
    hue = grey * torch.tensor([1.0, 1.0, -1.0]).view(1, 3, 1, 1)
    zero = torch.zeros_like(grey)
    assert movq.reconstruction_loss(hue, zero) > movq.reconstruction_loss(grey, zero)


def test_psnr_of_a_known_difference() -> None:
    zero = torch.zeros(1, 3, 8, 8)
    assert movq.psnr(zero + 0.2, zero).item() == pytest.approx(20.0, abs=1e-3)  # 0.1 of the range of 1


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_right_answer_costs_the_decoder_nothing(prediction: str) -> None:
    """Where all latents are zero, x is noise alone, and what was asked can be told from it: that network has no loss."""
    schedule = NoiseSchedule.from_config({**BOX.decoder_scheduler, "prediction_type": prediction})

    class Knowing(torch.nn.Module):
        factor = 1.0

        def condition(self, embeds: torch.Tensor) -> torch.Tensor:
            return embeds

        def forward(self, x: torch.Tensor, t: torch.Tensor, conditioned: torch.Tensor) -> torch.Tensor:
            a = schedule.alpha_bar(t).view(-1, 1, 1, 1)
            noise = x / (1 - a) ** 0.5
            answers = {"epsilon": noise, "v_prediction": a**0.5 * noise, "sample": torch.zeros_like(x)}
            return self.factor * torch.cat(
                [answers[prediction], draw(*x.shape)], dim=1
            )  # the variance is not looked at

    knowing = Knowing()
    recipe = Recipe(batch=8, learning_rate=1.0)
    latents, embeds, zero = torch.zeros(16, 4, 8, 8), draw(16, 24), draw(1, 24)
    objective = decoder.objective(knowing, schedule, latents, embeds, zero, recipe)  # type: ignore[arg-type]
    assert objective(0)[0] < 1e-8
    assert objective(0)[0] == objective(0)[0]
    knowing.factor = 1.1
    assert objective(0)[0] > 1e-4 or prediction == "sample"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_what_the_decoder_is_asked_for_gives_the_latents_back(prediction: str) -> None:
    schedule = NoiseSchedule.from_config({**BOX.decoder_scheduler, "prediction_type": prediction})
    x0, noise, t = draw(3, 4, 8, 8), draw(3, 4, 8, 8, seed=1), torch.tensor([1, 400, 999])
    asked = decoder.target(schedule, x0, noise, t)
    x = schedule.add_noise(x0, noise, t)
    a = schedule.alpha_bar(t).view(-1, 1, 1, 1)
    recovered = {
        "epsilon": (x - (1 - a) ** 0.5 * asked) / a**0.5,
        "v_prediction": a**0.5 * x - (1 - a) ** 0.5 * asked,
        "sample": asked,
    }
    assert torch.allclose(recovered[prediction], x0, atol=2e-4)


def test_labels_say_what_the_caption_says() -> None:
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


def test_probes_learn_to_read_a_code() -> None:
    """Embeddings that spell the labels out are read without mistakes; shuffled ones are not."""
    rng = np.random.default_rng(0)
    scenes = [sample(rng) for _ in range(64)]
    targets = labels(scenes)
    code = torch.cat([torch.nn.functional.one_hot(targets[k]).flatten(1).float() for k in targets], dim=1)
    probes = Probes(code.shape[1])
    optimizer = torch.optim.Adam(probes.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        probes.loss(code, targets).backward()
        optimizer.step()
    assert min(probes.accuracy(code, targets).values()) > 0.98
    assert max(probes.accuracy(code.roll(1, 0), targets).values()) < 0.9
