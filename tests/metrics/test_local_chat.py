"""Judges of the hallucination score from a folder: a tiny chat model, and feature towers.

The chat model is a real LLaVA of transformers with random weights, so it answers rubbish. With its
last norm at 0 all words are equally likely and the first of the vocabulary is taken: that word is a
valid answer.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.tiny_rewards import write_clip_tower, write_dino
from vp3d.align.hallucination import distance
from vp3d.errors import UserError
from vp3d.metrics.hallucination_features import TokenFeatures
from vp3d.metrics.hallucination_folder import load_folder_judge
from vp3d.metrics.hallucination_judge import MultimodalJudge
from vp3d.metrics.local_chat import LocalChat, fingerprint
from vp3d.system import torch_compat  # noqa: F401  (before transformers, which imports torchvision)

import tokenizers  # isort: skip
import transformers  # isort: skip

ANSWER = '{"elements":[{"what":"ball","kind":"added","size":"large"}],"score":4}'
WORDS = [ANSWER, "[UNK]", "[PAD]", "<image>", "user", "grade", "A", "B"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
A = np.full((32, 32, 3), 90, np.uint8)
B = np.full((32, 32, 3), 180, np.uint8)


def write_llava(folder: Path, valid: bool) -> Path:
    """A LLaVA of two layers and eight words; `valid`: it answers `ANSWER`, else it rambles."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=16,
    )  # fmt: skip
    text = transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=4096, eos_token_id=0, pad_token_id=2,
        bos_token_id=1,
    )  # fmt: skip
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlavaForConditionalGeneration(config)
    if valid:
        model.model.language_model.norm.weight.data.zero_()
    model.generation_config.eos_token_id = 0
    model.save_pretrained(folder)
    plain = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="[UNK]", pad_token="[PAD]",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    pictures = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    transformers.LlavaProcessor(
        pictures, tokenizer, patch_size=16, vision_feature_select_strategy="default",
        chat_template=TEMPLATE, image_token="<image>", num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("llava"), valid=True)


def test_a_model_of_a_folder_grades_two_pictures(llava: Path, tmp_path: Path) -> None:
    chat = load_folder_judge(llava)
    assert isinstance(chat, LocalChat) and chat.model == f"{llava.name} {fingerprint(llava)}"
    found = MultimodalJudge(chat, tmp_path).score(A, B)
    assert (found.score, found.disagreement, found.reason) == (4.0, 0.0, "")
    assert found.elements[0].what == "ball" and len(list(tmp_path.iterdir())) == 2


def test_a_model_that_rambles_gives_a_reason_and_no_grade(tmp_path: Path) -> None:
    chat = LocalChat(write_llava(tmp_path / "random", valid=False))
    assert chat.ask("grade A", ()) != ANSWER
    found = MultimodalJudge(chat, tmp_path / "kept").score(A, B)
    assert found.score is None and "no valid answer in 3 tries" in found.reason
    assert not (tmp_path / "kept").exists()


def test_features_of_a_folder_are_at_no_distance_from_themselves(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(1, 3, 64, 64, generator=generator) for _ in range(2))
    for write, side in ((write_clip_tower, 4), (write_dino, 4)):
        features = load_folder_judge(write(tmp_path / write.__name__))
        assert isinstance(features, TokenFeatures)
        assert features.maps(a)[0][0].shape[-2:] == (side, side)
        torch.testing.assert_close(features.maps(a)[0][0].norm(dim=1), torch.ones(1, side, side))
        same, other = distance(a, a, features), distance(a, b, features)
        assert float(same.local.abs().max()) < 1e-5 and float(other.local) > 1e-3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "gpt2"}, "is of type gpt2"),
        ({"model_type": ["llava"]}, "is of type unknown"),
        ({}, "is of type unknown"),
        ({"model_type": "llava"}, "cannot load the judge"),
        ({"model_type": "dinov2"}, "--judge"),
        (None, "cannot load the judge"),
    ],
)
def test_a_folder_that_is_no_judge_is_refused_in_one_line(
    settings: dict | None, words: str, tmp_path: Path
) -> None:
    if settings is not None:
        (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=words) as caught:
        load_folder_judge(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_with_code_of_its_own_runs_none(llava: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "trap"
    shutil.copytree(llava, folder)
    (folder / "trap.py").write_text("raise SystemExit('ran')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageTextToText": "trap.Trap", "AutoConfig": "trap.Trap"}
    (folder / "config.json").write_text(json.dumps(config))
    assert MultimodalJudge(LocalChat(folder)).score(A, B).score == 4.0


def test_other_weights_of_the_same_size_have_another_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"before")
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    weights.write_bytes(b"after!")
    os.utime(weights, ns=(1, 1))  # clocks of files may be coarse
    assert fingerprint(tmp_path) != before
