"""A network that begins with the weights of another, which may see less than it does."""

from collections.abc import Mapping

from torch import Tensor


def grown(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state `own` of a network with the `given` weights where they fit.

    A convolution [O, I, k, k] that takes more channels than the given one takes nothing of the new ones yet: a U-Net for
    inpainting or hints so begins by painting what the plain one paints. What has no namesake stays as it is.
    """
    state = dict(own)
    for name, value in given.items():
        if name not in own:
            continue
        wanted = own[name].shape
        if value.shape == wanted:
            state[name] = value
        elif (
            value.ndim == 4
            and (value.shape[0], *value.shape[2:]) == (wanted[0], *wanted[2:])
            and len(value[0]) < wanted[1]
        ):
            state[name] = own[name].new_zeros(wanted)
            state[name][:, : value.shape[1]] = value
    return state
