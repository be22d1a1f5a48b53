"""The Inception network of FID: Google's graph of 2015-12-05, with the weights that pytorch-fid publishes.

It is Inception v3 (Szegedy et al. 2016, arXiv:1512.00567) with that graph's differences: 1008 classes, average pools
that do not count the padding, and a max pool in the last block where the paper has an average pool. Modules have the
names of the published tensors. Weights come from a file that the user names; nothing is downloaded.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.checkpoints.json_files import CheckpointError, summary
from kandinsky22.checkpoints.network import Uninitialised
from kandinsky22.checkpoints.safetensors_file import SUFFIX, read_tensors
from kandinsky22.checkpoints.verify import sha256
from kandinsky22.checkpoints.weight_files import read_pickled, zip_entries
from kandinsky22.files import open_regular

NAME = "inception-2015"
SIDE, DIM, CLASSES = 299, 2048, 1008
FILE = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # of the published file
PASS = f"pass {FILE} of the release fid_weights of mseitzer/pytorch-fid, or the same tensors as .safetensors"
COUNTERS = ".num_batches_tracked"  # batch norm counters of training, in some files; inference does not need them

Pool = Callable[[Tensor], Tensor]
AVERAGE_POOL: Pool = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
MAX_POOL: Pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
HALVING_POOL: Pool = partial(F.max_pool2d, kernel_size=3, stride=2)


class _Conv(NamedTuple):
    """A convolution with so many output channels; several kernels run in parallel.

    With a stride of 2 there is no padding.
    """

    channels: int
    kernels: tuple[tuple[int, int], ...] = ((1, 1),)
    stride: int = 1


Branches = Mapping[str, Sequence[_Conv]]
"""The convolutions of each branch of a block; blocks are named A to E, as in torchvision's Inception v3."""
SQUARE, WIDE, TALL = ((3, 3),), ((1, 7),), ((7, 1),)
CROSS = ((1, 3), (3, 1))


def _block_a(pooled: int) -> Branches:
    return {
        "branch1x1": [_Conv(64)],
        "branch5x5": [_Conv(48), _Conv(64, ((5, 5),))],
        "branch3x3dbl": [_Conv(64), _Conv(96, SQUARE), _Conv(96, SQUARE)],
        "branch_pool": [_Conv(pooled)],
    }


def _block_c(narrow: int) -> Branches:
    return {
        "branch1x1": [_Conv(192)],
        "branch7x7": [_Conv(narrow), _Conv(narrow, WIDE), _Conv(192, TALL)],
        "branch7x7dbl": [
            _Conv(narrow),
            _Conv(narrow, TALL),
            _Conv(narrow, WIDE),
            _Conv(narrow, TALL),
            _Conv(192, WIDE),
        ],
        "branch_pool": [_Conv(192)],
    }


BLOCK_B: Branches = {
    "branch3x3": [_Conv(384, SQUARE, 2)],
    "branch3x3dbl": [_Conv(64), _Conv(96, SQUARE), _Conv(96, SQUARE, 2)],
    "branch_pool": [],
}
BLOCK_D: Branches = {
    "branch3x3": [_Conv(192), _Conv(320, SQUARE, 2)],
    "branch7x7x3": [_Conv(192), _Conv(192, WIDE), _Conv(192, TALL), _Conv(192, SQUARE, 2)],
    "branch_pool": [],
}
BLOCK_E: Branches = {
    "branch1x1": [_Conv(320)],
    "branch3x3": [_Conv(384), _Conv(384, CROSS)],
    "branch3x3dbl": [_Conv(448), _Conv(384, SQUARE), _Conv(384, CROSS)],
    "branch_pool": [_Conv(192)],
}


