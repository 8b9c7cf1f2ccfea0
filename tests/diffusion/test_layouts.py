"""Key names and shapes of the full-size models, on the meta device: what diffusers builds from the
published configurations, and what our loader puts into it, against a second, plain enumeration of
the published layouts.

Configurations: `unet/config.json` of Stable Diffusion 1.5 and SDXL base, and of the towers beside
them. Adapters: the state dicts of `h94/IP-Adapter`, whose modules (linear projection, resampler,
numbered attention layers) are in the authors' repository.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from benchmarks.random_weights import SDXL_UNET
from benchmarks.sds_step import UNET
from tests.helpers.tiny_models import autoencoder, scheduler, tokenizer
from vp3d.config.schema import PriorConfig
from vp3d.diffusion.image_prompt import GatedImageAttention, ImageEncoder
from vp3d.diffusion.load import take_adapter
from vp3d.diffusion.prior import Prior
from vp3d.diffusion.text import TextEmbedding
from vp3d.weights.catalogue import MODELS

import diffusers  # isort: skip
import transformers  # isort: skip

Shapes = dict[str, tuple[int, ...]]

UNETS = {"sd15": UNET, "sdxl": SDXL_UNET}
# Tensors and parameters of the published UNets; then width, attended blocks and layers in each,
# in the order down, up, mid.
SIZES = {"sd15": (686, 859_520_964), "sdxl": (1680, 2_567_463_684)}
CROSSING = {
    "sd15": [320, 320, 640, 640, 1280, 1280] + [1280] * 3 + [640] * 3 + [320] * 3 + [1280],
    "sdxl": [640] * 4 + [1280] * 20 + [1280] * 30 + [640] * 6 + [1280] * 10,
}
# Files of h94/IP-Adapter: denoiser, output width of the image encoder, inner width of the resampler
# (None: base), its heads.
ADAPTERS = {
    "ip-adapter_sd15": ("sd15", 1024, None, 0),
    "ip-adapter-plus_sd15": ("sd15", 1280, 768, 12),
    "ip-adapter_sdxl": ("sdxl", 1280, None, 0),
    "ip-adapter_sdxl_vit-h": ("sdxl", 1024, None, 0),
    "ip-adapter-plus_sdxl_vit-h": ("sdxl", 1280, 1280, 20),
}


def layer(name: str, *shape: int, bias: bool = True) -> Shapes:
    """A convolution, linear layer or norm."""
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def resnet(name: str, c_in: int, c_out: int) -> Shapes:
    found = layer(f"{name}.norm1", c_in) | layer(f"{name}.conv1", c_out, c_in, 3, 3)
    found |= (
        layer(f"{name}.time_emb_proj", c_out, 1280)
        | layer(f"{name}.norm2", c_out)
        | layer(f"{name}.conv2", c_out, c_out, 3, 3)
    )
    return found | (layer(f"{name}.conv_shortcut", c_out, c_in, 1, 1) if c_in != c_out else {})


def transformer(name: str, c: int, context: int, depth: int, linear: bool) -> Shapes:
    kernel = () if linear else (1, 1)
    found = (
        layer(f"{name}.norm", c)
        | layer(f"{name}.proj_in", c, c, *kernel)
        | layer(f"{name}.proj_out", c, c, *kernel)
    )
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for n in (1, 2, 3):
            found |= layer(f"{block}.norm{n}", c)
        for attention, width in (("attn1", c), ("attn2", context)):
            found |= layer(f"{block}.{attention}.to_q", c, c, bias=False) | layer(
                f"{block}.{attention}.to_out.0", c, c
            )
            for part in ("to_k", "to_v"):
                found |= layer(f"{block}.{attention}.{part}", c, width, bias=False)
        found |= layer(f"{block}.ff.net.0.proj", 8 * c, c) | layer(f"{block}.ff.net.2", c, 4 * c)
    return found


def published_unet(config: dict) -> Shapes:
    """Names and shapes of a UNet with two residual blocks a level going down and three going up."""
    channels, context, linear = (
        config["block_out_channels"],
        config["cross_attention_dim"],
        "use_linear_projection" in config,
    )
    depths = config.get("transformer_layers_per_block", (1,) * len(channels))
    found = (
        layer("conv_in", 320, 4, 3, 3)
        | layer("time_embedding.linear_1", 1280, 320)
        | layer("time_embedding.linear_2", 1280, 1280)
    )
    if "addition_embed_type" in config:
        found |= layer("add_embedding.linear_1", 1280, 2816) | layer(
            "add_embedding.linear_2", 1280, 1280
        )
    skips = [320]
    c = 320
    for i, kind in enumerate(config["down_block_types"]):
        for j in range(2):
            found |= resnet(f"down_blocks.{i}.resnets.{j}", c, channels[i])
            c = channels[i]
            skips.append(c)
            if kind.startswith("Cross"):
                found |= transformer(
                    f"down_blocks.{i}.attentions.{j}", c, context, depths[i], linear
                )
        if i < len(channels) - 1:
            found |= layer(f"down_blocks.{i}.downsamplers.0.conv", c, c, 3, 3)
            skips.append(c)
    found |= resnet("mid_block.resnets.0", c, c) | resnet("mid_block.resnets.1", c, c)
    found |= transformer("mid_block.attentions.0", c, context, depths[-1], linear)
    for i, kind in enumerate(config["up_block_types"]):
        for j in range(3):
            width = channels[-1 - i]
            found |= resnet(f"up_blocks.{i}.resnets.{j}", c + skips.pop(), width)
            c = width
            if kind.startswith("Cross"):
                found |= transformer(
                    f"up_blocks.{i}.attentions.{j}", c, context, depths[-1 - i], linear
                )
        if i < len(channels) - 1:
            found |= layer(f"up_blocks.{i}.upsamplers.0.conv", c, c, 3, 3)
    return found | layer("conv_norm_out", 320) | layer("conv_out", 4, 320, 3, 3)


def published_adapter(name: str) -> tuple[Shapes, Shapes]:
    """The two halves of a file: `image_proj` and `ip_adapter`."""
    unet, image, inner, heads = ADAPTERS[name]
    context = UNETS[unet]["cross_attention_dim"]
    if inner is None:
        projection = layer("proj", 4 * context, image) | layer("norm", context)
    else:
        projection: Shapes = {"latents": (1, 16, inner)}
        projection |= (
            layer("proj_in", inner, image)
            | layer("proj_out", context, inner)
            | layer("norm_out", context)
        )
        for n in range(4):
            block = f"layers.{n}"
            projection |= (
                layer(f"{block}.0.norm1", inner)
                | layer(f"{block}.0.norm2", inner)
                | layer(f"{block}.1.0", inner)
            )
            for part, shape in {
                "0.to_q": (64 * heads, inner),
                "0.to_kv": (128 * heads, inner),
                "0.to_out": (inner, 64 * heads),
                "1.1": (4 * inner, inner),
                "1.3": (inner, 4 * inner),
            }.items():
                projection |= layer(f"{block}.{part}", *shape, bias=False)
    layers: Shapes = {}
    for n, width in enumerate(
        CROSSING[unet]
    ):  # odd numbers: the even ones are self-attention, which has no weights
        for part in ("to_k_ip", "to_v_ip"):
            layers |= layer(f"{2 * n + 1}.{part}", width, context, bias=False)
    return projection, layers


def vae_resnet(name: str, c_in: int, c_out: int) -> Shapes:
    """A residual block without time."""
    return {key: shape for key, shape in resnet(name, c_in, c_out).items() if "time_emb" not in key}


def vae_middle(name: str) -> Shapes:
    found = vae_resnet(f"{name}.resnets.0", 512, 512) | vae_resnet(f"{name}.resnets.1", 512, 512)
    found |= layer(f"{name}.attentions.0.group_norm", 512)
    for part in (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
    ):  # query, key, value and proj_attn in the files
        found |= layer(f"{name}.attentions.0.{part}", 512, 512)
    return found


def published_vae() -> Shapes:
    """Names and shapes of the AutoencoderKL of Stable Diffusion 1.5, which SDXL's has too."""
    channels, c = (128, 256, 512, 512), 128
    found = layer("quant_conv", 8, 8, 1, 1) | layer("post_quant_conv", 4, 4, 1, 1)
    found |= layer("encoder.conv_in", 128, 3, 3, 3) | vae_middle("encoder.mid_block")
    found |= layer("encoder.conv_norm_out", 512) | layer("encoder.conv_out", 8, 512, 3, 3)
    found |= layer("decoder.conv_in", 512, 4, 3, 3) | vae_middle("decoder.mid_block")
    found |= layer("decoder.conv_norm_out", 128) | layer("decoder.conv_out", 3, 128, 3, 3)
    for half, sizes, blocks in (("encoder.down", channels, 2), ("decoder.up", channels[::-1], 3)):
        for i, width in enumerate(sizes):
            for j in range(blocks):
                found |= vae_resnet(f"{half}_blocks.{i}.resnets.{j}", c, width)
                c = width
            if i < 3:
                found |= layer(f"{half}_blocks.{i}.{half.split('.')[1]}samplers.0.conv", c, c, 3, 3)
    return found


