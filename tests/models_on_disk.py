"""A small model of random weights in the published layout, with a language; it paints within a second."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from kandinsky22.checkpoints import catalog, zero_image
from kandinsky22.checkpoints.json_files import write_json
from kandinsky22.checkpoints.network import Stored, save
from kandinsky22.checkpoints.tokenizer import save_tokenizer
from kandinsky22.compositions import EXAMPLES, language
from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.tokenizer import learn
from kandinsky22.models.unet import UNet, UNetConfig
from tests.diffusion.toy import DECODER_CONFIG, PRIOR_CONFIG

DIM = 32  # of every embedding; a folder that diffusers loads has only one
TEXT_LENGTH = 24
DEFAULTS = {"prior": {"steps": 2, "guidance_scale": 2.0}, "decoder": {"steps": 3, "guidance_scale": 2.0}}


def randomise(network: torch.nn.Module, seed: int = 0) -> None:
    """Fill every parameter with random numbers: several start at zero, which would hide mistakes.

    The scale of weights preserves that of activations.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            values = torch.randn(parameter.shape, generator=generator) * (fan_in**-0.5 if parameter.ndim > 1 else 0.3)
            is_scale = (parameter.ndim == 1 and name.endswith("weight")) or name == "clip_std"
            parameter.copy_(values.abs() + 0.5 if is_scale else values)


def write_tiny_model(folder: Path, *, seed: int = 0) -> None:
    """Write a model of random weights that `Kandinsky.load(folder)` and diffusers load; it paints 64x64.

    Beside `prior/` and `decoder/` are the decoders of the other tasks, `decoder-inpaint/` and `controlnet-depth/`.
    """
    decoder, prior = folder / catalog.DECODER, folder / catalog.PRIOR
    inpaint, depth = folder / catalog.INPAINT, folder / catalog.DEPTH
    tokenizer = learn(EXAMPLES, 600, TEXT_LENGTH)
    tower = {"projection_dim": DIM, "layer_norm_eps": 1e-5, "hidden_act": "gelu"}
    stack = {"intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(
        hidden_size=DIM, vocab_size=len(tokenizer.vocab), max_position_embeddings=TEXT_LENGTH, **stack, **tower
    )
    vision = CLIPVisionConfig(hidden_size=DIM, image_size=32, patch_size=16, num_channels=3, **stack, **tower)
    prior_config = PriorConfig(
        num_layers=1, num_attention_heads=2, attention_head_dim=16, embedding_dim=DIM, num_embeddings=TEXT_LENGTH
    )
    unet = UNetConfig(
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention_head_dim=16,
        cross_attention_dim=16,
        encoder_hid_dim=DIM,
        sample_size=8,
    )
    movq = MoVQConfig(block_out_channels=(32, 32, 32, 32), layers_per_block=1, num_vq_embeddings=32)
    processor = CLIPImageProcessor(size=32, crop_size=32, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))

    networks: dict[Path, torch.nn.Module] = {
        prior / "text_encoder": CLIPText(text),
        prior / "image_encoder": CLIPVision(vision),
        prior / "prior": PriorTransformer(prior_config),
        decoder / "unet": UNet(unet),
        decoder / "movq": MoVQ(movq),
        inpaint / "unet": UNet(replace(unet, in_channels=9)),
        depth / "unet": UNet(replace(unet, in_channels=8, addition_embed_type="image_hint")),
    }
    for target, network in networks.items():
        randomise(network, seed)
        name = "model" if target.name.endswith("_encoder") else "diffusion_pytorch_model"
        save(target, network, dtype=torch.float32, name=name)
    save_tokenizer(prior / "tokenizer", tokenizer)
    encoder = Stored(prior / "image_encoder", CLIPVision, CLIPVisionConfig)
    zero_image.write(prior / zero_image.SHIPPED, zero_image.compute(encoder), encoder.fingerprint)
    write_json(prior / "image_processor" / "preprocessor_config.json", processor.to_dict())
    write_json(prior / "scheduler" / "scheduler_config.json", PRIOR_CONFIG)
    write_json(decoder / "scheduler" / "scheduler_config.json", DECODER_CONFIG)
    write_json(prior / "model_index.json", catalog.PRIOR_INDEX)
    write_json(decoder / "model_index.json", catalog.DECODER_INDEX)
    write_json(decoder / "kandinsky22.json", {"defaults": DEFAULTS, "words": language(), "examples": EXAMPLES})
    for folder, kind, scheduler in (  # all published decoders contain the same MoVQ
        (inpaint, "KandinskyV22InpaintPipeline", {**DECODER_CONFIG, "clip_sample": False}),
        (depth, "KandinskyV22ControlnetPipeline", DECODER_CONFIG),
    ):
        shutil.copytree(decoder / "movq", folder / "movq")
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        write_json(folder / "model_index.json", {**catalog.DECODER_INDEX, "_class_name": kind})
    for folder in (decoder, inpaint):  # as in the published model cards, whose front matter lists the prior
        card = (
            f"---\nlicense: apache-2.0\nprior:\n  - {prior}\ntags:\n  - text-to-image\n---\n\n# A tiny Kandinsky 2.2\n"
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
