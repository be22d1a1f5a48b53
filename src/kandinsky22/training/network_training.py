"""How the training of each network is prepared, and how the result is added to the model: what `registry` names."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kandinsky22.checkpoints import catalog, zero_image
from kandinsky22.checkpoints import linear_prior as linear_prior_file
from kandinsky22.checkpoints.json_files import write_json
from kandinsky22.checkpoints.safetensors_file import read_tensors
from kandinsky22.checkpoints.tokenizer import load_tokenizer, save_tokenizer
from kandinsky22.diffusion import NoiseSchedule
from kandinsky22.files import atomic_write, first_line
from kandinsky22.models.clip import CLIPText
from kandinsky22.models.movq import MoVQ
from kandinsky22.models.prior import PriorTransformer
from kandinsky22.models.tokenizer import Tokenizer
from kandinsky22.models.unet import UNet, UNetConfig
from kandinsky22.training import (
    checkpoints,
    clip,
    controlnet,
    decoder,
    init_weights,
    inpaint,
    linear_prior,
    movq,
    prior,
    run,
)
from kandinsky22.training.captions import learn_tokenizer
from kandinsky22.training.clip_data import probe_accuracy
from kandinsky22.training.context import Prepared, TrainingContext
from kandinsky22.training.data import Compositions, Pictures
from kandinsky22.training.metrics import Metrics
from kandinsky22.training.mixture import Mixture
from kandinsky22.training.model_folder import (
    CONTROLNET,
    DECODER,
    IMAGE_ENCODER,
    INPAINT,
    MOVQ,
    PRIOR,
    TEXT_ENCODER,
    Component,
)
from kandinsky22.training.perceptual import Perceptual
from kandinsky22.training.precompute import TrainingData
from kandinsky22.training.probes import Probes
from kandinsky22.training.processes import CPU

UNCROPPED_FROM = 0.9  # of MoVQ's steps: from then on it learns whole pictures instead of crops
TOKEN_EMBEDDING = "text_model.embeddings.token_embedding.weight"
PROBES = "probes.safetensors"
CODEBOOK = "codebook.json"  # of a codebook fitted after training: the share of its codes in use
CODEBOOK_PICTURES = 1000  # that latents are standardised and the codebook is fitted on


# MoVQ


def prepare_movq(context: TrainingContext, data: TrainingData) -> Prepared:
    """All of MoVQ."""
    torch.manual_seed(0)
    network = MoVQ(context.recipe.movq)
    if not context.initialise_from_base(MOVQ, network):
        first = data.movq_sets[0]
        pictures = first.pictures(range(min(64, len(first))))
        movq.initialise(network, pictures, quantised=context.recipe.terms.quantised)
    return _prepare_autoencoder("movq", network, context, data, {})


def prepare_movq_decoder(context: TrainingContext, data: TrainingData) -> Prepared:
    """MoVQ's decoder alone: its latents stay as they are, so what is trained on them stays valid."""
    network = context.model.stored(MOVQ).load(torch.float32, CPU).requires_grad_(False)
    for part in (network.post_quant_conv, network.decoder):
        part.requires_grad_(True)
    return _prepare_autoencoder("movq-decoder", network, context, data, latent_inputs(context))


def latent_inputs(context: TrainingContext) -> dict[str, str]:
    """The fingerprint of the encoder whose latents are learnt from."""
    return {"movq": context.frozen.latent_space}


def _prepare_autoencoder(
    name: str, network: MoVQ, context: TrainingContext, data: TrainingData, inputs: Mapping[str, str]
) -> Prepared:
    recipe = context.recipe
    autoencoder = movq.Autoencoder(network, recipe.terms)
    perceptual = None
    if recipe.terms.perceptual:
        image_encoder = context.model.stored(IMAGE_ENCODER).load(torch.float32, CPU).to(context.processes.device)
        perceptual = Perceptual(image_encoder, context.processor)

    def uncropped_from() -> int:
        return training.start + round(UNCROPPED_FROM * (training.steps - training.start))  # which are decided later

    objective = movq.objective(autoencoder, data.movq_sets, recipe.runs[name], recipe.crop, uncropped_from, perceptual)
    training = context.training(name, autoencoder, objective, data, inputs)
    return Prepared(training, movq.sample_grid(autoencoder, data.held_out_things))