class Inception(nn.Module):
    """Pixels -> the features of the last pool; the classifier behind it is loaded and not used."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = _Convolution(32, 64, (3, 3), padding=(1, 1))
        self.Conv2d_3b_1x1 = _Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Convolution(80, 192, (3, 3))
        self.Mixed_5b = _Mixed(192, _block_a(32), AVERAGE_POOL)
        self.Mixed_5c = _Mixed(256, _block_a(64), AVERAGE_POOL)
        self.Mixed_5d = _Mixed(288, _block_a(64), AVERAGE_POOL)
        self.Mixed_6a = _Mixed(288, BLOCK_B, HALVING_POOL)
        self.Mixed_6b = _Mixed(768, _block_c(128), AVERAGE_POOL)
        self.Mixed_6c = _Mixed(768, _block_c(160), AVERAGE_POOL)
        self.Mixed_6d = _Mixed(768, _block_c(160), AVERAGE_POOL)
        self.Mixed_6e = _Mixed(768, _block_c(192), AVERAGE_POOL)
        self.Mixed_7a = _Mixed(768, BLOCK_D, HALVING_POOL)
        self.Mixed_7b = _Mixed(1280, BLOCK_E, AVERAGE_POOL)
        self.Mixed_7c = _Mixed(2048, BLOCK_E, MAX_POOL)
        self.fc = nn.Linear(DIM, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: [n, 3, 299, 299] in about [-1, 1] (see `resize.RESIZINGS`) -> features [n, 2048], at least 0."""
        x = HALVING_POOL(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels))))
        x = HALVING_POOL(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))


class _Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Parallel branches whose outputs are concatenated; the one called branch_pool starts with a pool.

    The convolutions of a branch are numbered from 1, unless there is only one; parallel kernels have the suffixes a and
    b.
    """

    def __init__(self, in_channels: int, branches: Branches, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.chains: dict[str, list[list[str]]] = {}
        for branch, steps in branches.items():
            widths = pairwise([in_channels, *(step.channels for step in steps)])
            self.chains[branch] = [
                self._step(branch if len(steps) == 1 else f"{branch}_{number}", width, step)
                for number, ((width, _), step) in enumerate(zip(widths, steps, strict=True), 1)
            ]

    def _step(self, name: str, in_channels: int, step: _Conv) -> list[str]:
        """Add a step's convolutions as modules; returns their names."""
        names = [name + (chr(ord("a") + k) if len(step.kernels) > 1 else "") for k in range(len(step.kernels))]
        for part, kernel in zip(names, step.kernels, strict=True):
            padding = (kernel[0] // 2, kernel[1] // 2) if step.stride == 1 else (0, 0)
            self.add_module(part, _Convolution(in_channels, step.channels, kernel, stride=step.stride, padding=padding))
        return names

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for branch, chain in self.chains.items():
            ys = [self.pool(x) if branch == "branch_pool" else x]
            for names in chain:
                ys = [self.get_submodule(name)(ys[0]) for name in names]
            outputs += ys
        return torch.cat(outputs, dim=1)


def load(path: Path) -> tuple[Inception, str]:
    """The network for inference, float32 on the CPU, and the SHA-256 of its file.

    path: a .pth or .safetensors file of tensors; no code in it is run. Raises `CheckpointError`, one sentence that
    names the file to pass, for a file that is missing or damaged, a TorchScript program, or another network.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, and weights are a file; {PASS}")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; {PASS}")
    if _is_torchscript(path):
        raise CheckpointError(f"{path} is TorchScript, a program, which is not run; {PASS}")
    try:
        tensors = read_tensors(path) if path.suffix == SUFFIX else read_pickled(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or holds no tensors; {PASS}") from error
    with torch.device("meta"), Uninitialised():
        network = Inception()
    expected = {name: value.shape for name, value in network.state_dict().items() if not name.endswith(COUNTERS)}
    tensors = {name: value for name, value in tensors.items() if not name.endswith(COUNTERS)}
    wrong = [f"{name} is missing" for name in expected if name not in tensors]
    wrong += [f"{name} is none of its tensors" for name in tensors if name not in expected]
    wrong += [
        f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    wrong += [f"{name} is {value.dtype}" for name, value in tensors.items() if not value.is_floating_point()]
    if wrong:
        raise CheckpointError(f"{path} is not FID's Inception ({summary(wrong)}); {PASS}")
    if infinite := next((name for name, value in tensors.items() if not value.isfinite().all()), None):
        raise CheckpointError(f"{path} has numbers in {infinite} that are not finite; {PASS}")
    counters = {name: torch.tensor(0) for name in network.state_dict() if name.endswith(COUNTERS)}
    network.load_state_dict({name: value.float() for name, value in tensors.items()} | counters, assign=True)
    return network.eval().requires_grad_(False), sha256(path)


def _is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip file with code."""
    try:
        with open_regular(path) as file:
            return any("/code/" in entry.filename for entry in zip_entries(file))
    except (OSError, ValueError):
        return False
