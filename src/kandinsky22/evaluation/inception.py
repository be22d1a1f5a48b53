"""The Inception network that FID is measured with: Google's graph of 2015-12-05, its weights as pytorch-fid publishes them.

It is Inception v3 (Szegedy et al. 2016, arXiv:1512.00567) with what that graph does otherwise: 1008 classes, average pools that
do not count the padding, and in the last block a maximum where the paper has an average. Module names are the published
tensor names. Weights come from a file that the user names; nothing is fetched.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.network import Uninitialised
from kandinsky22.checkpoints.verify import sha256
from kandinsky22.checkpoints.weight_files import read_pickled

NAME = "inception-2015"
SIDE, DIM, CLASSES = 299, 2048, 1008
FILE = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
PASS = f"pass {FILE} of the release fid_weights of mseitzer/pytorch-fid, or the same tensors as .safetensors"
COUNTERS = ".num_batches_tracked"  # of training; some files have them, and nothing here needs them

Pool = Callable[[Tensor], Tensor]
AVERAGE: Pool = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
MAXIMUM: Pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
HALVED: Pool = partial(F.max_pool2d, kernel_size=3, stride=2)


class _To(NamedTuple):
    """A convolution to so many channels: its kernel, or several, side by side; with a stride of 2 it has no padding."""

    channels: int
    kernels: tuple[tuple[int, int], ...] = ((1, 1),)
    stride: int = 1


Branches = Mapping[str, Sequence[_To]]
SQUARE, WIDE, TALL = ((3, 3),), ((1, 7),), ((7, 1),)
CROSS = ((1, 3), (3, 1))


def _a(pooled: int) -> Branches:
    return {
        "branch1x1": [_To(64)],
        "branch5x5": [_To(48), _To(64, ((5, 5),))],
        "branch3x3dbl": [_To(64), _To(96, SQUARE), _To(96, SQUARE)],
        "branch_pool": [_To(pooled)],
    }


def _c(narrow: int) -> Branches:
    return {
        "branch1x1": [_To(192)],
        "branch7x7": [_To(narrow), _To(narrow, WIDE), _To(192, TALL)],
        "branch7x7dbl": [_To(narrow), _To(narrow, TALL), _To(narrow, WIDE), _To(narrow, TALL), _To(192, WIDE)],
        "branch_pool": [_To(192)],
    }


B: Branches = {
    "branch3x3": [_To(384, SQUARE, 2)],
    "branch3x3dbl": [_To(64), _To(96, SQUARE), _To(96, SQUARE, 2)],
    "branch_pool": [],
}
D: Branches = {
    "branch3x3": [_To(192), _To(320, SQUARE, 2)],
    "branch7x7x3": [_To(192), _To(192, WIDE), _To(192, TALL), _To(192, SQUARE, 2)],
    "branch_pool": [],
}
E: Branches = {
    "branch1x1": [_To(320)],
    "branch3x3": [_To(384), _To(384, CROSS)],
    "branch3x3dbl": [_To(448), _To(384, SQUARE), _To(384, CROSS)],
    "branch_pool": [_To(192)],
}


class Inception(nn.Module):
    """Pixels -> what the last pool gives, of which the classes follow."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = _Convolution(32, 64, (3, 3), padding=(1, 1))
        self.Conv2d_3b_1x1 = _Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Convolution(80, 192, (3, 3))
        self.Mixed_5b = _Mixed(192, _a(32), AVERAGE)
        self.Mixed_5c = _Mixed(256, _a(64), AVERAGE)
        self.Mixed_5d = _Mixed(288, _a(64), AVERAGE)
        self.Mixed_6a = _Mixed(288, B, HALVED)
        self.Mixed_6b = _Mixed(768, _c(128), AVERAGE)
        self.Mixed_6c = _Mixed(768, _c(160), AVERAGE)
        self.Mixed_6d = _Mixed(768, _c(160), AVERAGE)
        self.Mixed_6e = _Mixed(768, _c(192), AVERAGE)
        self.Mixed_7a = _Mixed(768, D, HALVED)
        self.Mixed_7b = _Mixed(1280, E, AVERAGE)
        self.Mixed_7c = _Mixed(2048, E, MAXIMUM)
        self.fc = nn.Linear(DIM, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: [n, 3, 299, 299] in about [-1, 1] (`resize.WAYS` says which) -> features [n, 2048], at least 0."""
        x = HALVED(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels))))
        x = HALVED(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """features [n, 2048] -> [n, 1008]."""
        return self.fc(features)


class _Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        entering: int,
        leaving: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(entering, leaving, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(leaving, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Branches side by side, the one called branch_pool after a pool; what leaves them is joined in their order.

    The convolutions of a branch are numbered from 1, unless it has only one; those side by side are a and b.
    """

    def __init__(self, entering: int, branches: Branches, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.chains: dict[str, list[list[str]]] = {}
        for branch, steps in branches.items():
            widths = pairwise([entering, *(step.channels for step in steps)])
            self.chains[branch] = [
                self._step(branch if len(steps) == 1 else f"{branch}_{number}", width, step)
                for number, ((width, _), step) in enumerate(zip(widths, steps, strict=True), 1)
            ]

    def _step(self, name: str, entering: int, step: _To) -> list[str]:
        """Adds a step's convolutions, and names them."""
        names = [name + (chr(ord("a") + k) if len(step.kernels) > 1 else "") for k in range(len(step.kernels))]
        for part, kernel in zip(names, step.kernels, strict=True):
            padding = (kernel[0] // 2, kernel[1] // 2) if step.stride == 1 else (0, 0)
            self.add_module(part, _Convolution(entering, step.channels, kernel, stride=step.stride, padding=padding))
        return names

    def forward(self, x: Tensor) -> Tensor:
        leaving: list[Tensor] = []
        for branch, chain in self.chains.items():
            ys = [self.pool(x) if branch == "branch_pool" else x]
            for names in chain:
                ys = [self.get_submodule(name)(ys[0]) for name in names]
            leaving += ys
        return torch.cat(leaving, dim=1)


def load(path: Path) -> tuple[Inception, str]:
    """The network for inference, float32 on the CPU, and the SHA-256 of its file; `SHA256` is the published one's.

    path: a .pth or .safetensors of tensors; nothing in it is run. Raises `CheckpointError`, in one sentence that names the file
    to pass, for what is missing, damaged, a program (TorchScript), or another network.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, and weights are a file; {PASS}")
    if not path.is_file():
        raise CheckpointError(f"{path} is not there; {PASS}")
    if _is_program(path):
        raise CheckpointError(f"{path} is TorchScript, a program, which is not run; {PASS}")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else read_pickled(path)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, UnpicklingError, LookupError) as error:
        raise CheckpointError(f"{path} is damaged or holds no tensors; {PASS}") from error
    with torch.device("meta"), Uninitialised():
        network = Inception()
    wanted = {name: value.shape for name, value in network.state_dict().items() if not name.endswith(COUNTERS)}
    found = {name: value for name, value in found.items() if not name.endswith(COUNTERS)}
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} is none of its tensors" for name in found if name not in wanted]
    wrong += [
        f"{name} is {list(found[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    if wrong:
        others = f", and {len(wrong) - 1} more like it" if len(wrong) > 1 else ""
        raise CheckpointError(f"{path} is not FID's Inception ({wrong[0]}{others}); {PASS}")
    counters = {name: torch.tensor(0) for name in network.state_dict() if name.endswith(COUNTERS)}
    network.load_state_dict({name: value.float() for name, value in found.items()} | counters, assign=True)
    return network.eval().requires_grad_(False), sha256(path)


def _is_program(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with code in it."""
    if not is_zipfile(path):
        return False
    try:
        with ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (BadZipFile, OSError):
        return False
