"""SDXL, and "plus" adapters, against diffusers' own pipelines and the network without adapter.

A few steps of distillation.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_models import (
    LARGE_WIDTH,
    POOLED_WIDTH,
    RESOLUTION,
    TEXT_WIDTH,
    save_ip_adapter,
    scheduler,
    tiny_prior_config,
)
from vp3d.config.schema import GuidanceConfig, PriorConfig, Schedule, ViewGate
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.prior import Prior
from vp3d.diffusion.text import TextEmbedding
from vp3d.errors import UserError
from vp3d.guidance.condition import build_condition
from vp3d.guidance.vp_sds import Guidance
from vp3d.types import Camera

import diffusers  # isort: skip

PROMPTS = ["a red cube", "a blue cone, back view"]
KINDS = {"sd-plus": ("sd", True), "sdxl": ("sdxl", False), "sdxl-plus": ("sdxl", True)}
PIXELS = (
    (torch.rand(RESOLUTION, RESOLUTION, 3, generator=torch.Generator().manual_seed(3)) * 255)
    .round()
    .byte()
)
PICTURE = PIXELS.permute(2, 0, 1)[None] / 255.0


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PriorConfig]:
    root = tmp_path_factory.mktemp("priors")
    return {
        name: tiny_prior_config(root / name, kind=kind, plus=plus)
        for name, (kind, plus) in KINDS.items()
    }


@pytest.fixture(scope="module")
def priors(configs: dict[str, PriorConfig]) -> dict[str, Prior]:
    return {name: load_prior(config) for name, config in configs.items()}


def their_pipe(config: PriorConfig, adapter: bool = False) -> diffusers.DiffusionPipeline:
    pipe = diffusers.DiffusionPipeline.from_pretrained(config.path, local_files_only=True)
    pipe.scheduler = scheduler(pipe.scheduler.config.prediction_type)
    pipe.set_progress_bar_config(disable=True)
    if adapter:
        pipe.load_ip_adapter(
            config.ip_adapter,
            subfolder="models",
            weight_name=config.ip_adapter_weight,
            local_files_only=True,
        )
    return pipe


def their_sample(
    pipe: diffusers.DiffusionPipeline, latents: torch.Tensor, negative: str | None, **extra: object
) -> torch.Tensor:
    negatives = None if negative is None else [negative] * len(PROMPTS)
    return pipe(
        PROMPTS, negative_prompt=negatives, num_inference_steps=2,
        guidance_scale=3.0, latents=latents,
        output_type="latent", **extra,
    ).images  # fmt: skip


def test_text_agrees_with_diffusers_pipeline(
    priors: dict[str, Prior], configs: dict[str, PriorConfig]
) -> None:
    prior, pipe = priors["sdxl"], their_pipe(configs["sdxl"])
    tokens, zeros, pooled, pooled_zeros = pipe.encode_prompt(PROMPTS)
    ours, null = prior.encode_text(PROMPTS), prior.encode_null("")
    torch.testing.assert_close(ours.tokens, tokens)
    torch.testing.assert_close(ours.pooled, pooled)
    assert ours.tokens.shape == (2, 77, TEXT_WIDTH + LARGE_WIDTH) and ours.pooled.shape == (
        2,
        POOLED_WIDTH,
    )
    assert (
        torch.equal(null.tokens, zeros[:1])
        and torch.equal(null.pooled, pooled_zeros[:1])
        and not null.tokens.any()
    )
    _, negative, _, pooled_negative = pipe.encode_prompt(PROMPTS, negative_prompt=["blurry"] * 2)
    blurry = prior.encode_null("blurry")
    torch.testing.assert_close(blurry.tokens, negative[:1])
    torch.testing.assert_close(blurry.pooled, pooled_negative[:1])
    words = "a sphere " * 20
    kept, cut = prior.text_encoders.fit(words)
    assert cut and words.split() == f"{kept} {cut}".split()
    torch.testing.assert_close(prior.encode_text([words]).tokens, prior.encode_text([kept]).tokens)


def test_embeddings_are_cut_and_joined_together() -> None:
    both = TextEmbedding(torch.randn(3, 5, 4), torch.randn(3, 2))
    again = TextEmbedding.cat(both.singles())
    assert torch.equal(again.tokens, both.tokens) and torch.equal(again.pooled, both.pooled)
    assert torch.equal(both.rows(1, 3).pooled, both.pooled[1:]) and len(both.rows(1, 3)) == 2
    assert both.singles()[1].expand(4).pooled.shape == (4, 2) and both.singles()[1].expand(
        4
    ).tokens.shape == (4, 5, 4)
    plain = TextEmbedding.cat(TextEmbedding(both.tokens).singles())
    assert (
        plain.pooled is None and plain.expand(3).pooled is None and plain.rows(0, 1).pooled is None
    )


@pytest.mark.parametrize("negative", [None, "blurry"])
def test_sdxl_sample_agrees_with_diffusers_pipeline(
    priors: dict[str, Prior], configs: dict[str, PriorConfig], negative: str | None
) -> None:
    prior = priors["sdxl"]
    theirs = their_sample(
        their_pipe(configs["sdxl"]), prior.noise(2, torch.Generator().manual_seed(7)), negative
    )
    rgb = prior.sample(PROMPTS, negative or "", 2, 3.0, torch.Generator().manual_seed(7))
    torch.testing.assert_close(rgb, prior.decode(theirs), atol=5e-5, rtol=1e-4)
    assert rgb.shape == (2, 3, RESOLUTION, RESOLUTION) and rgb.std() > 0.01


@pytest.mark.parametrize("name", KINDS)
def test_sample_with_visual_prompt_agrees_with_diffusers_pipeline(
    priors: dict[str, Prior], configs: dict[str, PriorConfig], name: str
) -> None:
    prior, pipe = priors[name], their_pipe(configs[name], adapter=True)
    pipe.set_ip_adapter_scale(0.7)
    latents = prior.noise(2, torch.Generator().manual_seed(8))
    theirs = their_sample(pipe, latents, "blurry", ip_adapter_image=Image.fromarray(PIXELS.numpy()))
    image = prior.embed_visual_prompt(PICTURE)
    assert image.shape == (1, 6 if name.endswith("plus") else 4, 32 if name == "sd-plus" else 80)
    rgb = prior.sample(
        PROMPTS, "blurry", 2, 3.0, torch.Generator().manual_seed(8), image=image, gate=0.7
    )
    torch.testing.assert_close(rgb, prior.decode(theirs), atol=5e-5, rtol=1e-4)
    assert (
        rgb - prior.sample(PROMPTS, "blurry", 2, 3.0, torch.Generator().manual_seed(8))
    ).abs().max() > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_gate_zero_is_the_network_without_adapter_bit_for_bit(
    priors: dict[str, Prior], configs: dict[str, PriorConfig], name: str
) -> None:
    prior = priors[name]
    base = load_prior(dataclasses.replace(configs[name], ip_adapter=""))
    generator = torch.Generator().manual_seed(0)
    x, t, text = (
        prior.noise(3, generator),
        torch.tensor([20, 500, 900]),
        prior.encode_text(["a", "b", "c"]),
    )
    image = prior.embed_visual_prompt(PICTURE).expand(3, -1, -1)
    with torch.no_grad():
        expected = base.predict_noise(x, t, text)
        off = prior.predict_noise(x, t, text, image, torch.zeros(3))
        mixed = prior.predict_noise(x, t, text, image, torch.tensor([0.0, 0.5, 1.0]))
        full = prior.predict_noise(x, t, text, image)
        single = prior.predict_noise(
            x[1:2], t[1:2], text.rows(1, 2), image[:1], torch.tensor([0.5])
        )
    assert torch.equal(off, expected) and torch.equal(prior.predict_noise(x, t, text), expected)
    assert torch.equal(mixed[0], expected[0])
    torch.testing.assert_close(mixed[1:2], single, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mixed[2], full[2], atol=1e-5, rtol=1e-4)
    assert (full - expected).abs().max() > 1e-3


def test_pooled_text_and_sizes_reach_the_network(priors: dict[str, Prior]) -> None:
    prior = priors["sdxl"]
    x, t, text = (
        prior.noise(1, torch.Generator().manual_seed(0)),
        torch.tensor([500]),
        prior.encode_text(["a cat"]),
    )
    other = TextEmbedding(text.tokens, prior.encode_text(["a dog"]).pooled)
    ours = prior.predict_noise(x, t, text)
    assert (ours - prior.predict_noise(x, t, other)).abs().max() > 1e-5
    added = {
        "text_embeds": text.pooled,
        "time_ids": torch.tensor([[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]]),
    }
    direct = prior.unet(x, t, encoder_hidden_states=text.tokens, added_cond_kwargs=added).sample
    torch.testing.assert_close(ours, direct)


def test_a_capped_batch_changes_nothing(
    priors: dict[str, Prior], configs: dict[str, PriorConfig]
) -> None:
    whole, capped = priors["sdxl"], load_prior(dataclasses.replace(configs["sdxl"], max_batch=2))
    sizes: list[int] = []
    capped.unet.conv_in.register_forward_hook(lambda _m, args, _out: sizes.append(len(args[0])))
    image = whole.embed_visual_prompt(PICTURE)
    drawn = [
        p.sample([*PROMPTS, "c"], "", 1, 2.0, torch.Generator().manual_seed(1), image, 0.4)
        for p in (whole, capped)
    ]
    torch.testing.assert_close(*drawn, atol=1e-5, rtol=1e-4)
    assert sizes == [2, 2, 2]


def test_memory_that_runs_out_in_the_denoiser_halves_its_calls(
    configs: dict[str, PriorConfig], priors: dict[str, Prior]
) -> None:
    """A device that holds three images: six are tried, then three at a time for good.

    One that holds none is told as it is.
    """
    told: list[tuple[int, str]] = []
    small = load_prior(configs["sdxl"], on_oom=lambda *what: told.append(what))
    limit, sizes = 3, []

    def refuse(_: object, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        sizes.append(len(args[0]))

    small.unet.conv_in.register_forward_pre_hook(refuse)
    image = small.embed_visual_prompt(PICTURE)
    drawn = [
        p.sample([*PROMPTS, "c"], "", 2, 2.0, torch.Generator().manual_seed(1), image, 0.4)
        for p in (priors["sdxl"], small)
    ]
    torch.testing.assert_close(*drawn, atol=1e-5, rtol=1e-4)
    assert sizes == [3, 3, 3, 3] and told == [(3, "denoiser")] and small.max_batch == 3
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        small.sample(["a"], "", 1, 1.0, torch.Generator())


def test_memory_that_runs_out_where_pictures_are_decoded_halves_them(
    configs: dict[str, PriorConfig],
) -> None:
    told: list[tuple[int, str]] = []
    prior, limit = load_prior(configs["sdxl"], on_oom=lambda *what: told.append(what)), 1
    latents = prior.noise(5, torch.Generator().manual_seed(0))
    expected = prior.decode(latents)

    def refuse(_: object, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    prior.vae.decoder.register_forward_pre_hook(refuse)
    torch.testing.assert_close(prior.decode(latents), expected, atol=1e-5, rtol=1e-4)
    assert told == [(2, "autoencoder"), (1, "autoencoder")] and prior.vae_batch == 1
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        prior.decode(latents)


CAMERA = Camera(
    torch.tensor([0.0, 130.0]),
    torch.tensor([0.0, 30.0]),
    torch.full((2,), 2.9),
    torch.full((2,), 40.0),
)


@pytest.mark.parametrize(
    ("kind", "plus", "vae", "prediction_type"),
    [
        ("sd", False, "tiny", "v_prediction"),
        ("sd", True, "kl", "epsilon"),
        ("sdxl", False, "kl", "v_prediction"),
        ("sdxl", True, "tiny", "epsilon"),
    ],
)
def test_a_few_steps_of_distillation(
    kind: str, plus: bool, vae: str, prediction_type: str, tmp_path: Path
) -> None:
    """Pixels follow finite gradients, with every option of the guidance on; the picture changes."""
    prior = load_prior(tiny_prior_config(tmp_path, vae, prediction_type, kind=kind, plus=plus))
    condition = build_condition(prior, "a red cube", "", PICTURE)
    gate = ViewGate(0.0, 45.0, 100.0, 0.0)
    config = GuidanceConfig(
        guidance_scale=5.0,
        lam=Schedule(0.8, 0.8),
        lam_gate=gate,
        perp_neg=1.0,
        rescale=0.5,
        space="latents",
    )
    guidance, generator = Guidance(prior, config), torch.Generator().manual_seed(0)
    rgb = torch.full((2, 3, 24, 24), 0.5, requires_grad=True)
    optimiser = torch.optim.Adam([rgb], 0.02)
    for step in range(3):
        loss = guidance(rgb, CAMERA, condition, step / 3, generator)[0]["sds"]
        optimiser.zero_grad()
        loss.backward()
        assert (
            loss.isfinite()
            and rgb.grad.isfinite().all()
            and rgb.grad.abs().amax(dim=(1, 2, 3)).min() > 0
        )
        optimiser.step()
    assert (rgb - 0.5).abs().mean() > 0.01


def test_the_encoder_that_belongs_to_an_adapter_is_named(
    configs: dict[str, PriorConfig], tmp_path: Path
) -> None:
    """ViT-H (1024) and ViT-bigG (1280) mixed up, both ways, and hidden states of the wrong tower
    for plus.
    """
    cases = {
        "vit-h adapter": (
            1280,
            1024,
            False,
            r"gives vectors of 1280 .* trained on 1024: .* to models/image_encoder ",
        ),
        "bigg adapter": (
            1024,
            1280,
            False,
            r"gives vectors of 1024 .* trained on 1280: .* to sdxl_models/image_encoder ",
        ),
        "plus adapter": (
            1024,
            1280,
            True,
            r"gives vectors of 32 .* trained on 1280: .* to models/image_encoder ",
        ),
        "homemade": (
            24,
            20,
            False,
            r"gives vectors of 24 .* trained on 20: .* the folder of its own image encoder",
        ),
    }
    for name, (projection, width, plus, message) in cases.items():
        folder = save_ip_adapter(
            tmp_path / name, width, kind="sdxl", plus=plus, projection=projection
        )
        with pytest.raises(UserError, match=message):
            load_prior(dataclasses.replace(configs["sdxl"], ip_adapter=str(folder), manifest=""))


def change(file: Path, names: Callable[[str], str], more: dict[str, torch.Tensor]) -> None:
    """Rename the tensors of a safetensors file and add `more`."""
    renamed = {names(name): tensor for name, tensor in load_file(file).items()}
    save_file(renamed | more, file, metadata={"format": "pt"})


def published_attention(name: str) -> str:
    """As the files of Stable Diffusion's autoencoder call the one attention in their middle."""
    for ours, theirs in (
        ("to_q", "query"),
        ("to_k", "key"),
        ("to_v", "value"),
        ("to_out.0", "proj_attn"),
    ):
        name = name.replace(f"mid_block.attentions.0.{ours}.", f"mid_block.attentions.0.{theirs}.")
    return name


def test_the_names_in_the_published_files_are_read(tmp_path: Path) -> None:
    """Those of 2022, which today's libraries no longer write: `text_model.` before every name,
    `position_ids`, query and key.
    """
    config = dataclasses.replace(
        tiny_prior_config(tmp_path, "kl", kind="sdxl", plus=True), manifest=""
    )
    before, pipeline = load_prior(config), Path(config.path)
    ids = torch.arange(77)[None]
    for name in ("text_encoder", "text_encoder_2"):
        file = pipeline / name / "model.safetensors"
        change(
            file,
            lambda n: (
                f"text_model.{n.removeprefix('text_model.')}"
                if n != "text_projection.weight"
                else n
            ),
            {},
        )
        change(file, str, {"text_model.embeddings.position_ids": ids})
        assert all(n.startswith("text_") for n in load_file(file))
    autoencoder = pipeline / "vae" / "diffusion_pytorch_model.safetensors"
    change(autoencoder, published_attention, {})
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in load_file(autoencoder)
    encoder = Path(config.ip_adapter) / "models" / "image_encoder" / "model.safetensors"
    change(encoder, str, {"vision_model.embeddings.position_ids": ids[:, :17]})
    after = load_prior(config)
    told, read = before.encode_text(["a cat"]), after.encode_text(["a cat"])
    assert torch.equal(told.tokens, read.tokens) and torch.equal(told.pooled, read.pooled)
    assert torch.equal(before.encode_images(PICTURE), after.encode_images(PICTURE))
    assert torch.equal(
        before.decode(torch.ones(1, 4, 16, 16)), after.decode(torch.ones(1, 4, 16, 16))
    )
    assert torch.equal(before.embed_visual_prompt(PICTURE), after.embed_visual_prompt(PICTURE))


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("pipeline/text_encoder/model.safetensors", "encoder.layers.1.self_attn.v_proj.weight"),
        ("pipeline/text_encoder_2/model.safetensors", "text_projection.weight"),
        ("pipeline/unet/diffusion_pytorch_model.safetensors", "conv_out.weight"),
        ("pipeline/vae/diffusion_pytorch_model.safetensors", "decoder.layers.0.bias"),
        ("ip_adapter/models/image_encoder/model.safetensors", "visual_projection.weight"),
        (
            "ip_adapter/models/ip-adapter_toybox.safetensors",
            "image_proj.norm_out.bias",
        ),  # diffusers does not say which
    ],
)
def test_a_tensor_that_is_missing_or_of_another_shape_is_refused_and_not_made_up(
    configs: dict[str, PriorConfig], tmp_path: Path, file: str, tensor: str
) -> None:
    places = {"pipeline": configs["sdxl-plus"].path, "ip_adapter": configs["sdxl-plus"].ip_adapter}
    for name, place in places.items():
        shutil.copytree(place, tmp_path / name)
    changes = {
        "path": str(tmp_path / "pipeline"),
        "ip_adapter": str(tmp_path / "ip_adapter"),
        "manifest": "",
    }
    config = dataclasses.replace(configs["sdxl-plus"], **changes)
    whole = load_file(tmp_path / file)
    lacking = {name: value for name, value in whole.items() if name != tensor}
    assert len(lacking) == len(whole) - 1
    for broken in (
        lacking,
        whole | {tensor: torch.zeros([size + 1 for size in whole[tensor].shape])},
    ):
        save_file(broken, tmp_path / file, metadata={"format": "pt"})
        with pytest.raises(
            UserError, match=f"^cannot load the .*({tensor}|IP-Adapter /)"
        ) as caught:
            load_prior(config)
        assert "\n" not in str(caught.value)