def add_movq(context: TrainingContext, data: TrainingData, trained: movq.Autoencoder) -> None:
    """Standardise the latents and fit the codebook, unless the latents were quantised in training."""
    network, pictures = trained.movq, data.movq_sets[0]
    if not trained.terms.quantised:
        movq.standardise(network, _encode(network, pictures, context.processes.device))
        used = movq.fit_codebook(network.quantize.embedding, _encode(network, pictures, context.processes.device))
        write_json(context.folder / "movq" / CODEBOOK, {"codes_used": used})
    add_movq_decoder(context, data, trained)


@torch.no_grad()
def _encode(network: MoVQ, pictures: Pictures, device: torch.device, batch: int = 20) -> Tensor:
    """Latents [N, 4, h, w] of the first pictures."""
    count = min(CODEBOOK_PICTURES, len(pictures))
    network.to(device)
    batches = (pictures.pictures(range(i, min(i + batch, count))).to(device) for i in range(0, count, batch))
    latents = torch.cat([network.encode(pixels).cpu() for pixels in batches])
    network.cpu()
    return latents


def add_movq_decoder(context: TrainingContext, data: TrainingData, trained: movq.Autoencoder) -> None:
    """Write MoVQ, without the discriminator."""
    context.model.save(MOVQ, trained.movq)


# CLIP


def prepare_clip(context: TrainingContext, data: TrainingData) -> Prepared:
    """Both encoders of CLIP, with a tokenizer learned from the captions unless the base model has one.

    A resumed run keeps its tokenizer: among equally frequent pairs, the `tokenizers` library learns them in any order.
    """
    recipe, processes = context.recipe, context.processes
    is_resumed = bool(checkpoints.steps(context.folder / "clip"))
    is_learned = context.dataset is None or catalog.PRIOR not in context.base or context.new_tokenizer
    if is_learned and not (is_resumed and (context.model.path / catalog.PRIOR / "tokenizer").is_dir()):
        vocabulary = context.new_tokenizer or recipe.vocabulary
        tokenizer = learn_tokenizer(data.distinct_sets, vocabulary, recipe.text_length)
        if processes.first:
            save_tokenizer(context.model.path / catalog.PRIOR / "tokenizer", tokenizer)
        processes.wait()
    tokenizer = context.frozen.tokenizer
    is_probed = context.dataset is None
    torch.manual_seed(0)
    configs = recipe.vision, recipe.text_config(len(tokenizer.vocab))
    network = clip.CLIP(*configs, probed=is_probed, things=data.num_things)
    initialise_text_encoder(context, network.text, tokenizer)
    context.initialise_from_base(IMAGE_ENCODER, network.vision)
    hard = recipe.hard_negatives if is_probed else 0
    hard -= hard % processes.count  # as many in each process
    objective = clip.objective(
        network, tokenizer, data.distinct_sets, recipe.runs["clip"], hard=hard, gather=processes.gather_rows
    )
    training = context.training("clip", network, objective, data, {})
    return Prepared(training, clip.sample_grid(network, tokenizer, data.held_out, recipe.runs["clip"]))


def initialise_text_encoder(context: TrainingContext, text: CLIPText, tokenizer: Tokenizer) -> None:
    """Initialise the text encoder with the base model's. Of a new tokenizer, tokens that the base model's has too
    start with its embeddings, and all others from random numbers."""
    table: Tensor = text.get_parameter(TOKEN_EMBEDDING)
    random = table.detach().clone()
    stored = context.model.stored_in_base(TEXT_ENCODER)
    if not (context.initialise_from_base(TEXT_ENCODER, text) and context.new_tokenizer and stored):
        return
    known = load_tokenizer(context.base[catalog.PRIOR] / "tokenizer").vocab
    learnt = stored.load(torch.float32, CPU).get_parameter(TOKEN_EMBEDDING)
    for token, row in tokenizer.vocab.items():
        if token in known:
            random[row] = learnt[known[token]]
    with torch.no_grad():
        table.copy_(random)


def add_clip(context: TrainingContext, data: TrainingData, network: clip.CLIP) -> None:
    """Write both encoders, the preprocessing and the embedding of the zero image; and, beside the model, the probes."""
    context.model.save(TEXT_ENCODER, network.text)
    context.model.save(IMAGE_ENCODER, network.vision)
    folder = context.model.path / catalog.PRIOR
    write_json(folder / "image_processor" / "preprocessor_config.json", context.processor.to_dict())
    stored = context.model.stored(IMAGE_ENCODER)
    zero_image.write(folder / zero_image.SHIPPED, zero_image.compute(stored), stored.fingerprint)
    if network.probes is not None:
        with atomic_write(context.folder / PROBES) as partial:
            save_file(network.probes.state_dict(), partial)


# The prior and the linear prior


def prepare_prior(context: TrainingContext, data: TrainingData) -> Prepared:
    """The prior, with the mean and deviation of the embeddings, on captions encoded by the frozen text encoder."""
    recipe, frozen = context.recipe, context.frozen
    sets = [_captioned_embeds(context, data, pictures) for pictures in data.distinct_sets]
    torch.manual_seed(0)
    network = PriorTransformer(recipe.prior)
    if not (context.initialise_from_base(PRIOR, network) and context.has_image_encoder_of_base):
        for parameter, value in zip((network.clip_mean, network.clip_std), prior.statistics(sets), strict=True):
            parameter.data.copy_(value)
    for parameter in (network.clip_mean, network.clip_std):
        parameter.requires_grad_(False)
    schedule = NoiseSchedule.from_config(recipe.prior_scheduler)
    text_encoder = frozen.text_encoder.to(context.processes.device)
    conditioning, run_recipe = (text_encoder, frozen.tokenizer, schedule), recipe.runs["prior"]
    objective = prior.objective(network, *conditioning, sets, run_recipe)
    training = context.training("prior", network, objective, data, prior_inputs(context))
    held_out = data.held_out
    embeds, probe = _captioned_embeds(context, data, held_out), _probe(context, data)
    return Prepared(training, prior.sample_grid(network, *conditioning, embeds, held_out, run_recipe, probe))


def prior_inputs(context: TrainingContext) -> dict[str, str]:
    """The fingerprints of what the prior learns from."""
    text_encoder = context.model.stored(TEXT_ENCODER).fingerprint
    return {"text_encoder": text_encoder, **context.frozen.image_encoder_fingerprints}


def _captioned_embeds(context: TrainingContext, data: TrainingData, pictures: Pictures) -> prior.CaptionedEmbeds:
    return prior.CaptionedEmbeds(
        data.embeds(pictures, *context.frozen.image_embedder), pictures.captions, pictures.share
    )


def _probe(context: TrainingContext, data: TrainingData) -> Callable[[Tensor, list[str]], dict[str, float]] | None:
    """The accuracy of CLIP's probes on embeddings of the picture world, if CLIP was trained with probes in it."""
    held_out = data.held_out
    if not isinstance(held_out, Compositions | Mixture) or not (context.folder / PROBES).exists():
        return None
    probes = Probes(context.recipe.prior.embedding_dim, data.num_things)
    weights = _probe_weights(context.folder / PROBES)
    if {name: value.shape for name, value in weights.items()} != _shapes(probes):
        return None  # CLIP was trained with other things, or without
    probes.load_state_dict(weights)
    return probe_accuracy(probes, held_out)


def _probe_weights(path: Path) -> dict[str, Tensor]:
    """The weights of CLIP's probes. Raises `ValueError` for a damaged file."""
    try:
        return read_tensors(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}); train clip again") from error


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}


def add_prior(context: TrainingContext, data: TrainingData, network: PriorTransformer) -> None:
    """Write the prior and its scheduler."""
    context.model.save(PRIOR, network)
    folder = context.model.path / catalog.PRIOR
    write_json(folder / "scheduler" / "scheduler_config.json", context.recipe.prior_scheduler)
    write_json(folder / "model_index.json", catalog.PRIOR_INDEX)


def fit_linear_prior(context: TrainingContext, data: TrainingData) -> Iterator[Metrics]:
    """Fit the linear prior in one pass over the captions, which every process makes, and write it."""
    sets = [_captioned_embeds(context, data, pictures) for pictures in data.distinct_sets]
    encoder = context.frozen.text_encoder.to(context.processes.device), context.frozen.tokenizer
    fitted, measured = linear_prior.fit(*encoder, sets, _captioned_embeds(context, data, data.held_out))
    if context.processes.first:
        encoders = [context.model.stored(component).fingerprint for component in (TEXT_ENCODER, IMAGE_ENCODER)]
        linear_prior_file.save(context.model.path / catalog.PRIOR / linear_prior_file.FOLDER, fitted, *encoders)
        run.write_metrics(context.folder / "linear-prior", measured)
    context.processes.wait()
    yield measured


# The decoders


def prepare_decoder(context: TrainingContext, data: TrainingData) -> Prepared:
    """The decoder of text-to-image."""
    return _prepare_unet(DECODER, context.recipe.unet, decoder.no_extra_inputs, context, data)


def prepare_inpaint(context: TrainingContext, data: TrainingData) -> Prepared:
    """The decoder with the masked latents and the mask as further input channels."""
    channels = 2 * context.recipe.movq.latent_channels + 1
    return _prepare_unet(
        INPAINT, replace(context.recipe.unet, in_channels=channels), inpaint.masked_inputs, context, data
    )


def prepare_controlnet(context: TrainingContext, data: TrainingData) -> Prepared:
    """The decoder with an encoded depth hint as further input channels."""
    channels = 2 * context.recipe.movq.latent_channels
    config = replace(context.recipe.unet, in_channels=channels, addition_embed_type="image_hint")
    return _prepare_unet(CONTROLNET, config, controlnet.hint_inputs, context, data)


def _prepare_unet(
    component: Component,
    config: UNetConfig,
    extra_inputs: decoder.ExtraInputs,
    context: TrainingContext,
    data: TrainingData,
) -> Prepared:
    """A U-Net. Those for inpainting and hints are initialised with the plain decoder's, if the base model has none."""
    frozen, name = context.frozen, component.trained_by
    encoders = frozen.latent_encoder, frozen.image_embedder
    torch.manual_seed(0)
    network = UNet(config)
    if component != DECODER and component.part not in context.base:
        weights = context.model.stored(DECODER).load(torch.float32, CPU).state_dict()
        network.load_state_dict(init_weights.initial_state(network.state_dict(), weights))
    context.initialise_from_base(component, network)
    schedule = NoiseSchedule.from_config(context.recipe.decoder_scheduler)
    zero = zero_image.zero_image_embed(context.model.parts[catalog.PRIOR])
    buckets = data.buckets(*encoders, hinted=config.hinted)
    held_out = data.bucket(data.held_out, *encoders, hinted=config.hinted)
    frozen.movq.cpu()  # frees device memory for the training
    recipe = context.recipe.runs[name]
    objective = decoder.objective(network, schedule, buckets, zero, recipe, extra_inputs)
    training = context.training(name, network, objective, data, unet_inputs(context))
    captions = data.held_out.captions(range(min(len(data.held_out), decoder.NUM_SAMPLES)), np.random.default_rng(0))
    inputs = (network, frozen.movq, schedule, held_out, zero, recipe, extra_inputs)
    return Prepared(training, decoder.sample_grid(*inputs, captions))


def unet_inputs(context: TrainingContext) -> dict[str, str]:
    """The fingerprints of what a decoder learns from, and its prediction type."""
    prediction = NoiseSchedule.from_config(context.recipe.decoder_scheduler).prediction_type
    return {**latent_inputs(context), "prediction": prediction, **context.frozen.image_encoder_fingerprints}


def add_unet(component: Component, context: TrainingContext, data: TrainingData, network: UNet) -> None:
    """Write a decoder's U-Net and scheduler; MoVQ is only in the folder of the plain decoder."""
    context.model.save(component, network)
    folder = context.model.path / component.part
    write_json(folder / "scheduler" / "scheduler_config.json", context.recipe.decoder_scheduler)
    write_json(folder / "model_index.json", catalog.decoder_index(component.part))
