"""A tiny random open_clip model written as a local-dir folder, tokenizer included.

For tests only.
"""

from __future__ import annotations

import json
from pathlib import Path

import vp3d.system.torch_compat  # noqa: F401  (before open_clip, which imports torchvision)

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = "a an red blue white sphere cube on with front back view , from above".split()
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]


def write_tiny_clip(folder: Path, size: int = 32, seed: int = 0) -> Path:
    """Write config, tokenizer and random safetensors weights to `folder`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {word: n for n, word in enumerate(["<pad>", "<unk>", "<start>", *WORDS, "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<start>", vocab["<start>"]), ("<end>", vocab["<end>"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=ends
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "bos_token": "<start>",
        "eos_token": "<end>",
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names})
    )
    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": size,
            "layers": 2,
            "width": 32,
            "patch_size": 8,
            "head_width": 16,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": len(vocab),
            "width": 32,
            "heads": 2,
            "layers": 2,
            "hf_tokenizer_name": "local",
        },
    }
    preprocess_cfg = {"mean": MEAN, "std": STD, "interpolation": "bicubic"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg})
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.model.CLIP(
            model_cfg["embed_dim"], model_cfg["vision_cfg"], model_cfg["text_cfg"]
        )
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder
