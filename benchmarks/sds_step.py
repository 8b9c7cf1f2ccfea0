"""What a step of the guidance costs at full size: `python -m benchmarks.sds_step [--batch 1 2 4]`.

The models are Stable Diffusion 1.5 and its base IP-Adapter in the published sizes, with random
weights, so nothing is downloaded. Measured, for each resolution of the prior, side of the rendered
views, and number of them, are

    floor     the forward passes of the denoiser alone: exactly the calls that a step does
    guidance  the product's `Guidance` on views with a visual prompt, and its backward pass to their
              pixels
    counted   floating-point operations of the guidance's matrix products, convolutions and
              attention, divided by those of the floor: the ratio of times if all of them were as
              fast as the denoiser's
    step      the product's training step: rendering of the field, guidance, regularisers, backward
              pass to the field, Adam; without rewards, which have models of their own, and without
              an update of the occupancy grid
    encoder   the autoencoder from pixels to latents, forward and backward
    memory    the most in use during a step: on a GPU, of the device, weights included; on a CPU, in
              addition to what was in use before

With the default guidance, a batch of B views is one call of the denoiser with 2 B images. All
settings are those of configs/sd15.yaml. key=value words change them, as guidance.perp_neg=1 (four
branches), prior.max_batch=2, prior.compile=true or cuda.encoder=torch. If prior.vae is set, TAESD,
the small autoencoder, is used in its published size. On a CPU the default is --tiny, the same
blocks in a fraction of the width: to try the program.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.timing import MIB, Bench, Table, ms, new_parser, positive, prepare, report
from vp3d import build
from vp3d.config.loader import load_config
from vp3d.config.paths import ROOT, locate
from vp3d.config.schema import CameraConfig, Config, PriorConfig
from vp3d.diffusion.image_prompt import CLIP_MEAN, CLIP_STD, ImageEncoder
from vp3d.diffusion.load import take_adapter
from vp3d.diffusion.prior import Prior
from vp3d.diffusion.text import TextEmbedding
from vp3d.embedded.architectures import new_text_encoder
from vp3d.errors import UserError
from vp3d.guidance.condition import Condition
from vp3d.guidance.vp_sds import Guidance
from vp3d.prompts import all_views
from vp3d.render.camera import sample_cameras
from vp3d.system import torch_compat  # noqa: F401  (before transformers)
from vp3d.system.console import run_program
from vp3d.system.out_of_memory import is_out_of_memory
from vp3d.train.coarse import Coarse
from vp3d.train.generators import make_generators
from vp3d.train.loop import apply, differentiate

import diffusers  # isort: skip
import transformers  # isort: skip

UNET = {  # unet/config.json of Stable Diffusion 1.5
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "layers_per_block": 2,
    "sample_size": 64,
}
VAE = {  # vae/config.json
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
SCHEDULE = {  # scheduler/scheduler_config.json
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}
TINY_UNET = UNET | {
    "block_out_channels": (32, 64, 64, 64),
    "cross_attention_dim": 64,
    "attention_head_dim": 4,
}
TINY_VAE = VAE | {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1}
TOKENS = 77  # of a prompt
IMAGE_TOKENS, IMAGE_WIDTH = 4, 1024  # of the base adapter: tokens, width of the image embedding
PROGRESS = 0.5  # of the run, for the schedules of t and lambda
FULL, TINY = 512, 64  # resolutions
TINY_NOTE = (
    "No GPU here, so this was --tiny: its times do not apply to the full size "
    "(--no-tiny runs that, slowly)."
)
TINY_FIELD = ("field.resolution=32", "field.levels=4", "field.log2_table=10", "render.samples=16")


def build_pipeline(
    tiny: bool, device: torch.device, dtype: torch.dtype, small_vae: bool
) -> tuple[Any, ImageEncoder]:
    """A pipeline with its IP-Adapter and the product's attention gates, with random weights.

    Its text and vision towers are small, because a step does not run them.

    Args:
        tiny: small sizes instead of the published ones.
        device: where it is built.
        dtype: of all networks.
        small_vae: TAESD instead of the published autoencoder.

    Returns:
        The pipeline, and the image encoder of its adapter.
    """
    diffusers.utils.logging.set_verbosity_error()  # no warnings of the casts below
    tokenizer = transformers.CLIPTokenizer.from_pretrained(locate(PriorConfig().path) / "tokenizer")
    with torch.device(device):
        unet = diffusers.UNet2DConditionModel(**(TINY_UNET if tiny else UNET))
        vae_sizes = TINY_VAE if tiny else VAE
        vae = diffusers.AutoencoderTiny() if small_vae else diffusers.AutoencoderKL(**vae_sizes)
        vision = transformers.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            projection_dim=IMAGE_WIDTH,
            patch_size=32,
        )
        tower = transformers.CLIPVisionModelWithProjection(vision)
    pipe = diffusers.StableDiffusionPipeline(
        vae,
        new_text_encoder(tokenizer),
        tokenizer,
        unet.to(dtype),
        diffusers.DDIMScheduler(**SCHEDULE),
        None,
        None,
        requires_safety_checker=False,
    )
    state = adapter_weights(unet)
    pipe.load_ip_adapter(
        state, subfolder="", weight_name="random.safetensors", image_encoder_folder=None
    )
    projection = take_adapter(unet).to(device, dtype)
    vae.to(dtype)
    return pipe, ImageEncoder(tower.to(dtype), projection, True, CLIP_MEAN, CLIP_STD)


def adapter_weights(unet: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights of a base IP-Adapter for the denoiser, under the published keys."""
    width, like = unet.config.cross_attention_dim, {"device": unet.device, "dtype": unet.dtype}
    projection = {
        "proj.weight": 0.02 * torch.randn(IMAGE_TOKENS * width, IMAGE_WIDTH, **like),
        "proj.bias": torch.zeros(IMAGE_TOKENS * width, **like),
        "norm.weight": torch.ones(width, **like),
        "norm.bias": torch.zeros(width, **like),
    }
    layers = {}
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            text = unet.get_submodule(name.removesuffix(".processor")).to_k.weight
            layers |= {
                f"{number}.{part}.weight": 0.02 * torch.randn_like(text)
                for part in ("to_k_ip", "to_v_ip")
            }
    return {"image_proj": projection, "ip_adapter": layers}


