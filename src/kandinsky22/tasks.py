"""The tasks, as pure functions from what a user says to a `Request`. Imports no torch.

Every public function here is a task: the edges make a command, a route or a form of it from its signature, and take what
each parameter means from `MEANINGS`.
"""

from kandinsky22.request import SAMPLERS, SMALLEST, Request, Sampling, Text

_SAMPLERS = ", ".join(SAMPLERS)
MEANINGS = {
    "prompt": "what to paint, in words",
    "negative_prompt": "what to keep away from",
    "height": f"height in pixels, from {SMALLEST} up",
    "width": f"width in pixels, from {SMALLEST} up",
    "num_images": "how many pictures; each has the next seed",
    "seed": "where chance starts; a seed paints the same picture again",
    "num_inference_steps": "steps of the decoder",
    "guidance_scale": "how closely the decoder follows the prior, 1 is off",
    "sampler": f"sampler of the decoder: {_SAMPLERS}",
    "prior_num_inference_steps": "steps of the prior",
    "prior_guidance_scale": "how closely the prior follows the prompt, 1 is off",
    "prior_sampler": f"sampler of the prior: {_SAMPLERS}",
    "model": "the model in the box, or a folder with decoder/ and prior/",
}
"""What each parameter means, in one line."""


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
        negative=Text(negative_prompt) if negative_prompt and negative_prompt.strip() else None,
        height=height,
        width=width,
        num_images=num_images,
        seed=seed,
        prior=Sampling(sampler=prior_sampler, steps=prior_num_inference_steps, guidance_scale=prior_guidance_scale),
        decoder=Sampling(sampler=sampler, steps=num_inference_steps, guidance_scale=guidance_scale),
        model=model,
    )
