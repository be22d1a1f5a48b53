"""The tasks, as pure functions from what a user says to a `Request`. Imports no torch."""

from kandinsky22.request import Request, Sampling, Text


def text2img(
    prompt: str,
    *,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    num_images: int = 1,
    seed: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    sampler: str | None = None,
    prior_num_inference_steps: int | None = None,
    prior_guidance_scale: float | None = None,
    prior_sampler: str | None = None,
    model: str = "box",
) -> Request:
    """Pictures of a prompt.

    An empty negative prompt is none at all: it stands for the empty picture, not for the empty text, whose embedding
    tints. Raises `ValueError` for values out of range; what is None is the model's own default.
    """
    return Request(
        condition=Text(prompt),
        negative=Text(negative_prompt) if negative_prompt else None,
        height=height,
        width=width,
        num_images=num_images,
        seed=seed,
        prior=Sampling(sampler=prior_sampler, steps=prior_num_inference_steps, guidance_scale=prior_guidance_scale),
        decoder=Sampling(sampler=sampler, steps=num_inference_steps, guidance_scale=guidance_scale),
        model=model,
    )
