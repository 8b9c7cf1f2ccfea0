"""The loaders read no file that the catalogue does not list.

Each model is written in the layout of its publisher, small, and fetched by its own entry of the
catalogue (without the hashes), so that a file that is not listed is missing when it is loaded.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.diffusion.test_debias import DIRECTIONS, WORDS, save_bert
from tests.helpers.tiny_models import (
    RESOLUTION,
    autoencoder,
    save_ip_adapter,
    save_pipeline,
    tokenizer,
)
from tests.helpers.tiny_rewards import (
    published_state,
    write_aesthetic,
    write_clip_tower,
    write_dino,
    write_vocabulary,
)
from vp3d.config.loader import load_config
from vp3d.config.paths import locate
from vp3d.config.schema import PriorConfig
from vp3d.diffusion.debias import debiased_prompts
from vp3d.diffusion.load import load_prior
from vp3d.diffusion.prior import Prior
from vp3d.rewards.aesthetic import load_aesthetic
from vp3d.rewards.imagereward import load_imagereward
from vp3d.rewards.towers import load_clip_tower, load_dino
from vp3d.weights import fetch
from vp3d.weights.catalogue import MODELS

RGB = torch.rand(1, 3, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(0))
ADAPTERS = {"sd": "ip-adapter-sd15", "sdxl": "ip-adapter-sdxl"}
PIPELINES = {"sd": "sd15", "sdxl": "sdxl"}


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of published models; the catalogue has no hashes, as small models have others."""
    monkeypatch.setenv("VP3D_MODELS", str(tmp_path / "models"))
    for name, model in MODELS.items():
        files = [
            tuple(dataclasses.replace(file, sha256="", size=0) for file in part.files)
            for part in model.parts
        ]
        parts = tuple(
            dataclasses.replace(part, sources=(), files=plain)
            for part, plain in zip(model.parts, files, strict=True)
        )
        monkeypatch.setitem(MODELS, name, dataclasses.replace(model, parts=parts))
    return tmp_path / "store"


def as_published(folder: Path) -> None:
    """CLIP's tokenizer as in the repositories of 2022: words and merges, no tokenizer.json."""
    words = tokenizer().get_vocab()
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    end = {
        "content": "<|endoftext|>",
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }
    start = {**end, "content": "<|startoftext|>"}
    special = {"bos_token": start, "eos_token": end, "pad_token": "<|endoftext|>", "unk_token": end}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    typed = {
        key: {"__type": "AddedToken", **value}
        for key, value in special.items()
        if isinstance(value, dict)
    }
    about = {
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
        "pad_token": "<|endoftext|>",
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about | typed | {"errors": "replace"}))


def write_pipeline(folder: Path, kind: str) -> Path:
    """A pipeline of random weights with the names of files in the publisher's repository."""
    save_pipeline(folder, vae="kl", kind=kind)
    for name in ("tokenizer", "tokenizer_2"):
        if (folder / name).is_dir():
            as_published(folder / name)
    if kind == "sd":
        (folder / "feature_extractor").mkdir()
        about = {
            "feature_extractor_type": "CLIPFeatureExtractor",
            "crop_size": 224,
            "size": 224,
            "resample": 3,
        }
        mean = {
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        }
        (folder / "feature_extractor" / "preprocessor_config.json").write_text(
            json.dumps(about | mean)
        )
        index = json.loads((folder / "model_index.json").read_text())
        index["feature_extractor"] = ["transformers", "CLIPFeatureExtractor"]
        index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
        (folder / "model_index.json").write_text(json.dumps(index))
    else:  # the half precision is fetched; the single precision next to it is another file
        for file in folder.rglob("*.safetensors"):
            half = {name: value.half() for name, value in load_file(file).items()}
            save_file(
                half,
                file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")),
                {"format": "pt"},
            )
            file.write_bytes(b"single precision")
    return folder


def write_adapters(folder: Path, kind: str) -> Path:
    """Base and plus next to each other as in h94/IP-Adapter."""
    place, names = {
        "sd": ("models", ("ip-adapter_sd15", "ip-adapter-plus_sd15")),
        "sdxl": ("sdxl_models", ("ip-adapter_sdxl_vit-h", "ip-adapter-plus_sdxl_vit-h")),
    }[kind]
    (folder / place).mkdir(parents=True, exist_ok=True)
    for plus, name in enumerate(names):
        save_ip_adapter(folder, kind=kind, plus=bool(plus))
        (folder / "models" / "ip-adapter_toybox.safetensors").rename(
            folder / place / f"{name}.safetensors"
        )
    return folder


