"""PickScore, the aesthetic head, DINOv2 and HPSv2's layout: plain models, gradients, sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import vp3d.system.torch_compat  # noqa: F401  (before open_clip, which imports torchvision)

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_clip import write_tiny_clip
from tests.helpers.tiny_rewards import (
    MEAN,
    SIZE,
    STD,
    write_aesthetic,
    write_clip_tower,
    write_dino,
)
from vp3d.config.loader import load_config
from vp3d.config.schema import Config, RewardConfig
from vp3d.errors import UserError
from vp3d.rewards.aesthetic import Aesthetic, load_aesthetic
from vp3d.rewards.build import Judges, load_judges
from vp3d.rewards.image_image import image_image, image_target
from vp3d.rewards.text_image import ClipText
from vp3d.rewards.towers import ClipTower, DinoTower, load_clip_tower, load_dino
from vp3d.weights.catalogue import MODELS
from vp3d.weights.locate import judge_locations

PROMPTS = ["a red sphere", "a blue cube"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("towers")
    write_clip_tower(root / "pickscore")
    write_dino(root / "dino")
    write_aesthetic(root / "aesthetic")
    write_tiny_clip(root / "clip")
    return root


@pytest.fixture(scope="module")
def clip(root: Path) -> ClipTower:
    return load_clip_tower(str(root / "pickscore"), "rewards.pickscore")


@pytest.fixture(scope="module")
def dino(root: Path) -> DinoTower:
    return load_dino(str(root / "dino"))


@pytest.fixture(scope="module")
def aesthetic(root: Path) -> Aesthetic:
    return load_aesthetic(str(root / "aesthetic"))


def random_rgb(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def pixels_of(rgb: torch.Tensor) -> torch.Tensor:
    return (rgb - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@torch.no_grad()
def test_pickscore_is_the_published_sum(clip: ClipTower, root: Path) -> None:
    """exp(logit_scale) * cos, as in its model card, from a plain CLIPModel."""
    plain = transformers.CLIPModel.from_pretrained(root / "pickscore").eval()
    words = transformers.AutoTokenizer.from_pretrained(root / "pickscore")
    text = words(PROMPTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    rgb = random_rgb(2, 3, SIZE, SIZE)
    logits = plain(input_ids=text.input_ids, pixel_values=pixels_of(rgb)).logits_per_image
    judge = ClipText(clip, clip.scale)
    assert clip.scale == pytest.approx(np.exp(3.0), rel=1e-5)
    torch.testing.assert_close(
        judge.score(rgb, judge.target(PROMPTS)), logits.diagonal(), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_dino_is_the_plain_model(dino: DinoTower, root: Path) -> None:
    plain = transformers.Dinov2Model.from_pretrained(root / "dino").eval()
    rgb = random_rgb(2, 3, SIZE, SIZE)
    hidden = plain(pixel_values=pixels_of(rgb)).last_hidden_state
    torch.testing.assert_close(dino.image(rgb), F.normalize(hidden[:, 0], dim=-1))
    torch.testing.assert_close(dino.tokens(rgb), F.normalize(hidden[:, 1:], dim=-1))
    assert dino.tokens(rgb).shape == (2, (SIZE // 8) ** 2, 32)
    found = image_image(rgb, image_target(rgb[:1], dino), dino)
    assert float(found[0]) == pytest.approx(1.0, abs=1e-5) and float(found[1]) < 0.999


def test_a_clip_reads_texts_unless_it_is_told_not_to(root: Path, aesthetic: Aesthetic) -> None:
    assert ClipTower(root / "pickscore").text(PROMPTS).shape[0] == len(PROMPTS)
    with pytest.raises(ValueError, match="load it with text=True"):
        ClipTower(root / "pickscore", text=False).text(PROMPTS)
    assert aesthetic.clip.tokenizer is None  # the reward has no text


@torch.no_grad()
def test_clips_patches_are_those_of_the_plain_model(clip: ClipTower, root: Path) -> None:
    """Every token but the first, which is the class."""
    plain = transformers.CLIPModel.from_pretrained(root / "pickscore").eval()
    rgb = random_rgb(2, 3, SIZE, SIZE)
    hidden = plain.vision_model(pixel_values=pixels_of(rgb)).last_hidden_state
    torch.testing.assert_close(clip.tokens(rgb), F.normalize(hidden[:, 1:], dim=-1))
    assert clip.tokens(rgb).shape[:2] == (2, (SIZE // plain.config.vision_config.patch_size) ** 2)


@torch.no_grad()
def test_aesthetic_by_hand(aesthetic: Aesthetic, root: Path) -> None:
    """CLIP's projected feature, its length taken off, through five linear layers in NumPy."""
    rgb, stored = random_rgb(2, 3, SIZE, SIZE), load_file(root / "aesthetic" / "head.safetensors")
    plain = transformers.CLIPModel.from_pretrained(root / "aesthetic").eval()
    x = plain.visual_projection(
        plain.vision_model(pixel_values=pixels_of(rgb)).pooler_output
    ).numpy()
    x = x / np.sqrt((x**2).sum(axis=1, keepdims=True))
    for layer in (0, 2, 4, 6, 7):
        x = x @ stored[f"layers.{layer}.weight"].numpy().T + stored[f"layers.{layer}.bias"].numpy()
    np.testing.assert_allclose(
        aesthetic.score(rgb, torch.zeros(1, 1)).numpy(), x[:, 0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("side", [24, 32, 50])
@pytest.mark.parametrize("kind", ["pickscore", "dino", "aesthetic"])
def test_gradient_into_the_picture(
    kind: str, side: int, clip: ClipTower, dino: DinoTower, aesthetic: Aesthetic
) -> None:
    judge, target = (
        ClipText(clip, clip.scale),
        image_target(random_rgb(1, 3, SIZE, SIZE, seed=3), dino),
    )

    def value(x: torch.Tensor) -> torch.Tensor:
        if kind == "pickscore":
            return judge.score(x, judge.target(PROMPTS))
        return (
            image_image(x, target, dino)
            if kind == "dino"
            else aesthetic.score(x, torch.zeros(1, 1))
        )

    rgb = random_rgb(2, 3, side, side).requires_grad_()
    before = value(rgb)
    (gradient,) = torch.autograd.grad(before.sum(), rgb)
    assert before.shape == (2,) and bool(torch.isfinite(gradient).all())
    assert float((gradient != 0).float().mean()) > 0.99
    step = 0.01 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    assert bool((value(rgb + step) > before).all())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip", "dino"])
def test_the_size_of_the_picture_hardly_counts(kind: str, clip: ClipTower, dino: DinoTower) -> None:
    tower = clip if kind == "clip" else dino
    coarse = random_rgb(1, 3, 4, 4)
    at = [
        tower.image(F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False))
        for side in (32, 64, 128, 256)
    ]
    assert min(float((feature * at[0]).sum()) for feature in at) > 0.999
    assert float((tower.image(random_rgb(1, 3, 32, 32, seed=4)) * at[0]).sum()) < 0.99


@torch.no_grad()
def test_the_looks_of_a_picture_hardly_depend_on_its_size(aesthetic: Aesthetic) -> None:
    coarse, nothing = random_rgb(1, 3, 4, 4), torch.zeros(1, 1)
    scores = [
        float(
            aesthetic.score(
                F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False), nothing
            )
        )
        for side in (32, 64, 128, 256)
    ]
    other = float(aesthetic.score(random_rgb(1, 3, 32, 32, seed=4), nothing))
    assert max(scores) - min(scores) < 0.1 * abs(other - scores[0])