def clip_layers(name: str, width: int, depth: int) -> Shapes:
    """The layers of a CLIP tower in transformers' names."""
    found: Shapes = {}
    for i in range(depth):
        block = f"{name}.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= layer(f"{block}.self_attn.{part}", width, width)
        found |= layer(f"{block}.layer_norm1", width) | layer(f"{block}.layer_norm2", width)
        found |= layer(f"{block}.mlp.fc1", 4 * width, width) | layer(
            f"{block}.mlp.fc2", width, 4 * width
        )
    return found


def published_text(width: int, depth: int, projection: bool) -> Shapes:
    found = clip_layers("text_model", width, depth) | layer("text_model.final_layer_norm", width)
    found |= layer("text_model.embeddings.token_embedding", 49408, width, bias=False)
    found |= layer("text_model.embeddings.position_embedding", 77, width, bias=False)
    return found | (layer("text_projection", width, width, bias=False) if projection else {})


def published_vision() -> Shapes:
    """The ViT-H of the IP-Adapters; `pre_layrnorm` is spelt so."""
    found = clip_layers("vision_model", 1280, 32) | layer(
        "visual_projection", 1024, 1280, bias=False
    )
    found |= layer("vision_model.pre_layrnorm", 1280) | layer("vision_model.post_layernorm", 1280)
    found |= {"vision_model.embeddings.class_embedding": (1280,)}
    found |= layer("vision_model.embeddings.position_embedding", 257, 1280, bias=False)
    return found | layer("vision_model.embeddings.patch_embedding", 1280, 3, 14, 14, bias=False)