def fetched(store: Path, *names: str) -> None:
    """Fetch them from the store; their folders contain only what the catalogue lists."""
    for name in names:
        folder = fetch.fetch(name, [str(store)])
        listed = (
            {file.path for file in MODELS[name].files}
            | {path for path, _ in MODELS[name].written}
            | {"SOURCE.json"}
        )
        assert {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        } == listed


def small(name: str) -> PriorConfig:
    """The prior of a configuration that we ship, at the size of the tiny models."""
    config = load_config(
        None,
        [locate(f"configs/{name}.yaml")],
        [f"prior.resolution={RESOLUTION}", "prior.dtype=float32"],
    )
    return config.prior


def encoded(prior: Prior) -> torch.Tensor:
    """The embeddings of two prompts, [2, 77, C] (any range)."""
    return prior.encode_text(["a red cube", "x, y"]).tokens


@pytest.mark.parametrize("config", ["sd15", "sd15-plus", "sd15-low-vram", "sdxl"])
def test_the_priors_of_our_configurations_load_from_what_is_fetched(
    config: str, store: Path, tmp_path: Path
) -> None:
    kind = "sdxl" if config == "sdxl" else "sd"
    write_pipeline(store / PIPELINES[kind], kind)
    write_adapters(store / ADAPTERS[kind], kind)
    autoencoder("tiny").save_pretrained(store / "taesd")
    prior_config = small(config)
    fetched(
        store,
        *dict.fromkeys(
            filter(None, (prior_config.path, prior_config.ip_adapter, prior_config.vae))
        ),
    )
    prior = load_prior(prior_config)
    image = prior.embed_visual_prompt(RGB)
    assert image.shape[1] == (6 if config == "sd15-plus" else 4)
    drawn = prior.sample(["a red cube"], "", 1, 2.0, torch.Generator().manual_seed(0), image, 0.5)
    assert drawn.shape == RGB.shape and drawn.isfinite().all() and drawn.std() > 0
    save_pipeline(tmp_path / "today", vae="kl", kind=kind)  # the same weights with a tokenizer.json
    plain = PriorConfig(
        str(tmp_path / "today"), "", manifest="", vocabulary="", resolution=RESOLUTION
    )
    torch.testing.assert_close(
        encoded(prior), encoded(load_prior(plain)), atol=2e-2 if kind == "sdxl" else 1e-6, rtol=1e-2
    )


def test_the_judges_load_from_what_is_fetched(store: Path) -> None:
    (store / "imagereward" / "ImageReward").mkdir(parents=True)
    save_file(published_state(), store / "imagereward" / "ImageReward" / "ImageReward.safetensors")
    write_vocabulary(store / "imagereward" / "vocab.txt")
    write_dino(store / "dinov2-base")
    write_aesthetic(store / "aesthetic")
    words = write_clip_tower(store / "pickscore") / "words"
    words.mkdir()
    as_published(words)
    for file in words.iterdir():
        file.replace(store / "pickscore" / file.name)
    words.rmdir()
    names = ("imagereward", "dinov2-base", "aesthetic", "pickscore")
    fetched(store, *names)
    reward, dino, aesthetic = (
        load_imagereward(names[0]),
        load_dino(names[1]),
        load_aesthetic(names[2]),
    )
    pickscore = load_clip_tower(names[3], "rewards.pickscore")
    scores = [
        reward.score(RGB, reward.target(["a red cube"])),
        aesthetic.score(RGB, torch.zeros(1, 1)),
    ]
    scores += [dino.image(RGB), pickscore.image(RGB), pickscore.text(["a red cube"])]
    assert all(score.isfinite().all() and score.abs().sum() > 0 for score in scores)


def test_the_language_model_loads_from_what_is_fetched(store: Path) -> None:
    words = ["a", "smiling", "dog"]
    written = save_bert(store / "bert-base", list(dict.fromkeys([*WORDS, *DIRECTIONS, *words])))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # The publisher's repository has the vocabulary too.
    (written / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    fetched(store, "bert-base")
    assert debiased_prompts("a smiling dog", "bert-base") == debiased_prompts(
        "a smiling dog", str(written)
    )
