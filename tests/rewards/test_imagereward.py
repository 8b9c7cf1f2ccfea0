"""ImageReward: the network against transformers' BLIP, score by hand, layout, gradients, errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_rewards import BERT_WORDS, SIZES, published_state, write_imagereward
from vp3d.diffusion.image_prompt import CLIP_MEAN, CLIP_STD
from vp3d.errors import UserError
from vp3d.rewards.blip import Blip, BlipSizes
from vp3d.rewards.imagereward import ImageReward, ImageRewardNet, load_imagereward
from vp3d.system import torch_compat  # noqa: F401  (before transformers, which imports torchvision)

import transformers  # isort: skip

PROMPTS = ["a red sphere on a blue cube, front view", "a white cube"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_imagereward(tmp_path_factory.mktemp("imagereward"))


@pytest.fixture(scope="module")
def model(folder: Path) -> ImageReward:
    return load_imagereward(str(folder))


def random_rgb(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def reference_vision(blip: Blip) -> transformers.BlipVisionModel:
    """transformers' BLIP vision tower with our weights, under its own names."""
    config = transformers.BlipVisionConfig(
        hidden_size=SIZES.vision_width,
        intermediate_size=4 * SIZES.vision_width,
        num_hidden_layers=SIZES.vision_layers,
        num_attention_heads=SIZES.vision_width // 64,
        image_size=SIZES.image_size,
        patch_size=SIZES.patch_size,
        layer_norm_eps=1e-6,
    )
    theirs = {}
    for key, value in blip.visual_encoder.state_dict().items():
        name = (
            key.replace("blocks.", "encoder.layers.")
            .replace("norm1", "layer_norm1")
            .replace("norm2", "layer_norm2")
        )
        name = name.replace("attn.qkv", "self_attn.qkv").replace(
            "attn.proj", "self_attn.projection"
        )
        name = name.replace("patch_embed.proj", "embeddings.patch_embedding")
        name = {
            "cls_token": "embeddings.class_embedding",
            "pos_embed": "embeddings.position_embedding",
            "norm.weight": "post_layernorm.weight",
            "norm.bias": "post_layernorm.bias",
        }.get(name, name)
        theirs[name] = value
    tower = transformers.BlipVisionModel(config).eval()
    tower.load_state_dict(theirs)
    return tower


def reference_text(blip: Blip) -> torch.nn.Module:
    """transformers' BLIP text model; its names are the published ones."""
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    config = transformers.BlipTextConfig(
        vocab_size=SIZES.vocabulary,
        hidden_size=SIZES.text_width,
        encoder_hidden_size=SIZES.vision_width,
        intermediate_size=SIZES.text_hidden,
        num_hidden_layers=SIZES.text_layers,
        num_attention_heads=SIZES.text_width // 64,
        max_position_embeddings=SIZES.positions,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
        is_decoder=True,  # this builds the cross-attention; the masks below are those of an encoder
    )
    text = BlipTextModel(config, add_pooling_layer=False).eval()
    text.load_state_dict(blip.text_encoder.state_dict())
    return text