def test_hpsv2_is_open_clips_vit_h_14() -> None:
    """The folder's config builds the published architecture: names, shapes, parameter count."""
    ours = json.loads(dict(MODELS["hpsv2.1"].written)["open_clip_config.json"])["model_cfg"]
    assert ours == open_clip.get_model_config("ViT-H-14")
    with torch.device("meta"):
        model = open_clip.model.CLIP(ours["embed_dim"], ours["vision_cfg"], ours["text_cfg"])
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert sum(value.numel() for value in model.parameters()) == 986_109_441
    expected = {
        "logit_scale": (),
        "positional_embedding": (77, 1024),
        "text_projection": (1024, 1024),
        "token_embedding.weight": (49408, 1024),
        "visual.class_embedding": (1280,),
        "visual.positional_embedding": (257, 1280),
        "visual.proj": (1280, 1024),
        "visual.conv1.weight": (1280, 3, 14, 14),
    }
    for name, width in (("ln_final", 1024), ("visual.ln_pre", 1280), ("visual.ln_post", 1280)):
        expected |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for name, width, depth in (("visual.transformer", 1280, 32), ("transformer", 1024, 24)):
        for i in range(depth):
            expected |= open_clip_block(f"{name}.resblocks.{i}", width)
    assert shapes == expected


