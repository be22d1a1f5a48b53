"""Initialising a network with the weights of another, which may have fewer input channels."""

from collections.abc import Mapping

from torch import Tensor


def initial_state(state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state dict with `weights` copied in by name where their shapes fit.

    In a convolution [O, I, k, k] with more input channels than the given one, the weights of the new channels are zero,
    so a U-Net for inpainting or hints starts by painting what the plain one paints. Other tensors stay as they are.
    """
    result = dict(state)
    for name, value in weights.items():
        if name not in state:
            continue
        shape = state[name].shape
        if value.shape == shape:
            result[name] = value
        elif (
            value.ndim == 4 and value.shape[0] == shape[0] and value.shape[2:] == shape[2:] and len(value[0]) < shape[1]
        ):
            result[name] = state[name].new_zeros(shape)
            result[name][:, : value.shape[1]] = value
    return result
