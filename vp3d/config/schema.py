"""Everything a run can be told, in one tree of dataclasses; a run stores the tree it used as `config.yaml`.

Conventions: angles in degrees, colours in [0, 1] sRGB, `progress` is the fraction of optimisation steps done in [0, 1].
YAML files and presets hold only the differences from the defaults below; the defaults are the toybox CPU run.
What a field may hold is its annotation and nothing else: its type, `Literal` for a choice, `Range` for numbers.
`load_config` layers them: defaults <- preset <- files <- key=value; what it does not know or allow is a `UserError`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal


@dataclass(frozen=True)
class Range:
    """The numbers a field may take, both ends included. On a Schedule it bounds `start` and `end`."""

    low: float
    high: float = float("inf")


Share = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0)]


@dataclass
class Schedule:
    """A value that goes linearly from `start` to `end` while progress goes from `from_` to `to`, constant outside."""

    start: float = 1.0
    end: float = 1.0
    from_: Share = 0.0
    to: Share = 1.0

    @classmethod
    def constant(cls, value: float) -> Schedule:
        """The schedule that is `value` throughout; a bare number in a config file means this."""
        return cls(value, value)

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1]."""
        if progress <= self.from_ or self.to <= self.from_:
            return self.start if progress <= self.from_ else self.end
        share = min((progress - self.from_) / (self.to - self.from_), 1.0)
        return self.start + share * (self.end - self.start)


PositiveSchedule = Annotated[Schedule, Range(0)]
ShareSchedule = Annotated[Schedule, Range(0, 1)]


@dataclass
class ViewGate:
    """A strength by camera azimuth: 1 within `full_deg` of `center_deg`, then linear down to `floor` at `zero_deg`."""

    center_deg: float = 0.0  # azimuth where the term is strongest, degrees
    full_deg: Annotated[float, Range(0, 180)] = 180.0  # half-width of the full-strength range
    zero_deg: Annotated[float, Range(0, 180)] = (
        180.0  # half-width beyond which only `floor` is left
    )
    floor: Share = 0.0  # weight behind, in [0, 1]


