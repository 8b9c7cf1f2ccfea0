"""Nothing in a folder of weights chooses code: no class by name, no remote code, no question."""

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_clip import write_tiny_clip
from tests.helpers.tiny_models import RESOLUTION, save_pipeline
from vp3d.config.schema import PriorConfig
from vp3d.diffusion.load import PART_CLASSES, check_classes, load_prior
from vp3d.errors import UserError
from vp3d.rewards.encoders import load_clip

ROOT = Path(__file__).resolve().parents[2]
NOT_CHANGED = ("vocab.json", "model_index.json", "tokenizer.json", "open_clip_config.json")
AUTO_CLASSES = (
    *("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM"),
    "AutoImageProcessor",
)
AUTO_MAP: dict[str, Any] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
AUTO_MAP |= dict.fromkeys(AUTO_CLASSES, "evil.Evil")


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the code in a folder would write; someone answers every question with y."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    return tmp_path / "ran"


def plant(folder: Path, trap: Path) -> None:
    """Put code into every folder below `folder`, and point every JSON file to it."""
    code = f"open({str(trap)!r}, 'w').close()\nclass Evil: pass\n"
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in ("evil", "modeling", "pipeline", "custom_generate", path.name):
            (path / f"{name}.py").write_text(code)
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and path.name not in NOT_CHANGED:
            path.write_text(json.dumps(content | {"auto_map": AUTO_MAP, "trust_remote_code": True}))


def change(path: Path, **values: Any) -> None:
    """Change keys of a JSON file."""
    text = json.dumps(json.loads(path.read_text(encoding="utf-8")) | values)
    path.write_text(text, encoding="utf-8")


def settings(folder: Path) -> PriorConfig:
    """A prior without anything but its pipeline."""
    return PriorConfig(
        path=str(folder),
        ip_adapter="",
        manifest="",
        vocabulary="",
        resolution=RESOLUTION,
        dtype="float32",
    )