def empty(shapes: Shapes) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def shapes_of(module: nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def test_published_files_are_as_large_as_these_layouts() -> None:
    """Sizes of the files on the hub: 4 or 2 bytes a parameter and a safetensors header of some 100
    bytes a tensor.
    """
    files = {
        file.path: file.size
        for name in ("ip-adapter-sd15", "ip-adapter-sdxl")
        for file in MODELS[name].files
    }
    expected = {"sd15": ("sd15", 4), "sdxl": ("sdxl", 2)}
    found = []
    for name, (unet, width) in expected.items():
        size = next(
            file.size for file in MODELS[name].files if file.path.startswith("unet/diffusion")
        )
        found.append((size, width * SIZES[unet][1], SIZES[unet][0]))
    for name in ADAPTERS:
        size = next(
            (size for path, size in files.items() if path.endswith(f"/{name}.safetensors")), 0
        )
        if size:
            shapes = [shape for half in published_adapter(name) for shape in half.values()]
            found.append(
                (size, 2 * sum(torch.Size(shape).numel() for shape in shapes), len(shapes))
            )
    assert len(found) == 6
    for size, payload, tensors in found:
        assert 50 * tensors < size - payload < 200 * tensors


@pytest.fixture(scope="module")
def unets() -> Iterator[dict[str, nn.Module]]:
    with torch.device("meta"):
        yield {
            name: diffusers.UNet2DConditionModel(**config).eval() for name, config in UNETS.items()
        }


@pytest.mark.parametrize("name", UNETS)
def test_unet_is_the_published_one(unets: dict[str, nn.Module], name: str) -> None:
    expected = published_unet(UNETS[name])
    assert shapes_of(unets[name]) == expected
    count = sum(torch.Size(shape).numel() for shape in expected.values())
    assert (len(expected), count) == SIZES[name]


@pytest.mark.parametrize("name", UNETS)
def test_cross_attention_layers_come_in_the_order_of_the_adapters_numbers(
    unets: dict[str, nn.Module], name: str
) -> None:
    crossing = [key for key in unets[name].attn_processors if key.endswith("attn2.processor")]
    widths = [
        unets[name].get_submodule(key.removesuffix(".processor")).to_q.in_features
        for key in crossing
    ]
    assert widths == CROSSING[name] and len(widths) == {"sd15": 16, "sdxl": 70}[name]
    order = list(dict.fromkeys(key.split("_")[0] for key in crossing))
    assert order == ["down", "up", "mid"]
    names = list(unets[name].attn_processors)
    assert [names.index(key) for key in crossing] == list(range(1, 2 * len(crossing), 2))


@pytest.mark.parametrize("name", ADAPTERS)
def test_published_adapter_goes_into_the_network(unets: dict[str, nn.Module], name: str) -> None:
    unet = unets[ADAPTERS[name][0]]
    image_proj, ip_adapter = published_adapter(name)
    state = {"image_proj": empty(image_proj), "ip_adapter": empty(ip_adapter)}
    unet._load_ip_adapter_weights(state)
    projection = take_adapter(unet)
    ours = [
        (key, p) for key, p in unet.attn_processors.items() if isinstance(p, GatedImageAttention)
    ]
    assert len(ours) == len(CROSSING[ADAPTERS[name][0]]) == len(ip_adapter) // 2
    for n, (key, processor) in enumerate(ours):
        attention = unet.get_submodule(key.removesuffix(".processor"))
        for part, text in (("to_k_ip", attention.to_k), ("to_v_ip", attention.to_v)):
            weight = getattr(processor, part).weight
            assert (
                tuple(weight.shape)
                == ip_adapter[f"{2 * n + 1}.{part}.weight"]
                == tuple(text.weight.shape)
            )
    found = sum(value.numel() for value in projection.state_dict().values())
    assert found == sum(
        torch.Size(shape).numel() for shape in image_proj.values()
    )  # to_kv is cut in two, nothing is lost
    total = found + sum(torch.Size(shape).numel() for shape in ip_adapter.values())
    assert name != "ip-adapter_sd15" or round(total / 1e6) == 22  # the 22 M of the authors' README
    plus, width = ADAPTERS[name][2] is not None, ADAPTERS[name][1]
    vectors = (
        torch.empty(2, 257, width, device="meta") if plus else torch.empty(2, width, device="meta")
    )
    assert projection(vectors).shape == (
        2,
        16 if plus else 4,
        UNETS[ADAPTERS[name][0]]["cross_attention_dim"],
    )
    unet.set_attn_processor(diffusers.models.attention_processor.AttnProcessor2_0())


def build_part(name: str) -> nn.Module:
    """What the library builds from the published configuration of a part beside the denoiser."""
    if name == "vae":
        return diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
    width, depth, heads = {
        "text_encoder": (768, 12, 12),
        "text_encoder_2": (1280, 32, 20),
        "image_encoder": (1280, 32, 16),
    }[name]
    sizes = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
    }
    if name == "image_encoder":
        return transformers.CLIPVisionModelWithProjection(
            transformers.CLIPVisionConfig(**sizes, patch_size=14, projection_dim=1024)
        )
    kind = (
        transformers.CLIPTextModelWithProjection
        if name == "text_encoder_2"
        else transformers.CLIPTextModel
    )
    return kind(transformers.CLIPTextConfig(**sizes, projection_dim=width))