def random_condition(prior: Prior, generator: torch.Generator) -> Condition:
    """A condition as in a run, with random embeddings."""
    width = prior.unet.config.cross_attention_dim

    def embedding(count: int) -> torch.Tensor:
        return torch.randn(1, count, width, generator=generator).to(prior.device)

    text = {view: TextEmbedding(embedding(TOKENS)) for view in all_views()}
    return Condition(text, TextEmbedding(embedding(TOKENS)), embedding(IMAGE_TOKENS))


def measure(prior: Prior, config: Config, batch: int, bench: Bench) -> dict[str, Any]:
    """Measures one size.

    Args:
        prior: the models.
        config: the settings of guidance, field and renderer.
        batch: the number of views.
        bench: how to time.

    Returns:
        Seconds "floor", "guidance", "step" and "encoder"; "operations" and "floor_operations";
        "calls" of the denoiser with "images" in all; and "peak_bytes".
    """
    generator = torch.Generator().manual_seed(0)
    guidance, condition = Guidance(prior, config.guidance), random_condition(prior, generator)
    camera = sample_cameras(batch, CameraConfig(), generator).to(prior.device)
    side = config.render.resolution
    rgb = torch.rand(batch, 3, side, side, generator=generator).to(prior.device).requires_grad_()

    def guide() -> None:
        rgb.grad = None
        guidance(rgb, camera, condition, PROGRESS, generator)[0]["sds"].backward()

    def encode() -> None:
        rgb.grad = None
        prior.encode_images(rgb).square().mean().backward()

    calls: list[tuple[Any, Any]] = []
    hook = prior.unet.register_forward_pre_hook(
        lambda _, *call: calls.append(call), with_kwargs=True
    )
    all_operations = operations(guide)
    hook.remove()
    step = training_step(guidance, condition, config, batch, bench.device)

    @torch.no_grad()
    def floor() -> None:
        for args, kwargs in calls:
            prior.unet(*args, **kwargs)

    works = {"floor": floor, "guidance": guide, "step": step, "encoder": encode}
    found = {name: bench.seconds(work) for name, work in works.items()}
    images = sum(len(args[0]) for args, _ in calls)
    counts = {"operations": all_operations, "floor_operations": operations(floor)}
    return {
        **found,
        **counts,
        "calls": len(calls),
        "images": images,
        "peak_bytes": bench.peak_bytes(step),
    }


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of a call: matrix products, convolutions and attention."""
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    # A network that is first called under a counter would never be compiled.
    with torch.compiler.set_stance("force_eager"), counter:
        work()
    return counter.get_total_flops()


def flops_of_attention(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
) -> int:
    """Operations of softmax(q k^T) v for shapes [B, H, L, E], [B, H, S, E] and [B, H, S, V]."""
    return sdpa_flop_count(query, key, value)


def flops_of_its_gradient(grad: torch.Size, *shapes: Any, **_: Any) -> int:
    """Operations of the backward pass of attention, for a gradient [B, H, L, V]."""
    return sdpa_backward_flop_count(grad, *shapes[:3])


# Attention on a CPU, which torch's counter does not know.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flops_of_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: flops_of_its_gradient,
}


def training_step(
    guidance: Guidance, condition: Condition, config: Config, batch: int, device: torch.device
) -> Callable[[], None]:
    """The product's training step on a new field, at `PROGRESS` of the run.

    The occupancy grid is updated once, before the step.

    Args:
        guidance: the guidance.
        condition: its condition.
        config: the settings; the number of views is `batch`, and every step has an estimate.
        batch: the number of views.
        device: where the field is.

    Returns:
        The step; it raises UserError if a number is not finite.
    """
    config = dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, views=batch),
        guidance=dataclasses.replace(config.guidance, estimate_every=1),
    )
    field, march = build.make_field(config, device), build.choose_march(config.cuda, device)
    generators = make_generators(config.seed)
    settings = build.coarse_settings(config)
    stage = Coarse(settings, field, guidance, condition, {}, generators, ignore, march)
    stage.occupancy.update(field, stage.generators["jitter"])
    number = int(PROGRESS * config.optim.steps)
    number += number % config.render.occupancy_every == 0  # not a step with an update

    def step() -> None:
        problem = differentiate(stage, stage.step(number), config.optim.grad_clip)[1]
        problem = problem or apply(stage)
        if problem:
            raise UserError(
                f"a step is not finite ({problem}); set prior.dtype or --dtype to float32"
            )

    return step


def ignore(kind: str, **data: object) -> None:
    """Discards an event; there is no run folder here."""


def attempt(prior: Prior, config: Config, batch: int, bench: Bench) -> dict[str, Any]:
    """`measure`, or {"out_of_memory": True} if memory runs out."""
    try:
        return measure(prior, config, batch, bench)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return {"out_of_memory": True}


def row_of(found: dict[str, Any]) -> list[str]:
    """A row of the table."""
    head = [f"{found['resolution']}", f"{found['render']}", f"{found['batch']}"]
    if "step" not in found:
        return [*head, "out of memory", *[""] * 9]
    floor = found["floor"]
    calls = f"{found['calls']} x {found['images'] // found['calls']}"
    parts = [ms(floor), f"{found['operations'] / found['floor_operations']:.2f} x"]
    for name in ("guidance", "step"):
        parts += [ms(found[name]), f"{found[name] / floor:.2f} x"]
    share = f"{100.0 * floor / found['step']:.0f} %"
    return [*head, calls, *parts, share, ms(found["encoder"]), f"{found['peak_bytes'] / MIB:.0f}"]


def new_options(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser("sds_step", __doc__ or "")
    add, numbers = parser.add_argument, {"type": positive, "nargs": "+", "metavar": "N"}
    dtypes = ("float32", "float16", "bfloat16")
    add("overrides", nargs="*", metavar="key=value", help="settings to change")
    add("--resolution", **numbers, help=f"of the prior ({FULL}; tiny {TINY})")
    add("--render", **numbers, default=[64], help="side of the views (64)")
    add("--batch", **numbers, default=[1, 2, 4], help="views of a step (1 2 4)")
    add("--dtype", choices=dtypes, help="(float16 on a GPU, float32 on a CPU)")
    add("--tiny", action=argparse.BooleanOptionalAction, help="small networks (default on a CPU)")
    return parser.parse_intermixed_args(argv)


def measure_all(
    pipe: Any, encoder: ImageEncoder, config: Config, bench: Bench, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measures every size.

    Args:
        pipe: the pipeline.
        encoder: the image encoder of its adapter.
        config: the settings; resolutions are changed.
        bench: how to time.
        options: the sizes.

    Returns:
        A record for each size.
    """
    records = []
    for resolution in options.resolution:
        config.prior.resolution = resolution
        prior = Prior(pipe, encoder, config.prior, bench.device)
        if config.prior.compile:
            prior.compile()
        for side, batch in itertools.product(options.render, options.batch):
            config.render.resolution = side
            found = attempt(prior, config, batch, bench)
            records.append({"resolution": resolution, "render": side, "batch": batch, **found})
    return records