def test_an_adapter_for_another_network_is_refused(configs: dict[str, PriorConfig]) -> None:
    other = dataclasses.replace(
        configs["sdxl"], ip_adapter=configs["sd-plus"].ip_adapter, manifest=""
    )
    with pytest.raises(UserError, match="made for this pipeline"):
        load_prior(other)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "StableDiffusionXLInpaintPipeline"},
            "StableDiffusionXLInpaintPipeline: use",
        ),
        ("model_index.json", {}, "cannot load the pipeline .*; check prior.path"),  # a list
        (
            "model_index.json",
            {"text_encoder": [None, None], "tokenizer": [None, None]},
            "not a plain text-to-image",
        ),
        (
            "text_encoder_2/config.json",
            {"projection_dim": 24},
            "not a plain text-to-image|cannot load",
        ),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction_type"),
    ],
)
def test_unfit_pipelines_are_refused(
    configs: dict[str, PriorConfig], tmp_path: Path, file: str, changes: dict, message: str
) -> None:
    shutil.copytree(configs["sdxl"].path, tmp_path / "pipeline")
    path = tmp_path / "pipeline" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes if changes else []))
    with pytest.raises(UserError, match=message):
        prior = load_prior(
            dataclasses.replace(
                configs["sdxl"], path=str(tmp_path / "pipeline"), ip_adapter="", manifest=""
            )
        )
        prior.sample(["a"], "", 1, 2.0, torch.Generator())