PARTS = {  # folder of a pipeline or of an IP-Adapter: its layout; tensors and parameters
    "vae": (published_vae(), 248, 83_653_863),
    "text_encoder": (published_text(768, 12, False), 196, 123_060_480),
    "text_encoder_2": (published_text(1280, 32, True), 517, 694_659_840),
    "image_encoder": (published_vision(), 520, 632_076_800),
}


@pytest.mark.parametrize("name", PARTS)
def test_the_parts_beside_the_denoiser_are_the_published_ones(name: str) -> None:
    """Names, shapes, and the sizes of the files on the hub. transformers 5 leaves `text_model.` out
    of a lone text encoder's names; test_sdxl.py shows that files with it are read.
    """
    expected, tensors, parameters = PARTS[name]
    with torch.device("meta"):
        found = shapes_of(build_part(name))
    prefix = "text_model." if name == "text_encoder" else ""
    assert {
        f"{prefix}{key.removeprefix(prefix)}": shape for key, shape in found.items()
    } == expected
    assert (len(expected), sum(torch.Size(shape).numel() for shape in expected.values())) == (
        tensors,
        parameters,
    )
    files = [
        (model, file)
        for model in MODELS
        for file in MODELS[model].files
        if f"/{name}/" in f"/{file.path}" and file.sha256
    ]
    assert files
    for model, file in files:
        width = 2 if model == "sdxl" else 4  # bytes a parameter
        assert 50 * tensors < file.size - width * parameters < 200 * tensors


