"""Prompt debiasing by hand values, on a tiny random BERT against a second version, and what it
refuses to load.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vp3d.diffusion.debias import DIRECTIONS, debiased_prompts, view_probabilities, view_ratios
from vp3d.errors import UserError
from vp3d.prompts import all_views

import transformers  # isort: skip

WORDS = "this image is depicting a view of smiling dog with big eyes on red box , in".split()
PROMPT = "a smiling dog with big eyes, on a red box"


def save_bert(folder: Path, words: list[str], seed: int = 1, **kwargs: object) -> Path:
    """A BertForMaskedLM of width 16 with strong random weights, and its WordPiece tokenizer."""
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = transformers.BertConfig(
            vocab_size=len(vocab), hidden_size=16, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=64, initializer_range=0.3, pad_token_id=0,
        )  # fmt: skip
        transformers.BertForMaskedLM(config).save_pretrained(folder, **kwargs)
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(vocab)}).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"), [*WORDS, *DIRECTIONS])


def test_ratios_by_hand() -> None:
    whole = torch.tensor([0.2, 0.5, 0.1, 0.2])
    without = torch.tensor([[0.2, 0.1, 0.5, 0.2], [0.2, 0.5, 0.1, 0.2]])
    expected = torch.tensor([[1.0, 0.5 / 0.3, 0.1 / 0.3, 1.0], [1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(view_ratios(whole, without), expected)


@torch.no_grad()
def naive(folder: Path, prompt: str, ids: list[int]) -> dict[str, str]:
    """One sentence at a time, softmax over the whole vocabulary first, as threestudio does it.

    Words joined by spaces.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    views = tokenizer(" ".join(DIRECTIONS), return_tensors="pt").input_ids[0][1:5]

    def probe(words: list[str]) -> torch.Tensor:
        tokens = tokenizer(
            "This image is depicting a [MASK] view of " + " ".join(words), return_tensors="pt"
        )
        place = torch.where(tokens.input_ids == tokenizer.mask_token_id)[1]
        found = torch.softmax(model(**tokens).logits[0, place], dim=-1)[0, views]
        return found / found.sum()

    words = prompt.split(" ")
    kept = {direction: list(words) for direction in DIRECTIONS}
    for i in ids:
        ratio = probe(words) / torch.lerp(probe(words[:i] + words[i + 1 :]), probe(words), 0.5)
        for n, direction in enumerate(DIRECTIONS):
            if ratio[n] < 0.95:
                kept[direction][i] = ""
    return {
        direction: " ".join(word for word in found if word) for direction, found in kept.items()
    }


def test_every_word_may_go(bert: Path) -> None:
    expected, told = naive(bert, PROMPT, list(range(10))), debiased_prompts(PROMPT, str(bert))
    assert set(told) == set(all_views())
    sides = {"front": "front", "back": "back", "left": "side", "right": "side"}
    for view, prompt in told.items():
        assert prompt == (expected[sides[view.split()[0]]] or PROMPT)
    assert len(set(told.values())) == 3


def test_only_named_words_go_and_commas_do_not_hide_them(bert: Path) -> None:
    told = debiased_prompts(PROMPT + ", front view", str(bert), "eyes Smiling, tail")
    expected = naive(bert, PROMPT, [1, 5])
    assert (
        told["front view"] == expected["front"]
        and told["right side view from above"] == expected["side"]
    )
    assert all({"a", "dog", "red", "box"} <= set(prompt.split()) for prompt in told.values())
    assert set(debiased_prompts(PROMPT, str(bert), "tail").values()) == {PROMPT}


def test_a_prompt_is_never_emptied(tmp_path: Path) -> None:
    for seed in range(3):
        told = debiased_prompts(
            "dog", str(save_bert(tmp_path / str(seed), [*WORDS, *DIRECTIONS], seed))
        )
        assert set(told.values()) == {"dog"}


def test_probabilities_add_up_whatever_the_length(bert: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    model = transformers.BertForMaskedLM.from_pretrained(bert).eval()
    both = view_probabilities(tokenizer, model, ["a dog", PROMPT])
    torch.testing.assert_close(both.sum(1), torch.ones(2))
    torch.testing.assert_close(
        both[:1], view_probabilities(tokenizer, model, ["a dog"]), atol=1e-5, rtol=1e-4
    )


def test_the_names_in_the_published_file_are_read(bert: Path, tmp_path: Path) -> None:
    """bert-base-uncased still has TensorFlow's gamma and beta.

    A tensor it lacks is refused, not made up.
    """
    shutil.copytree(bert, tmp_path / "bert")
    file = tmp_path / "bert" / "model.safetensors"
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    state = load_file(file)
    for new, old in names.items():
        state = {name.replace(new, old): value for name, value in state.items()}
    assert any(name.endswith("gamma") for name in state)
    save_file(state, file, metadata={"format": "pt"})
    assert debiased_prompts(PROMPT, str(tmp_path / "bert")) == debiased_prompts(PROMPT, str(bert))
    del state["bert.embeddings.word_embeddings.weight"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="cannot load the language model .*word_embeddings.weight"):
        debiased_prompts(PROMPT, str(tmp_path / "bert"))


def test_code_in_the_folder_is_not_run_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_bert(tmp_path / "own", [*WORDS, *DIRECTIONS])
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nOwn = None\n")
    for name, entry in (
        ("config.json", "AutoModelForMaskedLM"),
        ("tokenizer_config.json", "AutoTokenizer"),
    ):
        about = json.loads((folder / name).read_text())
        about["auto_map"] = {"AutoConfig": "own.Own", entry: "own.Own"}
        (folder / name).write_text(
            json.dumps(about | {"model_type": "own", "tokenizer_class": "Own"})
        )
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(
        UserError, match="cannot load the language model .* it is a own, not one of bert"
    ):
        debiased_prompts(PROMPT, str(folder))
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_known_model_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_bert(tmp_path / "bert", [*WORDS, *DIRECTIONS])
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nOwn = None\n")
    for name in ("config.json", "tokenizer_config.json"):
        about = json.loads((folder / name).read_text())
        about["auto_map"] = {
            "AutoConfig": "own.Own",
            "AutoModelForMaskedLM": "own.Own",
            "AutoTokenizer": ["own.Own", "own.Own"],
        }
        (folder / name).write_text(json.dumps(about))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with suppress(UserError):  # it may be refused
        debiased_prompts(PROMPT, str(folder))
    assert not (tmp_path / "ran").exists()


def test_unfit_language_models_are_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="guidance.debias nowhere is not a folder"):
        debiased_prompts(PROMPT, "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot load the language model .* check guidance.debias"):
        debiased_prompts(PROMPT, str(tmp_path / "empty"))
    with pytest.raises(UserError, match="no single tokens for side, front, back, overhead"):
        debiased_prompts(PROMPT, str(save_bert(tmp_path / "few", [*WORDS, "front", "back"])))
    pickled = save_bert(tmp_path / "pickled", [*WORDS, *DIRECTIONS])
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load the language model"):
        debiased_prompts(PROMPT, str(pickled))
