"""What a request needs of a model: which decoder, and which files of a published model."""

from kandinsky22.checkpoints import catalog, zero_image
from kandinsky22.request import Picture, Request, Text
from kandinsky22.request.parts import parts


def decoder_kind(request: Request) -> str:
    """The decoder that a request needs (a name of `catalog`)."""
    if request.mask is not None:
        return catalog.INPAINT
    return catalog.DECODER if request.hint is None else catalog.DEPTH


def model_parts(model: str, request: Request) -> list[str]:
    """The parts of a published model that a request needs (names of `catalog`).

    The image encoder is only among them if a picture is encoded, or for the zero-image embedding, which guidance
    without a negative prompt needs, if that is not cached yet. Raises `ValueError` for a linear prior: none is
    published.
    """
    if request.prior.linear:
        raise ValueError(f"no linear prior of {model} is published; fit one with: kandinsky22 train linear-prior")
    conditions = [condition for condition in (request.condition, request.negative) if condition is not None]
    embedded = [part for condition in conditions for part in parts(condition)]
    encodes = any(isinstance(part, Picture) or (isinstance(part, Text) and part.image) for part in embedded)
    scale = request.decoder.guidance_scale
    needs_zero_image = request.negative is None and (scale is None or scale > 1)
    encoder = encodes or (needs_zero_image and not zero_image.is_cached(catalog.image_encoder_id(model)))
    return [catalog.PRIOR, decoder_kind(request), *([catalog.IMAGE_ENCODER] if encoder else [])]
