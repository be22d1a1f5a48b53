"""Files of adapters in every format that is read, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kandinsky22.checkpoints import lora_files
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.models.lora import Adapter, LowRank
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.unet import UNet, UNetConfig

UNET = UNet(
    UNetConfig(
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention_head_dim=16,
        cross_attention_dim=20,
        encoder_hid_dim=24,
    )
)
PRIOR = PriorTransformer(PriorConfig(num_layers=2, num_attention_heads=2, attention_head_dim=16, embedding_dim=24))
QUERY, OUT, ADDED = (f"mid_block.attentions.0.{name}" for name in ("to_q", "to_out.0", "add_k_proj"))
CONV = "mid_block.resnets.0.conv1"


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


A, B, ADDED_A = draw(4, 64), draw(64, 4), draw(4, 20)


def layer_of(path: Path, name: str = QUERY) -> LowRank:
    adapter = lora_files.read(path).adapter(lora_files.UNET, UNET)
    assert adapter is not None
    return adapter.layers[name]


def save(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: value.clone() for key, value in tensors.items()}, folder / "style.safetensors", metadata=metadata)
    return folder / "style.safetensors"


PAIRS = {
    "peft": (f"base_model.model.{QUERY}.lora_A.weight", f"base_model.model.{QUERY}.lora_B.weight"),
    "bare": (f"{QUERY}.lora_A.weight", f"{QUERY}.lora_B.weight"),
    "diffusers": (f"unet.{QUERY}.lora_A.weight", f"unet.{QUERY}.lora_B.weight"),
    "diffusers of 2023": (f"unet.{QUERY}.lora.down.weight", f"unet.{QUERY}.lora.up.weight"),
    "published scripts": tuple(f"mid_block.attentions.0.processor.to_q_lora.{side}.weight" for side in ("down", "up")),
    "kohya": tuple(f"lora_unet_mid_block_attentions_0_to_q.lora_{side}.weight" for side in ("down", "up")),
}


@pytest.mark.parametrize("down, up", PAIRS.values(), ids=PAIRS.keys())
def test_each_format_gives_the_matrices_of_a_layer(down: str, up: str, tmp_path: Path) -> None:
    layer = layer_of(save(tmp_path, {down: A, up: B}))
    assert torch.equal(layer.a, A) and torch.equal(layer.b, B) and layer.scaling == 1


@pytest.mark.parametrize("down, up", PAIRS.values(), ids=PAIRS.keys())
def test_pickled_files_are_read_by_the_reader_that_runs_no_code(down: str, up: str, tmp_path: Path) -> None:
    torch.save({down: A, up: B}, tmp_path / "style.bin")
    assert torch.equal(layer_of(tmp_path / "style.bin").a, A)


def test_attention_processors_name_their_layers(tmp_path: Path) -> None:
    at = "mid_block.attentions.0.processor"
    tensors = {f"{at}.to_out_lora.down.weight": A, f"{at}.to_out_lora.up.weight": B}
    tensors |= {f"{at}.add_k_proj_lora.down.weight": ADDED_A, f"{at}.add_k_proj_lora.up.weight": B}
    path = save(tmp_path, tensors)
    assert lora_files.read(path).format == "attention processors"
    assert torch.equal(layer_of(path, OUT).a, A) and torch.equal(layer_of(path, ADDED).a, ADDED_A)


def test_a_prior_is_found_by_the_names_of_its_layers(tmp_path: Path) -> None:
    at = "transformer_blocks.1.attn1.processor.to_q_lora"
    path = save(tmp_path, {f"{at}.down.weight": draw(4, 32), f"{at}.up.weight": draw(32, 4)})
    file = lora_files.read(path)
    adapter = file.adapter(lora_files.PRIOR, PRIOR)
    assert adapter is not None and list(adapter.layers) == ["transformer_blocks.1.attn1.to_q"]
    assert file.adapter(lora_files.UNET, UNET) is None


def test_alpha_is_that_of_a_tensor_the_settings_the_header_or_the_rank(tmp_path: Path) -> None:
    pair = {PAIRS["kohya"][0]: A, PAIRS["kohya"][1]: B}
    key = PAIRS["kohya"][0].replace("lora_down.weight", "alpha")
    assert layer_of(save(tmp_path, pair | {key: torch.tensor(2.0)})).scaling == 0.5

    pair = {PAIRS["diffusers"][0]: A, PAIRS["diffusers"][1]: B}
    for settings, scaling in (
        ({"unet.lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"to_q": 1}}, 0.25),
        ({"prior.lora_alpha": 8}, 1.0),
    ):
        path = save(tmp_path, pair, {lora_files.HEADER_KEY: json.dumps(settings)})
        assert layer_of(path).scaling == scaling

    pair = {PAIRS["peft"][0]: A, PAIRS["peft"][1]: B}
    folder = tmp_path / "peft"
    folder.mkdir()
    save(tmp_path, pair).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 16}))
    assert layer_of(folder).scaling == 4


@pytest.mark.parametrize("format", ["diffusers", "peft"])
def test_what_is_written_is_read_again(format: lora_files.Written, tmp_path: Path) -> None:
    layers = {
        QUERY: LowRank(A, B, 0.5, draw(64).abs()),
        CONV: LowRank(draw(2, 64, 3, 3), draw(64, 2), 3.0, draw(64).abs()),
    }
    path = lora_files.write(tmp_path / "x.safetensors", {lora_files.UNET: Adapter(layers)}, format)
    for name, expected in layers.items():
        layer = layer_of(path, name)
        for one, other in zip(
            (layer.a, layer.b, layer.magnitude), (expected.a, expected.b, expected.magnitude), strict=True
        ):
            assert one is not None and other is not None and torch.equal(one, other)
        assert layer.scaling == pytest.approx(expected.scaling)


def test_a_file_may_have_several_networks(tmp_path: Path) -> None:
    prior = Adapter({"proj_in": LowRank(draw(2, 24), draw(32, 2))})
    path = lora_files.write(
        tmp_path / "x.safetensors", {lora_files.UNET: Adapter({QUERY: LowRank(A, B)}), lora_files.PRIOR: prior}
    )
    file = lora_files.read(path)
    assert set(file.layers) == {lora_files.UNET, lora_files.PRIOR} and file.ranks == [2, 4]
    with pytest.raises(ValueError, match="one network"):
        lora_files.write(tmp_path / "y", {lora_files.UNET: prior, lora_files.PRIOR: prior}, "peft")


OTHERS = {
    "Stable Diffusion,": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
    "Stable Diffusion XL": "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
    "Flux": "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
    "other adapters": "lora_unet_mid_block_attentions_0_to_q.hada_w1_a",
    "known format": "model.diffusion_model.weight",
}


@pytest.mark.parametrize("model, key", OTHERS.items(), ids=OTHERS.keys())
def test_a_file_for_another_model_is_refused_with_what_it_is_for(model: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=model):
        lora_files.read(save(tmp_path, {key: A}))


def test_a_file_for_a_network_of_another_size_is_refused_with_both_shapes(tmp_path: Path) -> None:
    path = save(tmp_path, {PAIRS["diffusers"][0]: draw(4, 1280), PAIRS["diffusers"][1]: draw(1280, 4)})
    with pytest.raises(CheckpointError, match=r"a decoder of another model.*\[64, 64\] there.*\[1280, 1280\]"):
        lora_files.read(path).adapter(lora_files.UNET, UNET)


@pytest.mark.parametrize(
    "tensors",
    [
        {PAIRS["diffusers"][0]: A},
        {PAIRS["diffusers"][1]: B},
        {PAIRS["diffusers"][0]: A, PAIRS["diffusers"][1]: draw(64, 3)},
        {PAIRS["diffusers"][0]: A, PAIRS["diffusers"][1]: B[0]},
        {PAIRS["diffusers"][0]: A, PAIRS["diffusers"][1]: B * torch.inf},
        {PAIRS["diffusers"][0]: A, PAIRS["diffusers"][1]: B, f"unet.{QUERY}.alpha": draw(2)},
        {},
    ],
    ids=["no b", "no a", "ranks", "shape", "infinite", "alpha", "empty"],
)
def test_damaged_files_are_refused_in_one_sentence(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"style\.safetensors"):
        lora_files.read(save(tmp_path, tensors))
