"""Plans of runs: fake tensors count like real ones, and counts equal real bytes, formulas and known facts."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from kandinsky22.checkpoints import full_size
from kandinsky22.engine import cost
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.unet import UNet, UNetConfig
from kandinsky22.training.loop import Batch, Loss, Objective, Recipe, Training
from kandinsky22.training.plan import Plan, plan_run
from kandinsky22.training.plan_table import GIB, expected_rate, table
from kandinsky22.training.step_cost import step_cost

RECIPE = Recipe(batch=8, learning_rate=1e-3)
SMALL = UNetConfig(
    block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=32, cross_attention_dim=16, encoder_hid_dim=24
)
PRIOR = PriorConfig(num_layers=2, num_attention_heads=2, attention_head_dim=16, embedding_dim=24, num_embeddings=7)
MOVQ = MoVQConfig(block_out_channels=(32, 64), layers_per_block=1, num_vq_embeddings=16)


def unet_rows(side: int, dim: int) -> Callable[[int], Batch]:
    return lambda n: {"x": torch.randn(n, 4, side, side), "t": torch.randint(1000, (n,)), "embeds": torch.randn(n, dim)}


def prior_rows(config: PriorConfig) -> Callable[[int], Batch]:
    length, dim = config.num_embeddings, config.embedding_dim
    return lambda n: {
        "x": torch.randn(n, dim),
        "t": torch.randint(1000, (n,)),
        "hidden": torch.randn(n, length, dim),
        "embed": torch.randn(n, dim),
        "mask": torch.ones(n, length, dtype=torch.bool),
    }


def unet_loss(unet: Any) -> Loss:
    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        output = unet(rows["x"], rows["t"], unet.condition(rows["embeds"])).float()
        return (output[:, :4] - rows["x"]).square().mean((1, 2, 3)), {}

    return loss


def prior_loss(prior: Any) -> Loss:
    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        prefix = prior.prefill(rows["hidden"], rows["embed"], rows["mask"])
        return (prior(rows["x"], rows["t"], prefix).float() - rows["x"]).square().mean(1), {}

    return loss


def movq_loss(movq: Any) -> Loss:
    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        decoded = movq.decode(movq.encode(rows["x"]).float()).float()
        return (decoded - rows["x"]).abs().mean((1, 2, 3)), {}

    return loss


def linear_loss(network: Any) -> Loss:
    return lambda rows: (network(rows["x"]).square().sum(1), {})


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Loss], Callable[[int], Batch]]] = {
    "unet": (lambda: UNet(SMALL), unet_loss, unet_rows(8, 24)),
    "prior": (lambda: PriorTransformer(PRIOR), prior_loss, prior_rows(PRIOR)),
    "movq": (lambda: MoVQ(MOVQ), movq_loss, lambda n: {"x": torch.randn(n, 3, 16, 16)}),
}


@cache
def small(recipe: Recipe = RECIPE, processes: int = 1, frozen: int = 0, device: str = "cuda") -> Plan:
    return plan_run(*NETWORKS["unet"], recipe, 10, processes=processes, frozen=frozen, device=device)


@pytest.mark.parametrize(
    ("name", "checkpointing", "bfloat16", "device"),
    [
        ("unet", False, True, "cuda"),
        ("unet", True, True, "cuda"),
        ("unet", False, False, "cpu"),
        ("unet", True, False, "cpu"),
        ("unet", False, True, "cpu"),
        ("prior", False, True, "cuda"),
        ("prior", False, True, "cpu"),
        ("movq", True, True, "cuda"),
    ],
)
def test_fake_tensors_cost_what_real_ones_cost(name: str, checkpointing: bool, bfloat16: bool, device: str) -> None:
    network, loss, rows = NETWORKS[name]
    recipe = replace(RECIPE, checkpointing=checkpointing, bfloat16=bfloat16)
    real = network()
    expected = step_cost(real, loss(real), rows(4), recipe, device=device)
    with FakeTensorMode():
        fake = network()
        actual = step_cost(fake, loss(fake), rows(4), recipe, device=device)
    # For fake tensors, PyTorch gives the statistics of the CPU's bfloat16 normalisation, a few per row, half their
    # bytes.
    tolerance = 0.02 if bfloat16 and device == "cpu" else 0
    assert actual._replace(activations=0) == expected._replace(activations=0)
    assert actual.activations == pytest.approx(expected.activations, rel=tolerance, abs=0)
    assert (expected.weight_copies > 0) == bfloat16
    assert (expected.recomputed > 0) == checkpointing


def test_planned_bytes_of_weights_and_optimizer_are_those_of_a_real_training() -> None:
    network, loss, rows = NETWORKS["unet"]
    torch.manual_seed(0)
    real = network()
    training = Training(real, Objective(lambda step: rows(8), loss(real)), RECIPE, 1)
    training.compute_gradients(0)
    plan = small()
    assert plan.weights == sum(p.nbytes for p in real.parameters())
    assert plan.gradients == sum(p.grad.nbytes for p in real.parameters() if p.grad is not None)
    assert plan.ema == sum(value.nbytes for value in training.ema.values())
    training.optimizer.step()
    states = training.optimizer.state.values()
    assert plan.moments == sum(state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes for state in states)


def test_activations_are_what_autograd_saves() -> None:
    """By hand: a linear layer, SiLU and the square each save their input; weights do not count."""
    network = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 7))
    recipe = replace(RECIPE, bfloat16=False)
    part = step_cost(network, linear_loss(network), {"x": torch.randn(4, 3)}, recipe, device="cpu")
    assert part.activations == 4 * 4 * (3 + 5 + 5 + 7)
    part = step_cost(network, linear_loss(network), {"x": torch.randn(4, 3)}, RECIPE, device="cpu")
    assert part.activations == 2 * 4 * (3 + 5 + 5 + 7)
    assert part.weight_copies == 2 * sum(p.numel() for p in network.parameters())


class Deep(nn.Module):
    """A network with a module list of blocks."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(8, 16), (8, 64), (8, 32)]
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(a, b), nn.SiLU(), nn.Linear(b, a)) for a, b in widths)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_checkpointing_saves_the_inputs_of_blocks_and_the_activations_of_the_largest() -> None:
    network, rows = Deep(), {"x": torch.randn(4, 8)}
    recipe = replace(RECIPE, bfloat16=False, checkpointing=True)
    part = step_cost(network, linear_loss(network), rows, recipe, device="cpu")
    # three inputs, the squared output, and the widest block's own
    assert part.activations == 4 * 4 * (3 * 8 + 8 + 2 * 64)
    forward = 2 * 4 * sum(2 * 8 * width for width in (16, 64, 32))
    assert 0 < part.recomputed <= forward