def open_clip_block(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one residual attention block in open_clip's naming, written out."""
    layers = {
        "ln_1": (width,),
        "ln_2": (width,),
        "attn.out_proj": (width, width),
        "mlp.c_fc": (4 * width, width),
        "mlp.c_proj": (width, 4 * width),
    }
    found = {f"{name}.{part}.weight": shape for part, shape in layers.items()}
    found |= {f"{name}.{part}.bias": shape[:1] for part, shape in layers.items()}
    return found | {
        f"{name}.attn.in_proj_weight": (3 * width, width),
        f"{name}.attn.in_proj_bias": (3 * width,),
    }


def test_an_open_clip_folder_as_published_has_no_tokenizer_of_its_own(
    root: Path, tmp_path: Path
) -> None:
    """HPSv2's and laion's folders have a config and weights; open_clip has the tokenizer.

    Weights in half precision are read too.
    """
    shutil.copytree(root / "clip", tmp_path / "hps")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "hps" / name).unlink()
    config = json.loads((tmp_path / "hps" / "open_clip_config.json").read_text())
    del config["model_cfg"]["text_cfg"]["hf_tokenizer_name"]
    config["model_cfg"]["text_cfg"] |= {"vocab_size": 49408, "context_length": 77}
    (tmp_path / "hps" / "open_clip_config.json").write_text(json.dumps(config))
    cfg = config["model_cfg"]
    model = open_clip.model.CLIP(cfg["embed_dim"], cfg["vision_cfg"], cfg["text_cfg"])
    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    save_file(state, tmp_path / "hps" / "open_clip_model.safetensors")
    judge = load_judges(rewards_of(root, text_model="hpsv2", hpsv2=str(tmp_path / "hps"))).text
    rgb = random_rgb(2, 3, 40, 40).requires_grad_()
    scores = judge.score(rgb, judge.target(PROMPTS))
    assert scores.dtype == torch.float32 and float(scores.detach().abs().max()) <= 1.0
    (gradient,) = torch.autograd.grad(scores.sum(), rgb)
    assert bool(torch.isfinite(gradient).all()) and float(gradient.abs().min()) > 0
    # By hand, as in HPSv2's code: unit features, their products, the diagonal.
    encoder = judge.encoder
    with torch.no_grad():
        features = [
            encoder.model.encode_image(encoder.preprocess(rgb)),
            encoder.model.encode_text(encoder.tokenizer(PROMPTS)),
        ]
    image, text = (value / value.norm(dim=-1, keepdim=True) for value in features)
    torch.testing.assert_close(scores, (image @ text.T).diagonal())
    larger = F.interpolate(
        smooth := random_rgb(1, 3, 4, 4), (96, 96), mode="bicubic", align_corners=False
    )
    smaller = F.interpolate(smooth, (32, 32), mode="bicubic", align_corners=False)
    near, far = (judge.score(x, judge.target(PROMPTS[:1])) for x in (larger, smaller))
    assert float((near - far).abs()) < 0.02
    # 77 tokens are read: a word each, and those of the start and the end.
    assert judge.fit("red " * 75) == ("red " * 75, "")
    assert judge.fit("red " * 77) == (" ".join(["red"] * 75), "red red")


