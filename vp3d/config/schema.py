"""All settings of a run, in one tree of dataclasses. A run stores its tree as `config.yaml`.

Conventions: angles in degrees, colours in [0, 1] sRGB; `progress` in [0, 1] is the fraction of the
optimisation steps that are done. The defaults are the embedded models on a CPU. YAML files and
presets contain only what differs from the defaults.

The annotation of a field is all that it may contain: its type, `Literal` for a choice, `Range` for
numbers. The comment next to or above a field becomes its meaning in
docs/reference/configuration.md. `load_config` (vp3d/config/loader.py) layers the settings.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal


@dataclass(frozen=True)
class Range:
    """The numbers that a field may take, both ends included; on a Schedule, for `start`, `end`."""

    low: float
    high: float = float("inf")


LAST_SEED = 2**63 - 1  # the generators take no higher one
Share = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0)]
Degrees = Annotated[float, Range(0, 180)]
Elevation = Annotated[float, Range(-89, 89)]
GuidanceScale = Annotated[float, Range(0, 1000)]
LearningRate = Annotated[float, Range(0, 10)]
BatchSize = Annotated[int, Range(1, 4096)]


@dataclass
class Schedule:
    """A value that changes linearly with progress, from `start` to `end`, and is constant outside.

    A bare number in a config file is a schedule that is constant.
    """

    start: float = 1.0  # value until progress reaches from_
    end: float = 1.0  # value once progress has reached to
    from_: Share = 0.0  # progress at which the change starts
    to: Share = 1.0  # progress at which it ends

    @classmethod
    def constant(cls, value: float) -> Schedule:
        """The schedule that is `value` throughout."""
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
    """A weight by camera azimuth.

    It is 1 within `full_deg` of `center_deg`, then falls linearly to `floor` at `zero_deg`.
    """

    center_deg: float = 0.0  # azimuth at which the term is strongest, degrees
    full_deg: Degrees = 180.0  # half-width of the range of full strength, degrees
    zero_deg: Degrees = 180.0  # half-width beyond which only `floor` is left, degrees
    floor: Share = 0.0  # weight beyond zero_deg


@dataclass
class PriorConfig:
    """The frozen 2D diffusion model.

    A model is a name of `models list`, a hub id, or a folder (absolute or of the repository).
    """

    # a StableDiffusionPipeline or StableDiffusionXLPipeline in the layout of diffusers
    path: str = "assets/toybox/pipeline"
    ip_adapter: str = "assets/toybox/ip_adapter"  # in the published layout; "" for none
    ip_adapter_subfolder: str = "models"  # folder of the adapter's weight file, inside ip_adapter
    ip_adapter_weight: str = "ip-adapter_toybox.safetensors"  # the adapter's weight file
    # folder of the image encoder, inside ip_adapter_subfolder
    image_encoder_folder: str = "image_encoder"
    # SHA-256 of every weight file, checked when the models are loaded; "" for none
    manifest: str = "assets/toybox/MANIFEST.json"
    vocabulary: str = "assets/toybox/vocabulary.json"  # words the prior knows; "" accepts any word
    # auto: bfloat16 for the denoiser on CPUs with bfloat16 instructions, else float32
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    # side of the images that the prior was trained on, pixels
    resolution: Annotated[int, Range(16, 2048)] = 64
    variant: str = ""  # of the weight files in `path`, for example fp16; "" is the plain files
    # AutoencoderTiny or AutoencoderKL that replaces the pipeline's own; "" keeps that
    vae: str = ""
    # auto: as `dtype`; float32 if that overflows or is auto
    vae_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    # images in one call of the denoiser, each branch counted; larger batches are split
    max_batch: BatchSize = 64
    # images in one call of the autoencoder; larger batches are split, and encoded twice
    vae_batch: BatchSize = 64
    offload_encoders: bool = False  # keep text and image encoders on the CPU while not in use
    # memory layout of denoiser and autoencoder; often faster on a GPU in half precision
    channels_last: bool = False
    # torch.compile for denoiser and encoder: slow first steps, then faster; needs a compiler
    compile: bool = False
    # LoRA files or folders, comma-separated, each with a scale: a.safetensors:0.5,b; "" for none
    loras: str = ""


@dataclass
class SvddConfig:
    """Steering of the drawing: several proposals at each denoising step, one kept by a reward."""

    # proposals for each picture and denoising step; 1 is plain drawing with noise
    m: Annotated[int, Range(1, 256)] = 8
    # temperature of the choice, in standard deviations of the reward; 0 keeps the best proposal
    alpha: Weight = 0.0
    # pm: the reward of the picture expected in the end; mc: a network fitted to plain drawings
    value: Literal["pm", "mc"] = "pm"
    # NAME[:WEIGHT],...: text (the model of rewards.text_model), whole, centred, filled, steady,
    # plain, single, jpeg, compress, framing, colorful
    reward: str = "text:1,steady:0.5,whole:0.5"
    begin: Share = 0.0  # share of the denoising steps from which there are proposals
    finish: Share = 1.0  # share of the denoising steps after which there are none


@dataclass
class VisualPromptConfig:
    """How the visual prompt is drawn, selected and cut out."""

    # images drawn; the text-image reward selects one
    candidates: Annotated[int, Range(1, 64)] = 8
    steps: Annotated[int, Range(1, 1000)] = 30  # denoising steps
    # classifier-free guidance; 1 is plain conditioning
    guidance_scale: Annotated[float, Range(0, 200)] = 2.0
    view: str = "front view"  # view words added to the prompt for drawing
    words: str = ""  # extra prompt words for drawing the candidates; not used for scoring them
    ground: Share = 0.7  # grey level of the background behind the cut-out
    # colour distance to the border colour up to which a pixel is background
    cutout_tolerance: Share = 0.12
    # lowest IoU of cut-outs by tighter and wider thresholds; below it a candidate is rejected as a
    # scene
    steadiness: Share = 0.8
    # ddim: deterministic steps; svdd: steps with noise, steered by a reward without gradient
    sampler: Literal["ddim", "svdd"] = "ddim"
    svdd: SvddConfig = field(default_factory=SvddConfig)  # read only if sampler is svdd
    # another model that only draws the candidates; path "" uses `prior`
    prior: PriorConfig = field(
        default_factory=lambda: PriorConfig("", "", manifest="", vocabulary="")
    )


@dataclass
class GuidanceConfig:
    """VP-SDS: `e_hat = e(0) + s * (e(y, v) - e(0))`, or the split form (vp3d/diffusion/cfg.py)."""

    # joint: one guidance scale; split: one for the text, one for the image
    mode: Literal["joint", "split"] = "joint"
    guidance_scale: GuidanceScale = 2.0  # s of the joint form; 1 is plain conditioning
    text_scale: GuidanceScale = 2.0  # s_text of the split form
    image_scale: GuidanceScale = 2.0  # s_image of the split form
    # strength of the image branch; 0 is text alone
    lam: PositiveSchedule = field(default_factory=lambda: Schedule(0.6, 0.0, to=0.4))
    lam_gate: ViewGate = field(default_factory=ViewGate)  # lam is multiplied by this gate
    # lowest noise level, as a share of all
    t_min: ShareSchedule = field(default_factory=lambda: Schedule(0.6, 0.3))
    # highest noise level; above 0.9 the background behind the render is lost in the noise
    t_max: ShareSchedule = field(default_factory=lambda: Schedule(0.88, 0.7))
    # w(t): sigma2 is 1 - alpha_bar, uniform is 1, x0 is sigma / alpha
    weighting: Literal["sigma2", "uniform", "x0"] = "x0"
    # denoising steps from the noised view to the estimate; 1 is plain SDS
    denoise_steps: Annotated[int, Range(1, 100)] = 2
    rescale: Share = 0.0  # how far the x0 estimate is rescaled to the std of the conditional one
    normalize: Literal["sum", "mean"] = "mean"  # how the squared error is reduced over elements
    # share of Perp-Neg's weights against the neighbouring views; 1 is the paper's, 0 is off
    perp_neg: Weight = 0.0
    debias: str = ""  # masked language model that drops words contradicting a view; "" is off
    # words that it may drop, separated by spaces; "" is every word of the prompt
    debias_words: str = ""
    # of the error: latents (as in SDS) or pixels of the decoded estimate
    space: Literal["latents", "pixels"] = "pixels"
    # optimisation steps that use one estimate of the prior, with the same cameras
    estimate_every: Annotated[int, Range(1, 100)] = 2
    weight: Weight = 30.0  # factor of the term in the loss


@dataclass
class RewardConfig:
    """One differentiable reward on the rendered views.

    Its loss is weight * mean(gate * relu(hinge - reward)).
    """

    weight: Weight = 0.0  # factor of the term in the loss; 0 switches it off
    begin: Share = 0.0  # progress from which it acts
    finish: Share = 1.0  # progress after which it no longer acts
    hinge: float = 1.0e9  # reward above which the gradient is zero
    gate: ViewGate = field(default_factory=ViewGate)  # weight by camera azimuth


@dataclass
class RewardsConfig:
    """The reward models and their terms. A model is a name of `models list` or a folder."""

    # model of the text-image term; each has its own range of scores
    text_model: Literal["clip", "imagereward", "hpsv2", "pickscore"] = "clip"
    image_model: Literal["clip", "dinov2"] = "clip"  # model of the image-image term
    clip: str = "assets/toybox/clip"  # a CLIP in open_clip's local folder layout
    imagereward: str = "imagereward"  # read only if text_model is imagereward
    hpsv2: str = "hpsv2.1"  # read only if text_model is hpsv2
    pickscore: str = "pickscore"  # read only if text_model is pickscore
    dinov2: str = "dinov2-base"  # read only if image_model is dinov2
    aesthetic_model: str = "aesthetic"  # read only if the aesthetic term has a weight
    # how well a view fits the prompt; exact renders score 0.74 in the embedded CLIP
    text_image: RewardConfig = field(
        default_factory=lambda: RewardConfig(weight=0.1, begin=0.3, hinge=0.7)
    )
    # how similar a view is to the visual prompt
    image_image: RewardConfig = field(
        default_factory=lambda: RewardConfig(
            weight=0.03, begin=0.3, gate=ViewGate(0.0, 45.0, 100.0, 0.0)
        )
    )
    # how good a view looks, whatever it shows
    aesthetic: RewardConfig = field(default_factory=RewardConfig)


@dataclass
class FieldConfig:
    """The radiance field inside [-1, 1]^3."""

    kind: Literal["grid", "hashgrid"] = "grid"  # grid is dense, the default on a CPU
    resolution: Annotated[int, Range(8, 512)] = 48  # finest grid cells along a side
    levels: Annotated[int, Range(1, 32)] = 8  # hashgrid only: resolutions from 16 to `resolution`
    features: Annotated[int, Range(1, 16)] = 2  # hashgrid only: features a level
    log2_table: Annotated[int, Range(4, 24)] = 14  # hashgrid only: log2 of the entries a level
    # density at the centre of the initial blob
    blob_density: Annotated[float, Range(0.7, 1000)] = 6.0
    blob_radius: Annotated[float, Range(0.01, 2)] = 0.55  # radius of the initial blob


@dataclass
class CameraConfig:
    """The cameras of the training views; azimuths are uniform over the circle."""

    elevation_min_deg: Elevation = -5.0  # lowest camera, degrees above the horizon
    elevation_max_deg: Elevation = 40.0  # highest camera, degrees above the horizon
    distance: Annotated[float, Range(1.8, 100)] = 2.9  # from the origin, world units
    fov_deg: Annotated[float, Range(1, 120)] = 40.0  # vertical field of view, degrees


@dataclass
class RenderConfig:
    """Volume rendering during training."""

    resolution: Annotated[int, Range(8, 1024)] = 64  # side of a view, pixels
    samples: Annotated[int, Range(2, 1024)] = 48  # samples a ray through the volume
    # most samples evaluated at once; halved when memory runs out
    chunk: Annotated[int, Range(1024)] = 1_048_576
    background_min: Share = 0.5  # darkest grey of the random background
    # lighter backgrounds erode white parts; the embedded prior was not trained below 0.5
    background_max: Share = 0.52
    # lambert: the light of the toybox, with normals from the density
    shading: Literal["albedo", "lambert"] = "albedo"
    # cells along a side of the occupancy grid
    occupancy_resolution: Annotated[int, Range(4, 512)] = 32
    occupancy_every: Annotated[int, Range(1)] = 16  # steps between updates of the occupancy grid
    occupancy_threshold: Share = 0.01  # opacity of one sample below which a cell is empty
    # nothing is rendered farther from the origin; the cameras see up to 0.99
    bound_radius: Annotated[float, Range(0.1, 2)] = 0.9


@dataclass
class LossConfig:
    """Weights of the regularisers."""

    # binary entropy of the opacity
    opacity: PositiveSchedule = field(default_factory=lambda: Schedule(0.0, 0.02, 0.2, 0.6))
    # mean opacity
    sparsity: PositiveSchedule = field(default_factory=lambda: Schedule(0.01, 0.01))
    # opacity of rays that are, and should be, background in colour; such matter closes holes
    fog: PositiveSchedule = field(default_factory=lambda: Schedule(1.0, 1.0))
    # total variation of density and albedo
    smoothness: PositiveSchedule = field(default_factory=lambda: Schedule(0.01, 0.01))
    # normals that face away from the camera
    orientation: PositiveSchedule = field(default_factory=lambda: Schedule(0.0, 0.0))


@dataclass
class OptimConfig:
    """The optimisation of the coarse stage."""

    steps: Annotated[int, Range(1, 1000000)] = 400  # optimisation steps
    views: Annotated[int, Range(1, 256)] = 4  # cameras a step
    lr_density: LearningRate = 0.25  # learning rate of the density
    lr_albedo: LearningRate = 0.05  # learning rate of the colour
    lr_final: Share = 0.1  # share of the learning rates that is left at the end; falls by cosine
    grad_clip: Weight = 1.0  # largest norm of the gradient; 0 does not clip
    # non-finite steps in a row after which the run stops with a diagnosis
    bad_steps: Annotated[int, Range(1)] = 10
    checkpoint_every: Annotated[int, Range(1)] = 50  # steps between checkpoints
    preview_every: Annotated[int, Range(1)] = 25  # steps between previews


@dataclass
class RefineConfig:
    """The second stage: vertices and texture of the extracted mesh are optimised.

    It runs after the coarse stage, in rounds, and a guard keeps the best state (vp3d/train/refine).
    """

    # views: pictures that the prior redraws; sds: VP-SDS and rewards; none: no second stage
    method: Literal["none", "views", "sds"] = "none"
    change: Literal["both", "geometry", "texture"] = "both"  # what it may change
    grid: Annotated[int, Range(8, 1024)] = 144  # marching-cubes cells of the mesh it starts from
    # most triangles of that mesh
    faces: Annotated[int, Range(100, 1000000)] = 8000
    texture_size: Annotated[int, Range(16, 4096)] = 1024  # side of the texture, texels
    # side of the renders, pixels; they are averaged down to the prior's resolution
    render_size: Annotated[int, Range(16, 4096)] = 256
    rasterizer: Literal["auto", "numba", "torch"] = "auto"  # numba for a CPU, torch for any device
    # highest noise level of each round, as a share of all
    strengths: list[Annotated[float, Range(0.001, 1)]] = field(
        default_factory=lambda: [0.5, 0.35, 0.2]
    )
    steps: Annotated[int, Range(1, 1000000)] = 150  # optimisation steps of a round
    views: Annotated[int, Range(1, 64)] = 2  # views of a step
    azimuths: Annotated[int, Range(3, 360)] = 24  # views only: cameras of a ring
    # views only: a ring of cameras at each, degrees above the horizon
    elevations_deg: list[Elevation] = field(default_factory=lambda: [0.0, 30.0])
    # views only: denoising steps from a noised view to a picture
    denoise_steps: Annotated[int, Range(1, 100)] = 4
    lam: Weight = 0.6  # views only: strength of the image branch, times guidance.lam_gate
    t_min: Share = 0.02  # sds only: lowest noise level
    lr_vertices: LearningRate = 2.0e-3  # learning rate of the vertices, world units
    lr_texture: LearningRate = 3.0e-3  # learning rate of the texture
    coverage: Weight = 1.0  # views only: weight of the silhouettes; that of the colours is 1
    bending: Weight = 50.0  # weight of neighbours that move apart
    smoothness: Weight = 20.0  # weight of a rough surface
    normals: Weight = 0.1  # weight of normals that differ across an edge
    variation: Weight = 0.5  # weight of differences between texels


@dataclass
class ExportConfig:
    """From the field to files."""

    grid: Annotated[int, Range(8, 1024)] = 96  # marching-cubes cells along a side
    # most triangles of the mesh, reached by decimation; 0 keeps all
    faces: Annotated[int, Range(0, 10000000)] = 8000
    texture_size: Annotated[int, Range(16, 8192)] = 512  # side of the square texture, pixels
    # seconds that xatlas may take before VP3D's own atlas is used
    unwrap_deadline_s: Annotated[float, Range(0, 3600)] = 20.0
    # mesh files to write
    formats: list[Literal["glb", "obj", "ply", "stl", "usdz", "3mf"]] = field(
        default_factory=lambda: ["glb", "obj", "ply", "stl"]
    )
    # removed: a fitted lamp is taken out of the colours, and viewers add their own; baked: the
    # colours keep it, and GLB and USDZ say that they are unlit
    light: Literal["removed", "baked"] = "removed"
    # pictures of GLB and USDZ; base is always written
    maps: list[Literal["base", "normal", "occlusion"]] = field(
        default_factory=lambda: ["base", "normal", "occlusion"]
    )
    # object names in the files; plain: "object" instead of the prompt's words
    names: Literal["prompt", "plain"] = "prompt"
    up: Literal["z", "y"] = "z"  # axis that points up in OBJ, PLY and STL
    # millimetres of the object: GLB and USDZ in metres, other files in millimetres; 0: world units
    size_mm: Annotated[float, Range(0, 100000)] = 0.0
    size_axis: Literal["height", "longest"] = "longest"  # the side that size_mm measures
    # of the files; field: where the object was optimised; centre, bottom: of the object's box
    origin: Literal["field", "centre", "bottom"] = "field"
    # STL and 3MF as one solid with a flat base; needs the package manifold3d
    print: bool = False
    # slice cut off below, for a flat base, millimetres
    print_base_mm: Annotated[float, Range(0, 1000)] = 0.3
    colors: Annotated[int, Range(1, 16)] = 4  # most colours of a 3MF file
    # levels of detail as extra GLB files, each a share of the triangles of the mesh; 1 is the mesh
    # itself, which needs no extra file
    lods: list[Annotated[float, Range(0.001, 1)]] = field(default_factory=lambda: [1.0])
    # numbers in the GLB; draco needs the package DracoPy, and a reader that knows it
    compress: Literal["none", "quantize", "draco"] = "none"
    image: Literal["png", "webp"] = "png"  # pictures in the GLB
    turntable: Literal["mp4", "gif"] = "mp4"  # mp4 needs ffmpeg, which imageio-ffmpeg contains
    turntable_frames: Annotated[int, Range(2, 2000)] = 48  # frames of one turn
    turntable_size: Annotated[int, Range(16, 2048)] = 192  # side of a frame, pixels


@dataclass
class CudaConfig:
    """The work of a CUDA device; not read on a CPU.

    These settings change rounding only, so they may differ when a run is resumed.
    """

    # of the hash grid; auto: triton if it works, else torch
    encoder: Literal["auto", "torch", "triton", "tinycudann"] = "auto"
    # precision the kernels read; the optimised copy stays float32
    table_dtype: Literal["float32", "float16"] = "float16"
    # what skips empty space and sums along rays
    compositor: Literal["torch", "nerfacc"] = "torch"
    # memory to plan for, GB; 0 takes what is free at the start
    memory_gb: Annotated[float, Range(0, 1000)] = 0.0


@dataclass
class AlignConfig:
    """How `align` trains a LoRA of the 2D model on a reward (vp3d/align)."""

    reward: str = ""  # NAME[:WEIGHT],... as clip:1,compress:0.3; "" in every run that is no `align`
    # alignprop back-propagates through the drawing, refl through one late step, ddpo needs no
    # gradient of the reward
    method: Literal["alignprop", "refl", "ddpo"] = "alignprop"
    updates: Annotated[int, Range(1, 100_000)] = 200  # training steps
    batch: Annotated[int, Range(1, 1024)] = 8  # drawings a step
    group: Annotated[int, Range(1, 64)] = (
        1  # drawings of each prompt among them; 4 or more for ddpo
    )
    lr: LearningRate = 1.0e-3  # of AdamW
    warmup: Annotated[int, Range(0, 1000)] = 5  # steps over which the learning rate rises
    weight_decay: Annotated[float, Range(0, 10)] = 1.0e-4  # of AdamW
    rank: Annotated[int, Range(1, 256)] = 4  # of a new LoRA; alpha is equal to it
    text_encoder: bool = False  # also train the attention of the text encoders
    start: str = ""  # a LoRA to continue from; "" for a new one
    steps: Annotated[int, Range(1, 1000)] = 10  # denoising steps of a drawing
    guidance_scale: Annotated[float, Range(0, 200)] = 1.0  # of the drawing; above 1 costs twice
    # last steps that the gradient flows through: fixed:K, uniform:K or gaussian
    k: str = "uniform:5"
    # stop: the gradient does not flow into the denoiser's input (DRTune)
    input_gradient: Literal["full", "stop"] = "full"
    # DRaFT-LV: fresh noises of the last step that are trained on; 0 trains on the whole drawing
    repeat_last: Annotated[int, Range(0, 64)] = 0
    anchor: Weight = 0.0  # weight of the drift from the base model
    # rewards that many standard deviations above the base no longer pull; 0 for no limit
    hinge: Annotated[float, Range(0, 1000)] = 0.0
    ema: Annotated[float, Range(0, 0.9999)] = 0.95  # of the weights that are judged and saved
    # the score that is not optimised and must not fall; dino and tower (embedded) are the likeness
    # to the base model's drawings; none watches the spread alone
    guard: Literal["auto", "clip", "aesthetic", "dino", "tower", "none"] = "auto"
    guard_every: Annotated[int, Range(1, 10_000)] = 10  # steps between checks and checkpoints


@dataclass
class Config:
    """All settings of one run."""

    prompt: str = ""  # what to make
    negative_prompt: str = ""  # what the pictures should not show
    image: str = ""  # reference picture to use as the visual prompt; "" draws one
    mask: str = ""  # picture that is white on the object of `image`; "" finds the object
    # another seed gives another variant; the same seed gives the same bytes
    seed: Annotated[int, Range(0, LAST_SEED)] = 0
    preset: Literal["draft", "standard", "high"] = "standard"  # how much work to put in
    # auto takes a CUDA device if torch sees one; cuda without one is an error
    backend: Literal["auto", "cpu", "cuda"] = "auto"
    output_dir: str = "outputs"  # folder that gets one folder per run
    # by_words: where prior and rewards are the embedded ones, those of the world whose words the
    # prompt uses; given: those that prior and rewards name
    embedded: Literal["by_words", "given"] = "by_words"
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
    refine: RefineConfig = dataclasses.field(default_factory=RefineConfig)
    cuda: CudaConfig = dataclasses.field(default_factory=CudaConfig)
    align: AlignConfig = dataclasses.field(default_factory=AlignConfig)