def test_linear_layers_have_the_operations_of_the_formula() -> None:
    """2 n in out forward, and twice that backward: for the weights' gradient and for the input's."""
    layers = nn.Sequential(nn.Linear(24, 32, bias=False), nn.Linear(32, 16, bias=False))
    plan = plan_run(
        lambda: layers_like(layers), linear_loss, lambda n: {"x": torch.randn(n, 24)}, RECIPE, 10, processes=1
    )
    first, second = 2 * 8 * 24 * 32, 2 * 8 * 32 * 16
    assert plan.operations == 2 * first + 3 * second  # the first layer's input needs no gradient
    assert plan.seconds(1e6) == pytest.approx(10 * plan.operations / 1e6)


def layers_like(layers: nn.Sequential) -> nn.Module:
    return nn.Sequential(*(nn.Linear(layer.in_features, layer.out_features, bias=False) for layer in layers))


def test_attention_is_counted() -> None:
    """PyTorch itself does not count the CPU's attention kernel: the cost must grow faster than the number of cells."""
    network, loss, _ = NETWORKS["unet"]
    few, many = (plan_run(network, loss, unet_rows(side, 24), RECIPE, 1, processes=1).operations for side in (8, 32))
    assert many > 16 * few


def test_plans_scale_with_rows_accumulation_and_processes() -> None:
    one = small()
    double = small(replace(RECIPE, batch=16))
    assert double.activations == 2 * one.activations
    assert (double.fixed_memory, double.operations) == (one.fixed_memory, 2 * one.operations)

    halves = small(replace(RECIPE, accumulate=2))
    assert halves.activations * 2 == one.activations
    assert (halves.fixed_memory, halves.operations) == (one.fixed_memory, one.operations)

    shared = small(processes=2)
    assert shared.rows == 4
    assert shared.activations == halves.activations
    assert (shared.operations, shared.gathered, shared.gradients) == (one.operations, one.weights, one.gradients)
    assert shared.seconds(1e9) == pytest.approx(one.seconds(1e9) / 2)
    for part in ("weights", "moments", "ema"):
        assert getattr(one, part) / 2 <= getattr(shared, part) < 0.51 * getattr(one, part)

    uneven = small(replace(RECIPE, accumulate=3))
    assert (uneven.rows, uneven.operations) == (3, one.operations)


