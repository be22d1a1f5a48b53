"""MoVQ's objective, its terms and their networks, each on a case with a known value."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.models.clip import CLIPImageProcessor, CLIPVision
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.training import movq
from kandinsky22.training.data import Compositions
from kandinsky22.training.discriminator import Discriminator, adversarial_losses, hinge_loss
from kandinsky22.training.loop import Objective, Recipe, Training, step_generator
from kandinsky22.training.movq import Autoencoder, Terms
from kandinsky22.training.perceptual import Perceptual
from kandinsky22.training.recipes import BOX
from tests.models_on_disk import randomise

CONFIG = MoVQConfig(block_out_channels=(32, 32, 32), layers_per_block=1, num_vq_embeddings=16)
VISION = replace(
    BOX.vision, hidden_size=32, intermediate_size=64, num_attention_heads=2, image_size=32, projection_dim=16
)
PROCESSOR = CLIPImageProcessor(size=32, crop_size=32, image_mean=(0.5, 0.4, 0.6), image_std=(0.3, 0.5, 0.4))
RECIPE = Recipe(batch=4, learning_rate=2e-3, warmup=2, weight_decay=0.0, bfloat16=False, ema_decay=0.9)
ALL_TERMS = Terms(quantised=True, perceptual=1.0, adversarial=0.1, discriminator_width=8)
MODES = {
    "continuous": Terms(),
    "quantised": Terms(quantised=True),
    "perceptual": Terms(perceptual=0.5),
    "adversarial": Terms(adversarial=0.1, discriminator_width=8),
    "adversarial later": Terms(adversarial=0.1, adversarial_from=6, discriminator_width=8),
    "all terms": ALL_TERMS,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Compositions:
    return Compositions(tmp_path_factory.mktemp("pictures"), 24, 64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pictures(count: int, side: int = 32, seed: int = 0) -> Tensor:
    return noise(count, 3, side, side, seed=seed).tanh()


def autoencoder(terms: Terms) -> Autoencoder:
    torch.manual_seed(0)
    network = MoVQ(CONFIG)
    movq.initialise(network, pictures(8), quantised=terms.quantised)
    return Autoencoder(network, terms)


def perceptual() -> Perceptual:
    vision = CLIPVision(VISION)
    randomise(vision)
    return Perceptual(vision, PROCESSOR)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


# The rows of a step, and the reconstruction term


def test_a_step_draws_crops_and_later_complete_pictures_deterministically(data: Compositions) -> None:
    objective = movq.objective(autoencoder(Terms()), [data], RECIPE, crop=32, full_size_from=lambda: 5)
    crops, complete = objective.draw(3), objective.draw(5)
    assert {name: tuple(value.shape) for name, value in crops.items()} == {
        "picture": (4, 3, 32, 32),
        "noise": (4, 4, 8, 8),
        "step": (4,),
    }
    assert complete["picture"].shape == (1, 3, 64, 64) and complete["noise"].shape == (1, 4, 16, 16)
    assert all(torch.equal(value, objective.draw(3)[name]) for name, value in crops.items())
    assert crops["step"].tolist() == [3] * 4
    random = step_generator(RECIPE.seed, 3)
    indices, top, left = (torch.randint(count, (4,), generator=random) for count in (24, 33, 33))
    assert torch.equal(crops["picture"], data.crops(indices.numpy(), torch.stack([top, left], 1).numpy(), 32))
    assert torch.equal(crops["noise"], torch.randn(4, 4, 8, 8, generator=random))


def test_every_shape_gets_its_share_of_the_steps_and_the_same_number_of_pixels(data: Compositions) -> None:
    sets = [data, data.stretched(1, 2, 8, share=0.5)]
    objective = movq.objective(
        autoencoder(Terms()), sets, replace(RECIPE, batch=16), crop=32, full_size_from=lambda: 20
    )
    crops = [objective.draw(step)["picture"] for step in range(20)]
    complete = [objective.draw(step) for step in range(20, 60)]
    assert {tuple(pictures.shape) for pictures in crops} == {(16, 3, 32, 32)}
    shapes = [tuple(rows["picture"].shape) for rows in complete]
    assert set(shapes) == {(4, 3, 64, 64), (2, 3, 64, 128)}
    assert 4 < shapes.count((2, 3, 64, 128)) < 24  # a third
    assert all(rows["noise"].shape[-1] * 4 == rows["picture"].shape[-1] for rows in complete)


def test_the_default_loss_is_that_of_the_formula(data: Compositions) -> None:
    network = autoencoder(Terms())
    objective = movq.objective(network, [data], RECIPE, crop=32, full_size_from=lambda: 5)
    rows = objective.draw(0)
    losses, measured = objective.loss(rows)
    z = network.movq.encode(rows["picture"])
    decoded = network.movq.decode(z + 0.05 * rows["noise"])
    r, g, b = (decoded - rows["picture"]).unbind(1)
    bright = 0.299 * r + 0.587 * g + 0.114 * b
    blue, red = -0.169 * r - 0.331 * g + 0.5 * b, 0.5 * r - 0.419 * g - 0.081 * b
    difference = torch.stack([bright, 3 * blue, 3 * red], 1)
    across = difference[..., 1:] - difference[..., :-1]
    down = difference[..., 1:, :] - difference[..., :-1, :]
    expected = difference.abs().mean() + 0.4 * (across.abs().mean() + down.abs().mean())
    for square in (2, 4, 8):
        expected = expected + F.avg_pool2d(difference, square).abs().mean()
    assert measured["reconstruction"].mean().item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses.mean().item() == pytest.approx((expected + 1e-3 * z.square().mean()).item(), rel=1e-5)


def test_an_exact_reconstruction_has_no_loss_and_hue_counts_more_than_brightness() -> None:
    assert movq.reconstruction_loss(pictures(2), pictures(2)).tolist() == [0, 0]
    grey = torch.full((1, 3, 32, 32), 0.1)
    hue = grey * torch.tensor([1.0, 1.0, -1.0]).view(1, 3, 1, 1)
    assert movq.reconstruction_loss(hue, 0 * grey) > movq.reconstruction_loss(grey, 0 * grey)


def test_the_reconstruction_loss_is_float32_under_autocast() -> None:
    decoded, truth = pictures(2), pictures(2, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(movq.reconstruction_loss(decoded, truth), movq.reconstruction_loss(decoded, truth).float())
        inside = movq.reconstruction_loss(decoded, truth)
    assert torch.equal(inside, movq.reconstruction_loss(decoded, truth))


@pytest.mark.parametrize("mode", MODES)
def test_a_rows_loss_does_not_depend_on_the_other_rows(mode: str, data: Compositions) -> None:
    """No rows at all have no loss."""
    terms = MODES[mode]
    objective = movq.objective(
        autoencoder(terms), [data], RECIPE, 32, lambda: 5, perceptual() if terms.perceptual else None
    )
    rows = objective.draw(0)
    together, measured = objective.loss(rows)
    assert together.shape == (4,) and all(value.shape == (4,) for value in measured.values())
    for i in range(4):
        single, metrics = objective.loss({name: value[i : i + 1] for name, value in rows.items()})
        assert torch.allclose(single, together[i : i + 1], rtol=1e-4)
        assert all(torch.allclose(metrics[name], value[i : i + 1], rtol=1e-4) for name, value in measured.items())
    empty, _ = objective.loss({name: value[:0] for name, value in rows.items()})
    empty.sum().backward()
    assert empty.shape == (0,)


def test_psnr_of_a_known_difference_is_that_of_the_formula() -> None:
    zero = torch.zeros(1, 3, 8, 8)
    assert movq.psnr(zero + 0.2, zero).item() == pytest.approx(20.0, abs=1e-3)  # 0.1 of the range of 1


# The perceptual term


def test_the_perceptual_distance_grows_with_blur_and_is_zero_for_equal_pictures() -> None:
    distance, sharp = perceptual(), pictures(2, 48)
    assert distance(sharp, sharp).tolist() == [0, 0]
    blurred, distances = sharp, []
    for _ in range(4):
        blurred = F.avg_pool2d(F.pad(blurred, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        distances.append(distance(blurred, sharp))
    assert (torch.stack(distances).diff(dim=0) > 0).all()
    assert (distances[0] > 0).all() and (distances[-1] < 4).all()


def test_the_perceptual_distance_compares_four_depths_and_with_one_layer_the_patches() -> None:
    def by_hand(vision: CLIPVision, pixels: Tensor, depths: int) -> list[Tensor]:
        states: list[Tensor] = []
        layers = vision.vision_model.get_submodule("encoder.layers")
        for layer in layers.children():
            layer.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        vision(pixels)
        return [F.normalize(state[:, 1:], dim=-1) for state in states[:depths]]

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PROCESSOR.image_mean, PROCESSOR.image_std))
    left, right = pictures(2), pictures(2, seed=1)
    for layers, depths in ((1, 1), (4, 4)):
        vision = CLIPVision(replace(VISION, num_hidden_layers=layers))
        randomise(vision)
        distance = Perceptual(vision, PROCESSOR)(left, right)
        a, b = (by_hand(vision, ((x + 1) / 2 - mean) / std, depths) for x in (left, right))
        expected = sum((2 - 2 * (f * g).sum(-1)).mean(-1) for f, g in zip(a, b, strict=True)) / depths
        assert torch.allclose(distance, torch.as_tensor(expected), rtol=1e-3)


def test_the_perceptual_distance_has_gradients_for_the_decoded_picture_alone() -> None:
    distance, decoded, truth = perceptual(), pictures(1).requires_grad_(), pictures(1, seed=1).requires_grad_()
    distance(decoded, truth).sum().backward()
    assert decoded.grad is not None and decoded.grad.abs().sum() > 0
    assert truth.grad is None and gradients(distance.vision) == {}


def test_a_perceptual_term_and_its_distance_must_be_passed_together(data: Compositions) -> None:
    with pytest.raises(ValueError, match="go together"):
        movq.objective(autoencoder(Terms(perceptual=1.0)), [data], RECIPE, 32, lambda: 5)
    with pytest.raises(ValueError, match="go together"):
        movq.objective(autoencoder(Terms()), [data], RECIPE, 32, lambda: 5, perceptual())


# The adversarial term


def test_the_hinge_loss_of_known_logits_is_that_of_the_formula() -> None:
    real, fake = torch.tensor([[2.0, 1.0], [0.0, 0.5]]), torch.tensor([[-1.0, -3.0], [0.0, 1.0]])
    assert hinge_loss(real, fake).tolist() == [0.0, 0.75 + 1.5]


def test_a_logit_of_the_discriminator_sees_a_patch_of_70_pixels() -> None:
    assert Discriminator(8)(pictures(2, 96)).shape == (2, 1, 10, 10)
    discriminator = Discriminator(8)
    image = pictures(1, 128).requires_grad_()
    # it normalises over all pixels
    local = nn.Sequential(*(part for part in discriminator if not isinstance(part, nn.GroupNorm)))
    local(image)[0, 0, 7, 7].backward()
    assert image.grad is not None
    touched = image.grad[0].abs().sum(0) > 0
    assert touched.any(0).sum() == touched.any(1).sum() == 70


def test_one_backward_pass_gives_both_networks_their_own_gradients() -> None:
    """They equal those of two separate passes."""
    discriminator, generator, truth = Discriminator(8), nn.Conv2d(3, 3, 1), pictures(2)
    generator_loss, discriminator_loss = adversarial_losses(discriminator, generator(truth), truth)
    (generator_loss + discriminator_loss).sum().backward()
    together = gradients(discriminator), gradients(generator)
    discriminator.zero_grad()
    generator.zero_grad()

    (-discriminator(generator(truth)).mean(dim=(1, 2, 3))).sum().backward()
    of_generator = gradients(generator)
    discriminator.zero_grad()
    fake = generator(truth).detach()
    hinge = F.relu(1 - discriminator(truth)).mean(dim=(1, 2, 3)) + F.relu(1 + discriminator(fake)).mean(dim=(1, 2, 3))
    hinge.sum().backward()
    for actual, expected in ((together[0], gradients(discriminator)), (together[1], of_generator)):
        assert actual.keys() == expected.keys()
        assert all(torch.allclose(actual[name], value, atol=1e-6) for name, value in expected.items())
        assert any(value.abs().sum() > 0 for value in expected.values())


def test_a_discriminator_learns_to_distinguish_horizontal_from_vertical_stripes() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(8)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3)

    def stripes(seed: int) -> Tensor:
        shift = torch.rand(8, 1, 1, 1, generator=torch.Generator().manual_seed(seed)) * 6.3
        return torch.sin(torch.arange(32.0) * 0.8 + shift).expand(8, 3, 32, 32)

    for step in range(20):
        optimizer.zero_grad()
        _, loss = adversarial_losses(discriminator, stripes(step).mT, stripes(step + 1000))
        loss.mean().backward()
        optimizer.step()
    with torch.no_grad():
        vertical, horizontal = (discriminator(x).mean(dim=(1, 2, 3)) for x in (stripes(5000), stripes(5001).mT))
    assert vertical.min() > 0 > horizontal.max()


def test_the_adversarial_term_counts_from_its_step_on(data: Compositions) -> None:
    terms = Terms(adversarial=0.1, adversarial_from=7, discriminator_width=8)
    objective = movq.objective(autoencoder(terms), [data], RECIPE, 32, lambda: 99)
    plain = movq.objective(autoencoder(Terms()), [data], RECIPE, 32, lambda: 99)
    before, after = objective.draw(6), objective.draw(7)
    assert torch.equal(objective.loss(before)[0], plain.loss(before)[0])
    assert "adversarial" not in objective.loss(before)[1]
    both = {name: torch.cat([before[name], after[name]]) for name in before}
    losses, measured = objective.loss(both)
    assert torch.allclose(losses[:4], objective.loss(before)[0], rtol=1e-4)
    assert torch.allclose(losses[4:], objective.loss(after)[0], rtol=1e-4)
    assert (measured["discriminator"][:4] == 0).all() and (measured["discriminator"][4:] > 0).all()
    plus = 0.1 * (measured["adversarial"] + measured["discriminator"])[4:]
    assert torch.allclose(losses[4:], plain.loss(after)[0] + plus, rtol=1e-4)


def test_an_autoencoder_without_adversarial_term_has_no_discriminator() -> None:
    assert all(name.startswith("movq.") for name in autoencoder(Terms()).state_dict())


# The codebook


def test_quantisation_returns_the_nearest_code_with_a_straight_through_gradient() -> None:
    network = MoVQ(CONFIG)
    randomise(network)
    z = noise(2, 4, 8, 8).requires_grad_()
    codes, indices = network.quantize(z)
    weight = network.quantize.embedding.weight
    distances = (z.movedim(1, -1)[..., None, :] - weight).square().sum(-1)
    assert torch.equal(indices, distances.argmin(-1))
    assert torch.allclose(codes, weight[indices].movedim(-1, 1), atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.quantize(z)[1], indices)

    network.decode(codes).square().sum().backward()
    direct = codes.detach().requires_grad_()
    network.decode(direct).square().sum().backward()
    assert z.grad is not None and direct.grad is not None and torch.equal(z.grad, direct.grad)
    assert weight.grad is None


def test_the_commitment_loss_has_a_quarter_of_the_codebook_loss_gradient() -> None:
    z, codes = noise(3, 4, 2, 2).requires_grad_(), noise(3, 4, 2, 2, seed=1).requires_grad_()
    loss = movq.code_loss(z, codes, 0.25)
    assert torch.allclose(loss, 1.25 * (z - codes).square().mean(dim=(1, 2, 3)))
    loss.sum().backward()
    assert torch.allclose(codes.grad, -2 / 16 * (z - codes))  # type: ignore[arg-type]  # it has one
    assert torch.allclose(z.grad, 0.25 * 2 / 16 * (z - codes))  # type: ignore[arg-type]  # likewise


def test_a_quantised_objective_decodes_codes_and_trains_them(data: Compositions) -> None:
    network = autoencoder(Terms(quantised=True))
    objective = movq.objective(network, [data], RECIPE, 32, lambda: 5)
    rows = objective.draw(0)
    losses, measured = objective.loss(rows)
    z = network.movq.encode(rows["picture"])
    weight = network.movq.quantize.embedding.weight
    codes = weight[(z.movedim(1, -1)[..., None, :] - weight).square().sum(-1).argmin(-1)].movedim(-1, 1)
    reconstruction = movq.reconstruction_loss(network.movq.decode(codes), rows["picture"])
    assert torch.allclose(measured["reconstruction"], reconstruction, rtol=1e-4)
    assert torch.allclose(losses, reconstruction + 1.25 * (z - codes).square().mean(dim=(1, 2, 3)), rtol=1e-4)
    losses.sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0


def test_perplexity_is_the_number_of_equally_frequent_codes() -> None:
    assert movq.codes_in_use(torch.arange(12).view(3, 2, 2) % 6, 6) == pytest.approx({"codes_used": 1, "perplexity": 6})
    assert movq.codes_in_use(torch.full((2, 4, 4), 5), 6) == pytest.approx({"codes_used": 1 / 6, "perplexity": 1})
    half = movq.codes_in_use(torch.tensor([0, 0, 3, 3]), 4)
    assert half == pytest.approx({"codes_used": 0.5, "perplexity": 2})


def test_fit_codebook_finds_clusters() -> None:
    centres = torch.eye(4) * 5
    cells = centres.repeat(64, 1) + 0.01 * noise(256, 4)
    codes = nn.Embedding(4, 4)
    assert movq.fit_codebook(codes, cells.view(16, 16, 1, 4).permute(0, 3, 1, 2), seed=3) == 1.0
    assert (torch.cdist(centres, codes.weight.detach()).min(dim=1).values < 2.6).all()


# Initial weights, normalisation, sample grids and short runs


@torch.no_grad()
def test_standardise_normalises_latents_and_keeps_reconstructions() -> None:
    network = MoVQ(CONFIG)
    randomise(network)
    before = network.decode(network.encode(pictures(4)))
    movq.standardise(network, network.encode(pictures(4)))
    z = network.encode(pictures(4))
    assert torch.allclose(z.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(z.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4)
    assert (network.decode(z) - before).abs().max() < 1e-4 * before.abs().max()


@torch.no_grad()
def test_initialise_gives_unit_latents_and_codes_among_them() -> None:
    network = autoencoder(Terms(quantised=True)).movq
    z = network.encode(pictures(8))
    assert torch.allclose(z.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3)
    used = movq.codes_in_use(network.quantize(z)[1], CONFIG.num_vq_embeddings)
    assert used["codes_used"] == 1 and used["perplexity"] > 8


def test_the_sample_grid_measures_reconstructions(data: Compositions) -> None:
    truth = data.pictures(range(9))
    for terms, reports in ((Terms(), False), (Terms(quantised=True), True)):
        network = autoencoder(terms)
        picture, measured = movq.sample_grid(network, data, 9)(network.state_dict())
        with torch.no_grad():
            z = network.movq.encode(truth)
            decoded = network.movq.decode(network.movq.quantize(z)[0] if terms.quantised else z)
        assert picture.size == (8 * 64, 2 * 64)
        assert measured.loss == pytest.approx(float(movq.reconstruction_loss(decoded, truth).mean()), rel=1e-4)
        assert measured.further["psnr"] == pytest.approx(float(movq.psnr(decoded, truth).mean()), rel=1e-4)
        assert ("perplexity" in measured.further) == ("codes_used" in measured.further) == reports
    network = autoencoder(Terms())  # continuous latents, with a fitted codebook
    movq.fit_codebook(network.movq.quantize.embedding, network.movq.encode(truth).detach())
    assert 1 < movq.sample_grid(network, data, 9)(network.state_dict())[1].further["perplexity"] <= 16


@pytest.mark.parametrize("mode", MODES)
def test_a_short_training_lowers_the_validation_loss(mode: str, data: Compositions, tmp_path: Path) -> None:
    terms = MODES[mode]
    network = autoencoder(terms)
    sample_grid = movq.sample_grid(network, Compositions(tmp_path, 4, 64, seed=1))
    before = sample_grid(network.state_dict())[1].loss
    objective = movq.objective(network, [data], RECIPE, 32, lambda: 99, perceptual() if terms.perceptual else None)
    training = Training(network, objective, RECIPE, steps=8)
    lines = list(training)
    after = sample_grid(training.ema_state_dict())[1]
    assert all(math.isfinite(value) for line in lines for value in line.values.values())
    assert after.loss < 0.9 * before
    assert {"adversarial", "discriminator"} <= lines[-1].measured.means.keys() or not terms.adversarial


def test_accumulated_parts_have_the_gradient_of_the_batch(data: Compositions) -> None:
    network = autoencoder(ALL_TERMS)
    objective = movq.objective(network, [data], RECIPE, 32, lambda: 5, perceptual())
    expected, accumulated = (gradient_of(network, objective, count) for count in (1, 3))
    assert (accumulated - expected).norm() < 1e-4 * expected.norm()


def gradient_of(network: nn.Module, objective: Objective, parts: int) -> Tensor:
    training = Training(network, objective, replace(RECIPE, accumulate=parts), steps=1)
    training.compute_gradients(0)
    gradient = torch.cat([value.flatten() for value in gradients(network).values()])
    network.zero_grad()
    return gradient


@pytest.mark.parametrize("terms", [Terms(), Terms(quantised=True, perceptual=1.0)])
def test_the_loss_is_computed_on_the_device_of_the_rows(terms: Terms, data: Compositions) -> None:
    """The meta device stands for any device other than the CPU: no tensor on the CPU may be used."""
    network = autoencoder(terms).to("meta")
    objective = movq.objective(network, [data], RECIPE, 32, lambda: 5, perceptual() if terms.perceptual else None)
    losses, measured = objective.loss({name: value.to("meta") for name, value in objective.draw(0).items()})
    assert losses.is_meta and all(value.is_meta for value in measured.values())