@dataclass
class PriorConfig:
    """The frozen 2D diffusion model: names of `launch.py models list`, hub ids, or folders (absolute or of the repository)."""

    path: str = (
        "assets/toybox/pipeline"  # a diffusers StableDiffusionPipeline or StableDiffusionXLPipeline
    )
    ip_adapter: str = "assets/toybox/ip_adapter"  # in the published layout; "" for none
    ip_adapter_subfolder: str = "models"
    ip_adapter_weight: str = "ip-adapter_toybox.safetensors"
    image_encoder_folder: str = "image_encoder"
    manifest: str = (
        "assets/toybox/MANIFEST.json"  # sha256 of every weight file, checked at load; "" for none
    )
    vocabulary: str = (
        "assets/toybox/vocabulary.json"  # words the prior knows; "" for the open world
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = (
        "auto"  # auto: denoiser bfloat16 on CPUs made for it, else float32
    )
    resolution: Annotated[int, Range(16, 2048)] = (
        64  # pixels of a side of the images the prior was trained on
    )
    variant: str = ""  # of the weight files of `path`, for example fp16; "" takes those without
    vae: str = ""  # an AutoencoderTiny or AutoencoderKL in the place of the pipeline's
    vae_dtype: Literal["auto", "float32", "float16", "bfloat16"] = (
        "auto"  # auto: `dtype`; float32 if that overflows or is auto
    )
    max_batch: Annotated[int, Range(1, 4096)] = (
        64  # images in one call of the denoiser, branches counted; more are cut
    )
    vae_batch: Annotated[int, Range(1, 4096)] = (
        64  # images in one call of the autoencoder; more are cut, and encoded twice
    )
    offload_encoders: bool = (
        False  # text and image encoders wait on the CPU while they are not used
    )
    channels_last: bool = (
        False  # memory layout of denoiser and autoencoder; often faster on a GPU in half precision
    )
    compile: bool = (
        False  # denoiser and encoder of views: slow first steps, then faster; needs a compiler
    )


@dataclass
class VisualPromptConfig:
    """How the visual prompt is drawn, chosen and cut out."""

    candidates: Annotated[int, Range(1, 64)] = (
        8  # images drawn; one is chosen by the text-image reward
    )
    steps: Annotated[int, Range(1, 1000)] = 30  # denoising steps
    guidance_scale: Annotated[float, Range(0, 200)] = (
        2.0  # classifier-free guidance; 1 is plain conditioning
    )
    view: str = "front view"  # view words added to the prompt while drawing
    words: str = (
        ""  # more words for the drawing alone; the judge, who sees the cut-out, is not told
    )
    ground: Share = (
        0.7  # grey level of the neutral ground it is put on before it is encoded, [0, 1]
    )
    cutout_tolerance: Share = (
        0.12  # colour distance to the border colour that still counts as background, [0, 1]
    )
    steadiness: Share = 0.8  # IoU of cut-outs by tighter and by wider limits, below which a drawn one is a scene, not an object
    prior: PriorConfig = field(
        default_factory=lambda: PriorConfig("", "", manifest="", vocabulary="")
    )  # draws; "" for the same


@dataclass
class GuidanceConfig:
    """VP-SDS. `e_hat = e(0) + s * (e(y,v) - e(0))`, or the split form with two scales (see diffusion/cfg.py)."""

    mode: Literal["joint", "split"] = "joint"
    guidance_scale: Annotated[float, Range(0, 1000)] = (
        2.0  # s of the joint form; 1 is plain conditioning
    )
    text_scale: Annotated[float, Range(0, 1000)] = 2.0  # s_text of the split form
    image_scale: Annotated[float, Range(0, 1000)] = 2.0  # s_image of the split form
    lam: PositiveSchedule = field(
        default_factory=lambda: Schedule(0.6, 0.0, to=0.4)
    )  # of the image branch; 0: the text alone
    lam_gate: ViewGate = field(default_factory=ViewGate)  # lam is multiplied by this
    t_min: ShareSchedule = field(
        default_factory=lambda: Schedule(0.6, 0.3)
    )  # lowest noise level, share of all
    t_max: ShareSchedule = field(
        default_factory=lambda: Schedule(0.88, 0.7)
    )  # highest; above, the render's ground is not seen
    weighting: Literal["sigma2", "uniform", "x0"] = (
        "x0"  # w(t): sigma2 (1 - alpha_bar) | uniform | x0 (sigma / alpha)
    )
    denoise_steps: Annotated[int, Range(1, 100)] = (
        2  # from the noised view to the estimate of the clean one; 1 is plain SDS
    )
    rescale: Share = 0.0  # share of std rescale of the x0 estimate, [0, 1]
    normalize: Literal["sum", "mean"] = "mean"  # the MSE is a "sum" over elements or a "mean"
    perp_neg: Weight = 0.0  # share of Perp-Neg's weights against the neighbouring views; 1 is the paper's, 0 is off
    debias: str = ""  # a masked language model, placed as a prior: drops words that contradict a view; "" is off
    debias_words: str = (
        ""  # the words it may drop, separated by spaces; "" is every word of the prompt
    )
    space: Literal["latents", "pixels"] = (
        "pixels"  # of the error: latents as SDS has it, or pixels of the decoded estimate
    )
    estimate_every: Annotated[int, Range(1, 100)] = (
        2  # steps of the field, from the same cameras, to one estimate of the prior
    )
    weight: Weight = 30.0  # of the guidance; errors of pixels are smaller than those of latents


@dataclass
class RewardConfig:
    """One differentiable reward on the rendered views. Loss = weight * mean(gate * relu(hinge - reward))."""

    weight: Weight = 0.0
    begin: Share = 0.0  # progress from which it acts
    finish: Share = 1.0  # progress after which it no longer acts
    hinge: float = 1.0e9  # no push once the reward is above this
    gate: ViewGate = field(default_factory=ViewGate)


@dataclass
class RewardsConfig:
    """The models that judge, and their terms. A model is a folder or a name of `launch.py models list`."""

    text_model: Literal["clip", "imagereward", "hpsv2", "pickscore"] = (
        "clip"  # of the text-image term; scores differ in size
    )
    image_model: Literal["clip", "dinov2"] = "clip"  # of the image-image term
    clip: str = "assets/toybox/clip"  # open_clip local-dir folder
    imagereward: str = "imagereward"  # read only if text_model says so; as the two below
    hpsv2: str = "hpsv2.1"
    pickscore: str = "pickscore"
    dinov2: str = "dinov2-base"  # read only if image_model says so
    aesthetic_model: str = "aesthetic"  # read only if the aesthetic term has a weight
    text_image: RewardConfig = (
        field(  # in CLIP's cosine; exact renders score 0.74 (measure clip): more is no better
            default_factory=lambda: RewardConfig(weight=0.1, begin=0.3, hinge=0.7)
        )
    )
    image_image: RewardConfig = field(
        default_factory=lambda: RewardConfig(
            weight=0.03, begin=0.3, gate=ViewGate(0.0, 45.0, 100.0, 0.0)
        )
    )
    aesthetic: RewardConfig = field(default_factory=RewardConfig)


@dataclass
class FieldConfig:
    """The radiance field inside [-1, 1]^3."""

    kind: Literal["grid", "hashgrid"] = "grid"  # grid (dense, CPU default) | hashgrid
    resolution: Annotated[int, Range(8, 512)] = 48  # finest grid cells along a side
    levels: Annotated[int, Range(1, 32)] = 8  # hashgrid only: resolutions from 16 to `resolution`
    features: Annotated[int, Range(1, 16)] = 2  # hashgrid only: features a level
    log2_table: Annotated[int, Range(4, 24)] = 14  # hashgrid only: entries a level
    blob_density: Annotated[float, Range(0.7, 1000)] = (
        6.0  # density at the centre of the initial blob
    )
    blob_radius: Annotated[float, Range(0.01, 2)] = 0.55  # its radius


@dataclass
class CameraConfig:
    """Where training views are taken from."""

    elevation_min_deg: Annotated[float, Range(-89, 89)] = -5.0
    elevation_max_deg: Annotated[float, Range(-89, 89)] = 40.0
    distance: Annotated[float, Range(1.8, 100)] = 2.9
    fov_deg: Annotated[float, Range(1, 120)] = 40.0


@dataclass
class RenderConfig:
    """Volume rendering while training."""

    resolution: Annotated[int, Range(8, 1024)] = 64  # pixels of a side
    samples: Annotated[int, Range(2, 1024)] = 48  # samples a ray through the volume
    chunk: Annotated[int, Range(1024)] = (
        1_048_576  # samples evaluated at once, at most; halved when memory runs out
    )
    background_min: Share = 0.5  # random grey background, [0, 1]
    background_max: Share = 0.52  # on a lighter one the white parts of an object melt; the prior knows no darker ground than 0.5
    shading: Literal["albedo", "lambert"] = (
        "albedo"  # albedo | lambert (the toybox light, normals from the density)
    )
    occupancy_resolution: Annotated[int, Range(4, 512)] = (
        32  # cells along a side of the occupancy grid
    )
    occupancy_every: Annotated[int, Range(1)] = 16  # steps between its updates
    occupancy_threshold: Share = 0.01  # opacity of one step below which a cell is empty
    bound_radius: Annotated[float, Range(0.1, 2)] = (
        0.9  # nothing is rendered farther from the origin; the pictures show 0.99
    )


@dataclass
class LossConfig:
    """Weights of the regularisers; each falls or rises by its schedule."""

    opacity: PositiveSchedule = field(
        default_factory=lambda: Schedule(0.0, 0.02, 0.2, 0.6)
    )  # binary entropy
    sparsity: PositiveSchedule = field(default_factory=lambda: Schedule(0.01, 0.01))  # mean opacity
    smoothness: PositiveSchedule = field(
        default_factory=lambda: Schedule(0.01, 0.01)
    )  # total variation
    orientation: PositiveSchedule = field(
        default_factory=lambda: Schedule(0.0, 0.0)
    )  # normals that face away


@dataclass
class OptimConfig:
    """The optimisation of the coarse stage."""

    steps: Annotated[int, Range(1, 1000000)] = 400
    views: Annotated[int, Range(1, 256)] = 4  # cameras a step
    lr_density: Annotated[float, Range(0, 10)] = 0.25
    lr_albedo: Annotated[float, Range(0, 10)] = 0.05
    lr_final: Share = 0.1  # the rates fall to this share of themselves by cosine
    grad_clip: Weight = 1.0  # largest norm of the gradient; 0 does not clip
    bad_steps: Annotated[int, Range(1)] = (
        10  # non-finite steps in a row after which the run stops with a diagnosis
    )
    checkpoint_every: Annotated[int, Range(1)] = 50
    preview_every: Annotated[int, Range(1)] = 25


@dataclass
class ExportConfig:
    """From field to files."""

    grid: Annotated[int, Range(8, 1024)] = 96  # marching-cubes cells along a side
    faces: Annotated[int, Range(0, 10000000)] = (
        8000  # decimate to at most this many triangles; 0 keeps all
    )
    texture_size: Annotated[int, Range(16, 8192)] = 512
    unwrap_deadline_s: Annotated[float, Range(0, 3600)] = (
        20.0  # seconds xatlas may take before our own atlas is used
    )
    formats: list[Literal["glb", "obj", "ply", "stl"]] = field(
        default_factory=lambda: ["glb", "obj", "ply", "stl"]
    )
    turntable: Literal["mp4", "gif"] = "mp4"  # mp4 needs ffmpeg, which comes with imageio-ffmpeg
    turntable_frames: Annotated[int, Range(2, 2000)] = 48
    turntable_size: Annotated[int, Range(16, 2048)] = 192


@dataclass
class CudaConfig:
    """How a CUDA device does its work; not read on a CPU. It changes rounding only, so it may differ on resume."""

    encoder: Literal["auto", "torch", "triton", "tinycudann"] = (
        "auto"  # of the hash grid; auto: triton if it works, else torch
    )
    table_dtype: Literal["float32", "float16"] = (
        "float16"  # what triton and tinycudann read; optimised in float32 all the same
    )
    compositor: Literal["torch", "nerfacc"] = "torch"  # who skips empty space and sums along rays
    memory_gb: Annotated[float, Range(0, 1000)] = (
        0.0  # memory to plan for; 0 takes what is free at the start
    )


@dataclass
class Config:
    """A whole run."""

    prompt: str = ""
    negative_prompt: str = ""
    image: str = ""  # a reference image used as the visual prompt (stylised 3D); "" draws one
    mask: str = ""  # picture that is white on the object of `image`; "" finds the object
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    preset: Literal["draft", "standard", "high"] = "standard"
    backend: Literal["auto", "cpu", "cuda"] = "auto"
    output_dir: str = "outputs"
    prior: PriorConfig = dataclasses.field(default_factory=PriorConfig)
    visual_prompt: VisualPromptConfig = dataclasses.field(default_factory=VisualPromptConfig)
    guidance: GuidanceConfig = dataclasses.field(default_factory=GuidanceConfig)
    rewards: RewardsConfig = dataclasses.field(default_factory=RewardsConfig)
    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    camera: CameraConfig = dataclasses.field(default_factory=CameraConfig)
    render: RenderConfig = dataclasses.field(default_factory=RenderConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)
    cuda: CudaConfig = dataclasses.field(default_factory=CudaConfig)