def refused(folder: Path) -> str:
    """The message of a prior that is not loaded: one line."""
    with pytest.raises(UserError) as caught:
        load_prior(settings(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_planted_code_is_not_run_by_a_pipeline_that_loads(tmp_path: Path, trap: Path) -> None:
    save_pipeline(tmp_path / "p")
    plant(tmp_path / "p", trap)
    assert load_prior(settings(tmp_path / "p")).resolution == RESOLUTION
    assert not trap.exists()


@pytest.mark.parametrize(
    "part, value",
    [
        ("text_encoder", ["transformers", "AutoModel"]),
        ("text_encoder", ["transformers", "AutoModelForCausalLM"]),
        ("text_encoder", ["transformers", "pipeline"]),
        ("text_encoder", ["transformers", "T5EncoderModel"]),
        ("text_encoder", ["evil", "CLIPTextModel"]),
        ("text_encoder", ["os", "system"]),
        ("text_encoder", ["diffusers", "CLIPTextModel"]),
        ("text_encoder_2", ["transformers", "AutoModel"]),
        ("tokenizer", ["transformers", "AutoTokenizer"]),
        ("tokenizer", ["evil", "Evil"]),
        ("tokenizer", ["transformers", "T5Tokenizer"]),
        ("feature_extractor", ["transformers", "AutoImageProcessor"]),
        ("feature_extractor", ["transformers", "AutoProcessor"]),
        ("image_encoder", ["transformers", "AutoModel"]),
        ("scheduler", ["evil", "Evil"]),
        ("scheduler", ["diffusers", "DiffusionPipeline"]),
        ("scheduler", ["scheduling_evil", "DDIMScheduler"]),
        ("unet", ["evil", "UNet2DConditionModel"]),
        ("unet", ["diffusers", "AutoModel"]),
        ("vae", ["diffusers", "AutoModel"]),
        ("vae", ["evil", "AutoencoderTiny"]),
        ("safety_checker", ["evil", "StableDiffusionSafetyChecker"]),
        ("helper", ["evil", "Evil"]),
        ("helper", ["subprocess", "Popen"]),
        ("unet", ["diffusers", None]),
        ("unet", [None, "UNet2DConditionModel"]),
        ("unet", ["diffusers", ["UNet2DConditionModel"]]),
        ("unet", ["diffusers"]),
        ("unet", ["diffusers", "UNet2DConditionModel", "evil"]),
    ],
)
def test_a_class_that_is_not_in_the_list_is_refused(
    part: str, value: list[Any], tmp_path: Path, trap: Path
) -> None:
    save_pipeline(tmp_path / "p")
    change(tmp_path / "p" / "model_index.json", **{part: value})
    plant(tmp_path / "p", trap)
    message = refused(tmp_path / "p")
    assert not trap.exists()
    assert part in message and "model_index.json" in message


@pytest.mark.parametrize(
    "kind",
    ["Evil", "evil.Evil", ["evil", "Evil"], ["evil", "StableDiffusionPipeline"], {}, None, 1, ""],
)
def test_a_pipeline_of_another_class_is_refused(kind: Any, tmp_path: Path, trap: Path) -> None:
    save_pipeline(tmp_path / "p")
    change(tmp_path / "p" / "model_index.json", _class_name=kind)
    plant(tmp_path / "p", trap)
    assert "use a StableDiffusionPipeline" in refused(tmp_path / "p")
    assert not trap.exists()


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["owner/kernel", "owner/kernel@main:f", "flash_attention_9", 1])
def test_a_kernel_of_the_hub_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    save_pipeline(tmp_path / "p")
    change(tmp_path / "p" / "text_encoder" / "config.json", **{name: value})
    assert f"asks for {name}" in refused(tmp_path / "p")


def test_the_published_indexes_pass() -> None:
    sd = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    assert check_classes(sd, "sd15") == "StableDiffusionPipeline"
    sdxl = sd | {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "image_encoder": [None, None],
    }
    del sdxl["safety_checker"]
    assert check_classes(sdxl, "sdxl") == "StableDiffusionXLPipeline"
    assert not any(
        name.startswith("Auto")
        for names in PART_CLASSES.values()
        for name in names
        if not name.startswith("Autoencoder")
    )


def test_planted_code_is_not_run_by_a_clip_that_loads(tmp_path: Path, trap: Path) -> None:
    folder = write_tiny_clip(tmp_path / "clip")
    plant(folder, trap)
    load_clip(str(folder))
    assert not trap.exists()


@pytest.mark.parametrize(
    "group, key, value",
    [
        ("text_cfg", "tokenizer_kwargs", {"trust_remote_code": True}),
        ("text_cfg", "hf_model_name", "./evil"),
        ("text_cfg", "hf_model_name", "owner/evil"),
        ("vision_cfg", "timm_model_name", "hf-hub:owner/evil"),
        ("vision_cfg", "timm_model_name", "resnet18"),
    ],
)
def test_an_open_clip_config_that_names_code_is_refused(
    group: str, key: str, value: Any, tmp_path: Path, trap: Path
) -> None:
    folder = write_tiny_clip(tmp_path / "clip")
    path = folder / "open_clip_config.json"
    content = json.loads(path.read_text())
    content["model_cfg"][group][key] = value
    path.write_text(json.dumps(content))
    plant(folder, trap)
    with pytest.raises(UserError, match=f"{group}.{key}") as caught:
        load_clip(str(folder))
    assert "\n" not in str(caught.value) and not trap.exists()


def test_the_trap_works(tmp_path: Path, trap: Path) -> None:
    """What is planted does run where someone lets it, so the tests above can fail."""
    folder = write_tiny_clip(tmp_path / "clip")
    plant(folder, trap)
    code = (
        "import sys, transformers\n"
        "transformers.AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)"
    )
    home = {**os.environ, "HF_HOME": str(tmp_path / "hub")}  # where transformers copies the code
    subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, env=home)
    assert trap.exists()


def test_every_call_refuses_remote_code() -> None:
    """Each `from_pretrained` of transformers gets trust_remote_code=False."""
    found = 0
    for path in [*(ROOT / "vp3d").rglob("*.py"), *(ROOT / "integrations").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if not is_call or node.func.attr != "from_pretrained":
                continue
            found += 1
            call = ast.unparse(node)
            # diffusers' models have no such code
            if any(kind in call for kind in ("Autoencoder", "AUTOENCODERS", "UNet2D")):
                continue
            spread = [ast.unparse(item.value) for item in node.keywords if item.arg is None]
            assert "trust_remote_code=False" in call or (
                spread and '"trust_remote_code": False' in text
            ), f"{path.name}: {call}"
    assert found >= 6
