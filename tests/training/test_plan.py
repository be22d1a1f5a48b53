"""What a run needs: counted without numbers as with them, against the real bytes, formulas, and facts that are known."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from kandinsky22.checkpoints import full_size
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.unet import UNet, UNetConfig
from kandinsky22.training import plan as planning
from kandinsky22.training.loop import Batch, Objective, Recipe, Training
from kandinsky22.training.plan import GIB, Plan, counted, planned, reached, table

RECIPE = Recipe(batch=8, learning_rate=1e-3)
SMALL = UNetConfig(
    block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=32, cross_attention_dim=16, encoder_hid_dim=24
)
PRIOR = PriorConfig(num_layers=2, num_attention_heads=2, attention_head_dim=16, embedding_dim=24, num_embeddings=7)
MOVQ = MoVQConfig(block_out_channels=(32, 64), layers_per_block=1, num_vq_embeddings=16)

Loss = Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]


def painted(side: int, dim: int) -> Callable[[int], Batch]:
    return lambda n: {"x": torch.randn(n, 4, side, side), "t": torch.randint(1000, (n,)), "embeds": torch.randn(n, dim)}


def told(config: PriorConfig) -> Callable[[int], Batch]:
    length, dim = config.num_embeddings, config.embedding_dim
    return lambda n: {
        "x": torch.randn(n, dim),
        "t": torch.randint(1000, (n,)),
        "hidden": torch.randn(n, length, dim),
        "embed": torch.randn(n, dim),
        "mask": torch.ones(n, length, dtype=torch.bool),
    }


def painting(unet: Any) -> Loss:
    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        output = unet(rows["x"], rows["t"], unet.condition(rows["embeds"])).float()
        return (output[:, :4] - rows["x"]).square().mean((1, 2, 3)), {}

    return loss


def telling(prior: Any) -> Loss:
    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        prefix = prior.prefill(rows["hidden"], rows["embed"], rows["mask"])
        return (prior(rows["x"], rows["t"], prefix).float() - rows["x"]).square().mean(1), {}

    return loss


def giving_back(movq: Any) -> Loss:
    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        decoded = movq.decode(movq.encode(rows["x"]).float()).float()
        return (decoded - rows["x"]).abs().mean((1, 2, 3)), {}

    return loss


def linear(network: Any) -> Loss:
    return lambda rows: (network(rows["x"]).square().sum(1), {})


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Loss], Callable[[int], Batch]]] = {
    "unet": (lambda: UNet(SMALL), painting, painted(8, 24)),
    "prior": (lambda: PriorTransformer(PRIOR), telling, told(PRIOR)),
    "movq": (lambda: MoVQ(MOVQ), giving_back, lambda n: {"x": torch.randn(n, 3, 16, 16)}),
}


@cache  # nothing changes a plan
def small(recipe: Recipe = RECIPE, processes: int = 1, frozen: int = 0, device: str = "cuda") -> Plan:
    return planned(*NETWORKS["unet"], recipe, 10, processes=processes, frozen=frozen, device=device)


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
def test_without_numbers_it_counts_what_it_counts_with_them(
    name: str, checkpointing: bool, bfloat16: bool, device: str
) -> None:
    network, loss, rows = NETWORKS[name]
    recipe = replace(RECIPE, checkpointing=checkpointing, bfloat16=bfloat16)
    real = network()
    expected = counted(real, loss(real), rows(4), recipe, device=device)
    with FakeTensorMode():
        fake = network()
        found = counted(fake, loss(fake), rows(4), recipe, device=device)
    # without numbers, PyTorch gives the statistics of the CPU's bfloat16 normalisation, a few for each row, half their bytes
    near = 0.02 if bfloat16 and device == "cpu" else 0
    assert found._replace(activations=0) == expected._replace(activations=0)
    assert found.activations == pytest.approx(expected.activations, rel=near, abs=0)
    assert (expected.copies > 0) == bfloat16
    assert (expected.recomputed > 0) == checkpointing


def test_the_state_is_the_real_bytes_of_a_training() -> None:
    network, loss, rows = NETWORKS["unet"]
    torch.manual_seed(0)
    real = network()
    training = Training(real, Objective(lambda step: rows(8), loss(real)), RECIPE, 1)
    training.gradients(0)
    plan = small()
    assert plan.weights == sum(p.nbytes for p in real.parameters())
    assert plan.gradients == sum(p.grad.nbytes for p in real.parameters() if p.grad is not None)
    assert plan.average == sum(value.nbytes for value in training.ema.values())
    training.optimizer.step()
    states = training.optimizer.state.values()
    assert plan.moments == sum(state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes for state in states)


def test_activations_are_what_autograd_keeps() -> None:
    """By hand: a layer keeps its input, SiLU keeps its own, and the square keeps what it squares; weights do not count."""
    network = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 7))
    recipe = replace(RECIPE, bfloat16=False)
    part = counted(network, linear(network), {"x": torch.randn(4, 3)}, recipe, device="cpu")
    assert part.activations == 4 * 4 * (3 + 5 + 5 + 7)
    part = counted(network, linear(network), {"x": torch.randn(4, 3)}, RECIPE, device="cpu")
    assert part.activations == 2 * 4 * (3 + 5 + 5 + 7)
    assert part.copies == 2 * sum(p.numel() for p in network.parameters())


class Deep(nn.Module):
    """Blocks, as the networks have them."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(8, 16), (8, 64), (8, 32)]
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(a, b), nn.SiLU(), nn.Linear(b, a)) for a, b in widths)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_checkpointing_keeps_what_blocks_are_given_and_the_largest_of_them() -> None:
    network, rows = Deep(), {"x": torch.randn(4, 8)}
    recipe = replace(RECIPE, bfloat16=False, checkpointing=True)
    part = counted(network, linear(network), rows, recipe, device="cpu")
    assert part.activations == 4 * 4 * (3 * 8 + 8 + 2 * 64)  # three inputs, what is squared, and within the widest
    forward = 2 * 4 * sum(2 * 8 * width for width in (16, 64, 32))
    assert 0 < part.recomputed <= forward