def text_tower(kind: type, hidden: int) -> nn.Module:
    config = {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_attention_heads": hidden // 64,
    }
    return kind(transformers.CLIPTextConfig(**config, num_hidden_layers=2, projection_dim=hidden))


@pytest.mark.slow
def test_full_size_sdxl_with_plus_adapter_runs_through_the_prior(
    unets: dict[str, nn.Module],
) -> None:
    """Shapes only: text towers and ViT-H at full width (two layers deep), adapter, sizes and a call
    of the denoiser.
    """
    name = "ip-adapter-plus_sdxl_vit-h"
    unet = unets["sdxl"]
    state = dict(
        zip(("image_proj", "ip_adapter"), map(empty, published_adapter(name)), strict=True)
    )
    unet._load_ip_adapter_weights(state)
    projection = take_adapter(unet)
    with torch.device("meta"):
        text = text_tower(transformers.CLIPTextModel, 768)
        text_2 = text_tower(transformers.CLIPTextModelWithProjection, 1280)
        wide = {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_attention_heads": 16,
            "projection_dim": 1024,
        }
        vision = transformers.CLIPVisionConfig(**wide, num_hidden_layers=2, patch_size=14)
        tower = transformers.CLIPVisionModelWithProjection(vision)
        vae = autoencoder("tiny")
    pipe = diffusers.StableDiffusionXLPipeline(
        vae, text, text_2, tokenizer(), tokenizer(), unet, scheduler(), add_watermarker=False
    )
    encoder = ImageEncoder(tower, projection, False, (0.5,) * 3, (0.5,) * 3)
    assert encoder.widths == (1280, 1280)
    prior = Prior(pipe, encoder, PriorConfig(resolution=64), "meta")
    assert prior.null_image.shape == (1, 16, 2048)
    image = prior.embed_visual_prompt(torch.empty(1, 3, 300, 200, device="meta"))
    told = prior.encode_text(["a", "b"])
    assert told.tokens.shape == (2, 77, 2048) and told.pooled.shape == (2, 1280)
    with torch.device("meta"):
        latents, t, gate = (
            torch.empty(2, 4, 16, 16),
            torch.zeros(2, dtype=torch.long),
            torch.empty(2),
        )
    noise = prior.predict_noise(latents, t, told, image.expand(2, -1, -1), gate)
    assert noise.shape == (2, 4, 16, 16) and isinstance(told, TextEmbedding)