def main(argv: list[str] | None = None) -> None:
    """Measures every size, prints the table, writes the JSON."""
    options = new_options(argv)
    bench = prepare(options)
    on_gpu = bench.device.type == "cuda"
    notes = []
    if options.tiny is None and not on_gpu:
        notes.append(TINY_NOTE)
    tiny = (not on_gpu) if options.tiny is None else options.tiny
    options.resolution = options.resolution or [TINY if tiny else FULL]
    dtype = getattr(torch, options.dtype or ("float16" if on_gpu else "float32"))
    settings = [*(TINY_FIELD if tiny else ()), *options.overrides]
    config = load_config(None, [ROOT / "configs" / "sd15.yaml"], settings)
    torch.manual_seed(0)
    pipe, encoder = build_pipeline(tiny, bench.device, dtype, bool(config.prior.vae))
    if config.prior.channels_last and on_gpu:
        for network in (pipe.unet, pipe.vae):
            network.to(memory_format=torch.channels_last)
    records = measure_all(pipe, encoder, config, bench, options)
    parameters = sum(p.numel() for p in pipe.unet.parameters()) / 1e6
    kind = f"SD 1.5{' in tiny' if tiny else ''}{' with TAESD' if config.prior.vae else ''}"
    title = f"{kind}, denoiser of {parameters:.1f} M parameters, {dtype}".replace("torch.", "")
    header = ["prior", "view", "views", "calls x images", "floor, ms", "counted", "guidance, ms"]
    header += ["by floor", "step, ms", "by floor", "denoiser", "encoder, ms", "memory, MiB"]
    results = {
        "tiny": tiny,
        "dtype": str(dtype),
        "denoiser_parameters_m": parameters,
        "sizes": records,
    }
    table = Table(title, header, [row_of(found) for found in records], notes)
    report(options, bench, "sds_step", table, results)


if __name__ == "__main__":
    run_program("sds_step", main)