def test_operations_of_a_linear_layer() -> None:
    """2 n in out forward, and twice that back: for the weights and for the layer before."""
    layers = nn.Sequential(nn.Linear(24, 32, bias=False), nn.Linear(32, 16, bias=False))
    plan = planned(lambda: layers_like(layers), linear, lambda n: {"x": torch.randn(n, 24)}, RECIPE, 10, processes=1)
    first, second = 2 * 8 * 24 * 32, 2 * 8 * 32 * 16
    assert plan.operations == 2 * first + 3 * second  # nothing is before the first layer
    assert plan.seconds(1e6) == pytest.approx(10 * plan.operations / 1e6)


def layers_like(layers: nn.Sequential) -> nn.Module:
    return nn.Sequential(*(nn.Linear(layer.in_features, layer.out_features, bias=False) for layer in layers))


def test_attention_is_counted() -> None:
    """The CPU's attention is not among what PyTorch counts: more cells must cost more than in proportion."""
    network, loss, _ = NETWORKS["unet"]
    few, many = (planned(network, loss, painted(side, 24), RECIPE, 1, processes=1).operations for side in (8, 32))
    assert many > 16 * few


def test_more_rows_more_parts_and_more_processes() -> None:
    one = small()
    double = small(replace(RECIPE, batch=16))
    assert double.activations == 2 * one.activations
    assert (double.state, double.operations) == (one.state, 2 * one.operations)

    halves = small(replace(RECIPE, accumulate=2))
    assert halves.activations * 2 == one.activations
    assert (halves.state, halves.operations) == (one.state, one.operations)

    shared = small(processes=2)
    assert shared.rows == 4
    assert shared.activations == halves.activations
    assert (shared.operations, shared.gathered, shared.gradients) == (one.operations, one.weights, one.gradients)
    assert shared.seconds(1e9) == pytest.approx(one.seconds(1e9) / 2)
    for part in ("weights", "moments", "average"):
        assert getattr(one, part) / 2 <= getattr(shared, part) < 0.51 * getattr(one, part)

    uneven = small(replace(RECIPE, accumulate=3))
    assert (uneven.rows, uneven.operations) == (3, one.operations)