def test_frozen_weights_have_no_gradients_moments_and_averages() -> None:
    def partly_frozen() -> nn.Module:
        unet = UNet(SMALL)
        unet.up_blocks.requires_grad_(False)
        return unet

    plan, trained = plan_run(partly_frozen, unet_loss, unet_rows(8, 24), RECIPE, 1, processes=1, frozen=1000), small()
    assert plan.weights == trained.weights
    assert plan.gradients == plan.ema == plan.moments // 2 < trained.gradients
    assert plan.step_memory == plan.fixed_memory + plan.activations
    assert plan.frozen == 1000


def test_cuda_saves_normalised_activations_in_float32() -> None:
    assert small(device="cuda").activations > 1.3 * small(device="cpu").activations
    float32 = replace(RECIPE, bfloat16=False)
    assert small(float32, device="cuda") == small(float32, device="cpu")


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot be cut into 16 parts; use a larger --batch"):
        small(replace(RECIPE, accumulate=2), processes=8)


def test_full_size_networks_are_planned_with_their_parameters() -> None:
    unet = plan_run(
        lambda: UNet(full_size.UNET), unet_loss, unet_rows(96, 1280), replace(RECIPE, batch=1), 1000, processes=1
    )
    assert unet.parameters == full_size.elements(UNet, full_size.UNET)
    assert unet.step_memory > 20 * unet.parameters  # weight, gradient, two moments, average
    assert 1 * GIB < unet.activations < 4 * GIB
    prior = plan_run(
        lambda: PriorTransformer(full_size.PRIOR),
        prior_loss,
        prior_rows(full_size.PRIOR),
        replace(RECIPE, batch=64),
        1000,
        processes=8,
    )
    assert prior.parameters == full_size.elements(PriorTransformer, full_size.PRIOR)
    assert prior.step_memory > (4 + 4 + 16 / 8) * prior.parameters
    tokens = 64 * (full_size.PRIOR.num_embeddings + 1 + 3)
    assert prior.operations > 6 * 0.9 * tokens * prior.parameters  # 2 forward and 4 backward for each weight and token


def test_the_table_states_what_is_counted_and_what_is_assumed() -> None:
    plan = small(replace(RECIPE, checkpointing=True), processes=2, frozen=GIB)
    lines = table(plan, expected_rate("H100 SXM"), "H100 SXM")
    text = "\n".join(lines)
    assert max(map(len, lines)) < 160
    for part in ("weights gathered", "gradients", "moments", "average", "bfloat16", "activations", "recomputed by"):
        assert any(line.lstrip().startswith(part) or part in line for line in lines), part
    assert "frozen networks" in text
    assert "1.00 GiB  as given" in text
    assert "assumed: 40% of the published peak, 989 T" in text
    assert "It fits H100 SXM" in text
    assert "10 steps of 8 rows on 2 x H100 SXM" in text


@pytest.mark.parametrize(
    ("change", "fixes"),
    [
        ({"activations": 40 * GIB}, "--accumulate 2, or --checkpointing, or more processes, or a device with"),
        ({"frozen": 30 * GIB}, "Use a device with more memory"),
        ({"moments": 30 * GIB}, "Use more processes, or a device with more memory"),
    ],
)
def test_the_table_names_what_helps_if_a_run_does_not_fit(change: dict[str, int], fixes: str) -> None:
    text = "\n".join(table(replace(small(), **change), 1e12, "RTX 4090"))  # type: ignore[arg-type]
    assert "It does NOT fit RTX 4090" in text
    assert fixes in text


def test_the_expected_rate_is_a_share_of_the_published_peak_or_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert expected_rate("A100 80GB") == pytest.approx(0.4 * 312e12)
    assert expected_rate("A100 80GB", bfloat16=False) == pytest.approx(0.4 * 19.5e12)
    monkeypatch.setattr(cost, "rate", lambda device, dtype: 5.0)
    assert expected_rate("cpu") == 5.0
    assert "measured" in "\n".join(table(small(), 1e9, "cpu"))
    with pytest.raises(ValueError, match="choose from H100 SXM"):
        expected_rate("abacus")
