"""The gated attention against diffusers' own IP-Adapter processor and against the UNet without
adapter.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_models import save_ip_adapter, save_pipeline
from tests.helpers.tiny_models import unet as tiny_unet
from vp3d.diffusion.image_prompt import (
    GatedImageAttention,
    attend,
    install_gates,
    pool_image,
    split_heads,
)

import diffusers  # isort: skip

GENERATOR = torch.Generator().manual_seed(0)
LATENTS = torch.randn(3, 4, 8, 8, generator=GENERATOR)
TEXT = torch.randn(3, 77, 32, generator=GENERATOR)
EMBEDDING = torch.randn(3, 24, generator=GENERATOR)
T = torch.tensor([10, 500, 900])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    save_pipeline(root / "pipeline")
    save_ip_adapter(root / "ip_adapter")
    return root


@torch.no_grad()
def call(
    unet: torch.nn.Module, condition: object, rows: slice = slice(None), **kwargs: object
) -> torch.Tensor:
    return unet(LATENTS[rows], T[rows], encoder_hidden_states=condition, **kwargs).sample


def load(folder: Path, adapter: bool) -> diffusers.StableDiffusionPipeline:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        folder / "pipeline", local_files_only=True
    )
    if adapter:
        pipe.load_ip_adapter(
            str(folder / "ip_adapter"),
            subfolder="models",
            weight_name="ip-adapter_toybox.safetensors",
            local_files_only=True,
        )
    return pipe


@pytest.fixture(scope="module")
def base(folder: Path) -> torch.nn.Module:
    return load(folder, adapter=False).unet


@pytest.fixture(scope="module")
def gated(folder: Path) -> tuple[torch.nn.Module, torch.Tensor, dict[float, torch.Tensor]]:
    """The UNet with our processors, image tokens [3, 4, 32], and what diffusers' processors gave
    before, by scale.
    """
    pipe = load(folder, adapter=True)
    theirs = {}
    for scale in (0.4, 1.0):
        pipe.set_ip_adapter_scale(scale)
        theirs[scale] = call(
            pipe.unet, TEXT, added_cond_kwargs={"image_embeds": [EMBEDDING[:, None]]}
        )
    with torch.no_grad():
        tokens = pipe.unet.encoder_hid_proj.image_projection_layers[0](EMBEDDING)
    pipe.unet.encoder_hid_proj = None
    assert (
        install_gates(pipe.unet) == 4
    )  # cross-attention layers: one down, one in the middle, two up
    return pipe.unet, tokens, theirs


@pytest.mark.parametrize("scale", [0.4, 1.0])
def test_uniform_gate_is_diffusers_own_processor(gated: tuple, scale: float) -> None:
    unet, tokens, theirs = gated
    torch.testing.assert_close(
        call(unet, (TEXT, tokens, torch.full((3,), scale))), theirs[scale], atol=1e-6, rtol=1e-5
    )


def test_gate_zero_is_the_base_network_bit_for_bit(gated: tuple, base: torch.nn.Module) -> None:
    unet, tokens, theirs = gated
    expected = call(base, TEXT)
    assert torch.equal(call(unet, (TEXT, tokens, torch.zeros(3))), expected)
    assert torch.equal(call(unet, TEXT), expected)
    assert (theirs[1.0] - expected).abs().max() > 1e-3  # the adapter does act


def test_gates_of_a_batch_equal_separate_calls(gated: tuple, base: torch.nn.Module) -> None:
    unet, tokens, _ = gated
    gates = torch.tensor([0.0, 0.5, 1.0])
    together = call(unet, (TEXT, tokens, gates))
    assert torch.equal(together[:1], call(base, TEXT)[:1])
    for i in range(3):
        rows = slice(i, i + 1)
        alone = call(unet, (TEXT[rows], tokens[rows], gates[rows]), rows)
        torch.testing.assert_close(together[rows], alone, atol=1e-5, rtol=1e-4)


def test_only_cross_attention_is_replaced(gated: tuple) -> None:
    for name, processor in gated[0].attn_processors.items():
        assert isinstance(processor, GatedImageAttention) == name.endswith("attn2.processor")


def test_attend_is_softmax_attention() -> None:
    q, k, v = (torch.randn(2, n, 8, generator=GENERATOR) for n in (5, 3, 3))
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        weights = torch.softmax(q[..., h] @ k[..., h].transpose(1, 2) / 2.0, dim=-1)
        heads.append(weights @ v[..., h])
    torch.testing.assert_close(attend(split_heads(q, 2), k, v, 2), torch.cat(heads, dim=-1))


def test_several_adapters_and_masks_are_refused(gated: tuple, folder: Path) -> None:
    pipe = load(folder, adapter=False)
    name = "ip-adapter_toybox.safetensors"
    pipe.load_ip_adapter(
        str(folder / "ip_adapter"),
        subfolder=["models"] * 2,
        weight_name=[name] * 2,
        local_files_only=True,
    )
    with pytest.raises(ValueError, match="2 IP-Adapters"):
        install_gates(pipe.unet)
    processor = next(
        p for p in gated[0].attn_processors.values() if isinstance(p, GatedImageAttention)
    )
    with pytest.raises(ValueError, match="without a mask"):
        processor(None, torch.zeros(1, 2, 64), TEXT, attention_mask=torch.ones(1, 77))


def test_the_pooled_prompt_is_the_text_alone_or_takes_the_image_by_its_gate() -> None:
    torch.manual_seed(3)
    pooling = {"addition_embed_type": "text", "addition_embed_type_num_heads": 4}
    config = {name: value for name, value in tiny_unet().config.items() if not name.startswith("_")}
    pooled = diffusers.UNet2DConditionModel(
        **config | pooling
    ).eval()  # from_config would drop what was a default before
    expected, other = call(pooled, TEXT), call(pooled, TEXT.flip(0))
    assert (expected - other).abs().max() > 1e-3
    processors = pooled.attn_processors
    for name in (n for n in processors if n.endswith("attn2.processor")):
        width = pooled.get_submodule(name.removesuffix(".processor")).to_k.out_features
        processors[name] = GatedImageAttention(
            *(torch.nn.Linear(32, width, bias=False) for _ in range(2))
        )
    pooled.set_attn_processor(processors)
    tokens, gates = torch.randn(3, 4, 32), torch.tensor([0.0, 0.5, 1.0])
    pool_image(pooled)
    assert torch.equal(call(pooled, (TEXT, tokens, torch.zeros(3))), expected)
    assert torch.equal(call(pooled, TEXT), expected)
    weight = torch.randn(pooled.time_embedding.linear_2.out_features, 4 * 32)
    pool_image(pooled, weight)  # a second time takes the place of the first
    text = pooled.add_embedding.text(TEXT)
    torch.testing.assert_close(
        pooled.add_embedding((TEXT, tokens, gates)),
        text + gates[:, None] * (tokens.flatten(1) @ weight.T),
    )
    assert torch.equal(call(pooled, (TEXT, tokens, gates))[:1], expected[:1])
    assert torch.equal(call(pooled, TEXT), expected)


def test_a_denoiser_that_pools_nothing_is_left_as_it_is() -> None:
    unet = tiny_unet()
    before = call(unet, TEXT)
    pool_image(unet, torch.zeros(8, 8))
    assert torch.equal(call(unet, TEXT), before)
