"""The Inception network: names of the published tensors, the graph written out by hand, and files that are refused."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.evaluation.inception import FILE, SHA256, Inception, load

torch.set_num_threads(1)
# SHA-256 of the sorted lines "name [shape]" of the network of torch-fidelity 0.4.0, which loads the published file.
PUBLISHED_TENSORS = "bd04e829988dd22dd0bbf9e499a87af311ed57c1b4309a9d20a907d8ed4123d4"
Weights = dict[str, Tensor]


def tensors(network: Inception) -> Weights:
    """The tensors that the published file has."""
    return {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def shapes() -> Weights:
    with torch.device("meta"):
        return tensors(Inception())


@pytest.fixture(scope="module")
def empty_weights(shapes: Weights) -> Weights:
    """Zeros of the right shapes."""
    return {name: torch.zeros(value.shape, dtype=torch.float16) for name, value in shapes.items()}


@pytest.fixture(scope="module")
def weights(shapes: Weights) -> Weights:
    """Random weights, scaled so that activations neither explode nor vanish."""
    generator = torch.Generator().manual_seed(0)

    def draw(name: str, shape: torch.Size) -> Tensor:
        if len(shape) > 1:
            return torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
        positive = name.endswith(("bn.weight", "running_var"))
        return torch.rand(shape, generator=generator) + (0.5 if positive else -0.5)

    return {name: draw(name, value.shape) for name, value in shapes.items()}


@pytest.fixture(scope="module")
def published(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the old format of the published one, which is no zip file."""
    path = tmp_path_factory.mktemp("inception") / FILE
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    return path


def test_inception_has_the_names_and_shapes_of_the_published_tensors(shapes: Weights) -> None:
    lines = sorted(f"{name} {list(value.shape)}" for name, value in shapes.items())
    assert len(lines) == 472
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == PUBLISHED_TENSORS