def rewards_of(root: Path, **changes: object) -> object:
    config = Config().rewards
    config.clip, config.pickscore, config.dinov2 = (
        str(root / "clip"),
        str(root / "pickscore"),
        str(root / "dino"),
    )
    config.hpsv2, config.aesthetic_model = str(root / "clip"), str(root / "aesthetic")
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def test_the_config_chooses_the_models_and_nothing_else_is_read(root: Path) -> None:
    config = rewards_of(root, clip="/nowhere", text_model="pickscore", image_model="dinov2")
    judges = load_judges(config)
    assert (
        isinstance(judges, Judges)
        and isinstance(judges.image, DinoTower)
        and judges.aesthetic is None
    )
    assert judges.text.scale == pytest.approx(np.exp(3.0), rel=1e-5)
    assert judge_locations(config) == [str(root / "pickscore"), str(root / "dino")]
    config = rewards_of(
        root, text_model="hpsv2", image_model="clip", aesthetic=RewardConfig(weight=0.1)
    )
    judges = load_judges(config)
    assert judges.text.scale == 1.0 and judges.aesthetic is not None
    assert judge_locations(config) == [str(root / "clip"), str(root / "aesthetic")]
    shared = load_judges(rewards_of(root))
    assert shared.text.encoder is shared.image


def test_sd15_asks_for_imagereward_and_dino() -> None:
    config = load_config(None, [Path("configs/sd15.yaml").resolve()], [])
    assert judge_locations(config.rewards) == ["imagereward", "dinov2-base"]
    assert {
        config.prior.path,
        config.prior.ip_adapter,
        *judge_locations(config.rewards),
    } <= MODELS.keys()


@pytest.mark.parametrize(
    "missing", ["config.json", "model.safetensors", "preprocessor_config.json"]
)
def test_missing_files_are_one_line(missing: str, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "dino", tmp_path / "dino")
    (tmp_path / "dino" / missing).unlink()
    with pytest.raises(UserError, match="check rewards.dinov2") as caught:
        load_dino(str(tmp_path / "dino"))
    assert "\n" not in str(caught.value)


def test_a_pickle_in_the_place_of_weights_is_not_read(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "dino", tmp_path / "dino")
    torch.save(
        load_file(root / "dino" / "model.safetensors"), tmp_path / "dino" / "pytorch_model.bin"
    )
    (tmp_path / "dino" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="rewards.dinov2"):
        load_dino(str(tmp_path / "dino"))


def test_weights_of_another_model_are_refused_and_not_made_up(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "dino", tmp_path / "dino")
    state = load_file(root / "dino" / "model.safetensors")
    lacking = {key: value for key, value in state.items() if key != "layernorm.bias"}
    save_file(lacking, tmp_path / "dino" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="layernorm.bias"):
        load_dino(str(tmp_path / "dino"))


def test_a_head_of_another_model_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "aesthetic", tmp_path / "aesthetic")
    save_file(
        {"layers.0.weight": torch.zeros(1024, 768)}, tmp_path / "aesthetic" / "head.safetensors"
    )
    with pytest.raises(UserError, match="head.safetensors"):
        load_aesthetic(str(tmp_path / "aesthetic"))
    (tmp_path / "aesthetic" / "head.safetensors").unlink()
    with pytest.raises(UserError, match="head.safetensors is missing"):
        load_aesthetic(str(tmp_path / "aesthetic"))


def test_hub_ids_are_not_for_rewards() -> None:
    with pytest.raises(UserError, match="not a hub id"):
        load_dino("facebook/dinov2-base")


def test_an_unknown_text_model_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match='rewards.text_model is "blip2": use "clip"'):
        load_judges(rewards_of(root, text_model="blip2"))