def test_frozen_weights_are_held_and_not_learnt() -> None:
    def half() -> nn.Module:
        unet = UNet(SMALL)
        unet.up_blocks.requires_grad_(False)
        return unet

    plan, all_of_it = planned(half, painting, painted(8, 24), RECIPE, 1, processes=1, frozen=1000), small()
    assert plan.weights == all_of_it.weights
    assert plan.gradients == plan.average == plan.moments // 2 < all_of_it.gradients
    assert plan.total == plan.state + plan.activations
    assert plan.frozen == 1000


def test_cuda_keeps_normalised_activations_in_float32() -> None:
    assert small(device="cuda").activations > 1.3 * small(device="cpu").activations
    whole = replace(RECIPE, bfloat16=False)
    assert small(whole, device="cuda") == small(whole, device="cpu")


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot be cut into 16 parts; use a larger --batch"):
        small(replace(RECIPE, accumulate=2), processes=8)


def test_the_full_size_networks_are_planned_as_they_are() -> None:
    unet = planned(
        lambda: UNet(full_size.UNET), painting, painted(96, 1280), replace(RECIPE, batch=1), 1000, processes=1
    )
    assert unet.parameters == full_size.elements(UNet, full_size.UNET)
    assert unet.total > 20 * unet.parameters  # weight, gradient, two moments, average
    assert 1 * GIB < unet.activations < 4 * GIB
    prior = planned(
        lambda: PriorTransformer(full_size.PRIOR),
        telling,
        told(full_size.PRIOR),
        replace(RECIPE, batch=64),
        1000,
        processes=8,
    )
    assert prior.parameters == full_size.elements(PriorTransformer, full_size.PRIOR)
    assert prior.total > (4 + 4 + 16 / 8) * prior.parameters
    tokens = 64 * (full_size.PRIOR.num_embeddings + 1 + 3)
    assert prior.operations > 6 * 0.9 * tokens * prior.parameters  # 2 forward and 4 back of each weight for each token


def test_the_table_says_what_is_counted_and_what_is_assumed() -> None:
    plan = small(replace(RECIPE, checkpointing=True), processes=2, frozen=GIB)
    lines = table(plan, reached("H100 SXM"), "H100 SXM")
    said = "\n".join(lines)
    assert max(map(len, lines)) < 160
    for part in ("weights gathered", "gradients", "moments", "average", "bfloat16", "activations", "computed again"):
        assert any(line.lstrip().startswith(part) or part in line for line in lines), part
    assert "networks that do not learn" in said
    assert "1.00 GiB  as given" in said
    assert "assumed: 40% of the published peak, 989 T" in said
    assert "It fits H100 SXM" in said
    assert "10 steps of 8 rows on 2 x H100 SXM" in said


@pytest.mark.parametrize(
    ("change", "fixes"),
    [
        ({"activations": 40 * GIB}, "--accumulate 2, or --checkpointing, or more processes, or a device with"),
        ({"frozen": 30 * GIB}, "Use a device with more memory"),
        ({"moments": 30 * GIB}, "Use more processes, or a device with more memory"),
    ],
)
def test_what_does_not_fit_is_said_with_what_helps(change: dict[str, int], fixes: str) -> None:
    said = "\n".join(table(replace(small(), **change), 1e12, "RTX 4090"))  # type: ignore[arg-type]
    assert "It does NOT fit RTX 4090" in said
    assert fixes in said


def test_the_rate_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reached("A100 80GB") == pytest.approx(0.4 * 312e12)
    assert reached("A100 80GB", bfloat16=False) == pytest.approx(0.4 * 19.5e12)
    monkeypatch.setattr(planning.cost, "rate", lambda device, dtype: 5.0)
    assert reached("cpu") == 5.0
    assert "measured" in "\n".join(table(small(), 1e9, "cpu"))
    with pytest.raises(ValueError, match="choose from H100 SXM"):
        reached("abacus")