def test_inception_has_the_parameter_count_of_inception_v3() -> None:
    """torchvision documents 27,161,264 for 1000 classes, with the auxiliary classifier that this network lacks."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Inception().parameters())
    auxiliary = 768 * 128 + 2 * 128 + 128 * 768 * 25 + 2 * 768 + 768 * 1000 + 1000
    assert count == 27_161_264 - auxiliary + 8 * (2048 + 1) == 23_850_960


def by_hand(w: Weights, x: Tensor) -> Tensor:
    """The graph from its description: the paper's figures 5, 6 and 7, with the graph's own pools."""

    def conv(name: str, x: Tensor, stride: int = 1, pad: tuple[int, int] | int = 0) -> Tensor:
        y = F.conv2d(x, w[f"{name}.conv.weight"], stride=stride, padding=pad)
        mean, var, scale, shift = (
            w[f"{name}.bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((y - mean) / (var + 0.001).sqrt() * scale + shift).clamp(min=0)

    def average(x: Tensor) -> Tensor:
        """The mean of the neighbours inside the map."""
        kernel = torch.ones(1, 1, 3, 3)
        total = F.conv2d(x.flatten(0, 1)[:, None], kernel, padding=1).view_as(x)
        return total / F.conv2d(torch.ones(1, 1, *x.shape[2:]), kernel, padding=1)

    def maximum(x: Tensor, stride: int, pad: int) -> Tensor:
        padded = F.pad(x, (pad,) * 4, value=-torch.inf)
        return padded.unfold(2, 3, stride).unfold(3, 3, stride).flatten(4).amax(-1)

    x = conv("Conv2d_2a_3x3", conv("Conv2d_1a_3x3", x, 2))
    x = maximum(conv("Conv2d_2b_3x3", x, pad=1), 2, 0)
    x = maximum(conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", x)), 2, 0)
    for m in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        five = conv(f"{m}.branch5x5_2", conv(f"{m}.branch5x5_1", x), pad=2)
        twice = conv(f"{m}.branch3x3dbl_2", conv(f"{m}.branch3x3dbl_1", x), pad=1)
        twice = conv(f"{m}.branch3x3dbl_3", twice, pad=1)
        x = torch.cat([conv(f"{m}.branch1x1", x), five, twice, conv(f"{m}.branch_pool", average(x))], 1)
    m = "Mixed_6a"
    twice = conv(f"{m}.branch3x3dbl_2", conv(f"{m}.branch3x3dbl_1", x), pad=1)
    x = torch.cat([conv(f"{m}.branch3x3", x, 2), conv(f"{m}.branch3x3dbl_3", twice, 2), maximum(x, 2, 0)], 1)
    across, down = (0, 3), (3, 0)
    for m in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        one = conv(f"{m}.branch7x7_1", x)
        for k, pad in ((2, across), (3, down)):
            one = conv(f"{m}.branch7x7_{k}", one, pad=pad)
        two = conv(f"{m}.branch7x7dbl_1", x)
        for k, pad in ((2, down), (3, across), (4, down), (5, across)):
            two = conv(f"{m}.branch7x7dbl_{k}", two, pad=pad)
        x = torch.cat([conv(f"{m}.branch1x1", x), one, two, conv(f"{m}.branch_pool", average(x))], 1)
    m = "Mixed_7a"
    seven = conv(f"{m}.branch7x7x3_2", conv(f"{m}.branch7x7x3_1", x), pad=across)
    seven = conv(f"{m}.branch7x7x3_4", conv(f"{m}.branch7x7x3_3", seven, pad=down), 2)
    x = torch.cat([conv(f"{m}.branch3x3_2", conv(f"{m}.branch3x3_1", x), 2), seven, maximum(x, 2, 0)], 1)
    for m, pooled in (("Mixed_7b", average), ("Mixed_7c", lambda x: maximum(x, 1, 1))):
        one = conv(f"{m}.branch3x3_1", x)
        two = conv(f"{m}.branch3x3dbl_2", conv(f"{m}.branch3x3dbl_1", x), pad=1)
        split = [conv(f"{m}.branch3x3_2a", one, pad=(0, 1)), conv(f"{m}.branch3x3_2b", one, pad=(1, 0))]
        split += [conv(f"{m}.branch3x3dbl_3a", two, pad=(0, 1)), conv(f"{m}.branch3x3dbl_3b", two, pad=(1, 0))]
        x = torch.cat([conv(f"{m}.branch1x1", x), *split, conv(f"{m}.branch_pool", pooled(x))], 1)
    return x.flatten(2).mean(-1)


def test_inception_equals_the_graph_written_by_hand(published: Path, weights: Weights) -> None:
    network, sha256 = load(published)
    assert sha256 == hashlib.sha256(published.read_bytes()).hexdigest()
    assert not any(module.training for module in network.modules())
    assert not any(value.requires_grad or value.is_meta for value in network.state_dict(keep_vars=True).values())
    x = torch.rand(1, 3, 107, 107, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features, expected = network(x), by_hand(weights, x)
    assert features.shape == (1, 2048)
    assert (features - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (expected > 0).float().mean() > 0.5  # so that agreement means something


def test_load_accepts_safetensors_half_precision_and_counters(
    weights: Weights, published: Path, tmp_path: Path
) -> None:
    """.safetensors, half precision, and the counters that newer torch adds."""
    path = tmp_path / "inception.safetensors"
    counters = {"Mixed_5b.branch1x1.bn.num_batches_tracked": torch.tensor(7)}
    save_file({name: value.half() for name, value in weights.items()} | counters, path)
    network, sha256 = load(path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest() != SHA256
    assert torch.equal(network.fc.weight, weights["fc.weight"].half().float())


def save(values: Any, path: Path) -> Path:
    torch.save(values, path)
    return path


WRONG: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "torchvision's": (
        lambda w: w | {"fc.weight": torch.zeros(1000, 2048)},
        r"fc.weight is \[1000, 2048\], not \[1008, 2048\]\)",
    ),
    "with the auxiliary classifier": (
        lambda w: w | {"AuxLogits.conv0.conv.weight": torch.zeros(1), "AuxLogits.fc.bias": torch.zeros(1)},
        "AuxLogits.conv0.conv.weight is none of its tensors; AuxLogits.fc.bias is none of its tensors",
    ),
    "cut short": (
        lambda w: {name: value for name, value in w.items() if not name.startswith("fc")},
        "fc.weight is missing; fc.bias is missing",
    ),
    "another network": (
        lambda w: {"conv1.weight": torch.zeros(3)},
        "Conv2d_1a_3x3.conv.weight is missing; .* and 470 more",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_load_refuses_another_network(
    change: Callable[[Weights], Any], message: str, empty_weights: Weights, tmp_path: Path
) -> None:
    path = save(change(dict(empty_weights)), tmp_path / "weights.pth")
    with pytest.raises(
        CheckpointError, match=rf"is not FID's Inception \({message}.*; pass {FILE} of the release"
    ) as raised:
        load(path)
    assert "\n" not in str(raised.value)


def test_load_refuses_torchscript(tmp_path: Path) -> None:
    """A zip file with the entries that torch.jit.save writes."""
    path = tmp_path / "inception-2015-12-05.pt"
    with ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__/torch/nn.py", "version"):
            archive.writestr(f"inception/{name}", b"")
    with pytest.raises(CheckpointError, match=rf"is TorchScript, a program, which is not run; pass {FILE}"):
        load(path)


class RunsWhenUnpickled:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("it was run",)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"not weights at all", bytes(1000), b"\x80\x02}q\x00."])
def test_load_refuses_damaged_files(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"(damaged or holds no tensors|is not FID's Inception).*; pass {FILE}"):
        load(tmp_path / name)


@pytest.mark.parametrize("share", [0.999, 0.5, 0.01])
@pytest.mark.parametrize("zipped", [True, False])
def test_load_refuses_truncated_files(share: float, zipped: bool, empty_weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(empty_weights, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match="is damaged or holds no tensors; pass"):
        load(path)


@pytest.mark.parametrize(
    "values", [RunsWhenUnpickled(), [1, 2], {"epoch": 3}, {"state_dict": nn.Linear(2, 2).state_dict()}]
)
def test_load_refuses_other_pickles_without_running_them(values: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is damaged or holds no tensors; pass"):
        load(save(values, tmp_path / "weights.pth"))


def test_load_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"does not exist; pass {FILE}"):
        load(tmp_path / "weights.pth")


def test_load_refuses_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"is a folder, and weights are a file; pass {FILE}"):
        load(tmp_path)