@torch.no_grad()
def test_backbone_agrees_with_transformers(model: ImageReward) -> None:
    blip, ids = model.net.blip, model.target(PROMPTS)
    pixels = random_rgb(2, 3, 32, 32) - 0.5
    vision, text = reference_vision(blip), reference_text(blip)
    patches = vision(pixels).last_hidden_state
    torch.testing.assert_close(blip.visual_encoder(pixels), patches, rtol=1e-4, atol=1e-5)
    theirs = text(
        ids,
        attention_mask=(ids != 0).long(),
        encoder_hidden_states=patches,
        encoder_attention_mask=torch.ones(patches.shape[:-1], dtype=torch.long),
    )
    torch.testing.assert_close(
        blip(pixels, ids, ids != 0), theirs.last_hidden_state[:, 0], rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_score_by_hand(model: ImageReward, folder: Path) -> None:
    """Normalise, backbone, five linear layers in a row, then the published mean and deviation."""
    rgb, ids = random_rgb(2, 3, 32, 32), model.target(PROMPTS)
    pixels = (rgb - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
    features, stored = (
        model.net.blip(pixels, ids, ids != 0),
        load_file(folder / "model.safetensors"),
    )
    for layer in (0, 2, 4, 6, 7):
        features = (
            features @ stored[f"mlp.layers.{layer}.weight"].T + stored[f"mlp.layers.{layer}.bias"]
        )
    expected = (features[:, 0] - 0.16717362830052426) / 1.0333394966054072
    torch.testing.assert_close(model.score(rgb, ids), expected)


def test_tokens_are_berts(model: ImageReward) -> None:
    ids = model.target(["A red, BLUE zebra"])
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert ids.shape == (1, 35) and ids[0, 0] == words.index("[CLS]")
    assert ids[0, 5].item() == words.index("[UNK]") and ids[0, 6].item() == words.index("[SEP]")
    assert bool((ids[0, 7:] == 0).all())


def test_tokens_agree_with_transformers(model: ImageReward, folder: Path) -> None:
    """Case, accents and punctuation as BERT's own tokenizer treats them."""
    words = transformers.BertTokenizer(
        vocab={word: i for i, word in enumerate(BERT_WORDS)}, do_lower_case=True
    )
    texts = ["A réd sphere,on a BLUE cube", "white zebra  , front\tview", ""]
    theirs = words(
        texts, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    ).input_ids
    assert torch.equal(model.target(texts), theirs)


def test_a_long_text_is_cut_as_transformers_cut_it(model: ImageReward) -> None:
    words = transformers.BertTokenizer(
        vocab={word: i for i, word in enumerate(BERT_WORDS)}, do_lower_case=True
    )
    texts = ["a red sphere " * 20, "a red sphere " * 11, "a red"]  # 62, 35 and 4 tokens
    theirs = words(
        texts, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    ).input_ids
    assert torch.equal(model.target(texts, cut=True), theirs)


@torch.no_grad()
def test_padding_does_not_count(model: ImageReward) -> None:
    rgb, ids = random_rgb(1, 3, 32, 32), model.target(PROMPTS[1:])
    length = int((ids != 0).sum())
    torch.testing.assert_close(
        model.score(rgb, ids), model.score(rgb, ids[:, :length]), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_score_depends_on_picture_and_text(model: ImageReward) -> None:
    rgb, ids = random_rgb(2, 3, 32, 32), model.target(PROMPTS)
    both = [model.score(rgb, ids[i : i + 1]) for i in range(2)]
    assert (
        float((both[0] - both[1]).abs().min()) > 1e-4
        and float((both[0][0] - both[0][1]).abs()) > 1e-4
    )
    torch.testing.assert_close(model.score(rgb, ids), torch.stack([both[0][0], both[1][1]]))


def test_gradient_into_the_picture(model: ImageReward) -> None:
    for side in (24, 32, 56):
        rgb = random_rgb(2, 3, side, side).requires_grad_()
        before = model.score(rgb, model.target(PROMPTS))
        (gradient,) = torch.autograd.grad(before.sum(), rgb)
        assert bool(torch.isfinite(gradient).all()) and float((gradient != 0).float().mean()) > 0.99
        step = 0.01 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
        assert bool((model.score(rgb + step, model.target(PROMPTS)) > before).all())
    assert not any(p.requires_grad for p in model.net.parameters())


@torch.no_grad()
def test_the_size_of_the_picture_hardly_counts(model: ImageReward) -> None:
    """A smooth picture rendered larger scores the same; another picture does not."""
    coarse, target = random_rgb(1, 3, 4, 4), model.target(PROMPTS[:1])
    scores = [
        float(
            model.score(
                F.interpolate(coarse, (side, side), mode="bicubic", align_corners=False), target
            )
        )
        for side in (32, 64, 128, 256)
    ]
    other = float(model.score(random_rgb(1, 3, 32, 32, seed=5), target))
    assert max(scores) - min(scores) < 0.05 * abs(other - scores[0])


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of `ImageReward.pt`, written out: ViT-L and BERT-base."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outside: int, inside: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outside, inside), (outside,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width,), (width,)

    vision, text = "blip.visual_encoder", "blip.text_encoder"
    shapes[f"{vision}.cls_token"], shapes[f"{vision}.pos_embed"] = (1, 1, 1024), (1, 197, 1024)
    shapes[f"{vision}.patch_embed.proj.weight"], shapes[f"{vision}.patch_embed.proj.bias"] = (
        (1024, 3, 16, 16),
        (1024,),
    )
    norm(f"{vision}.norm", 1024)
    for i in range(24):
        block = f"{vision}.blocks.{i}"
        norm(f"{block}.norm1", 1024)
        norm(f"{block}.norm2", 1024)
        linear(f"{block}.attn.qkv", 3072, 1024)
        linear(f"{block}.attn.proj", 1024, 1024)
        linear(f"{block}.mlp.fc1", 4096, 1024)
        linear(f"{block}.mlp.fc2", 1024, 4096)
    shapes[f"{text}.embeddings.word_embeddings.weight"] = (30524, 768)
    shapes[f"{text}.embeddings.position_embeddings.weight"] = (512, 768)
    norm(f"{text}.embeddings.LayerNorm", 768)
    for i in range(12):
        layer = f"{text}.encoder.layer.{i}"
        for kind, source in (("attention", 768), ("crossattention", 1024)):
            linear(f"{layer}.{kind}.self.query", 768, 768)
            linear(f"{layer}.{kind}.self.key", 768, source)
            linear(f"{layer}.{kind}.self.value", 768, source)
            linear(f"{layer}.{kind}.output.dense", 768, 768)
            norm(f"{layer}.{kind}.output.LayerNorm", 768)
        linear(f"{layer}.intermediate.dense", 3072, 768)
        linear(f"{layer}.output.dense", 768, 3072)
        norm(f"{layer}.output.LayerNorm", 768)
    for layer, (outside, inside) in zip(
        (0, 2, 4, 6, 7), [(1024, 768), (128, 1024), (64, 128), (16, 64), (1, 16)], strict=True
    ):
        linear(f"mlp.layers.{layer}", outside, inside)
    return shapes


def test_the_full_size_model_has_the_published_layout() -> None:
    shapes = published_shapes()
    with torch.device("meta"):
        net = ImageRewardNet(BlipSizes())
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == shapes
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    # The published file of 1.79 GB also has two projections and indices.
    assert round(4 * count / 1e9, 2) == 1.78
    assert (
        BlipSizes.of({key.removeprefix("blip."): shape for key, shape in shapes.items()})
        == BlipSizes()
    )


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_imagereward(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_checkpoints_and_damage_are_refused(folder: Path, tmp_path: Path) -> None:
    state = published_state()
    assert "model.safetensors is missing" in refusal(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x02}")
    assert "vocab.txt is missing" in refusal(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    assert "is not ImageReward" in refusal(tmp_path)
    save_file({"visual.conv1.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert "is not ImageReward" in refusal(tmp_path)
    lacking = {key: value for key, value in state.items() if key != "mlp.layers.7.bias"}
    save_file(lacking, tmp_path / "model.safetensors")
    assert "mlp.layers.7.bias" in refusal(tmp_path)
    save_file(state | {"head.extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert "head.extra" in refusal(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[PAD]\n[UNK]\n[CLS]\n",
        b"a\n[PAD]\n[UNK]\n[CLS]\n[SEP]\n",
        b"\xff\xfe" * 20,
        b"<html>",
    ],
)
def test_another_vocabulary_is_refused(data: bytes, folder: Path, tmp_path: Path) -> None:
    """Without the check, some raise a TypeError or bare Exception, and one gives wrong scores."""
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "vocab.txt").write_bytes(data)
    assert "is not ImageReward" in refusal(tmp_path / "copy")


def test_a_prompt_that_is_too_long_loses_words_before_its_view_words(model: ImageReward) -> None:
    prompt = "a red " * 20 + "cube, back view"
    kept, cut = model.fit(prompt)
    assert kept.endswith(", back view") and cut.endswith("cube") and kept.startswith("a red a red")
    assert torch.equal(model.target([prompt]), model.target([kept]))
    assert not torch.equal(model.target([prompt]), model.target([prompt], cut=True))
    assert model.fit("a red cube, back view") == ("a red cube, back view", "")


def test_a_name_that_is_not_fetched_gives_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VP3D_MODELS", str(tmp_path))
    with pytest.raises(UserError, match="run: python launch.py models fetch imagereward$"):
        load_imagereward("imagereward")
