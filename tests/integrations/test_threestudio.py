"""integrations/threestudio: its losses against VP3D's own, and its wrappers in threestudio.

The test in the real threestudio is skipped if it cannot be imported. The others use the stand-in of
tests/helpers/threestudio_stand_in. They load the folder as threestudio's launch.py loads a folder
of `custom/`: by path, under a name with a hyphen.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from tests.helpers.real_threestudio import import_or_reason
from tests.helpers.tiny_run import PROMPT, tiny_config
from vp3d.config.loader import load_config
from vp3d.config.paths import ROOT
from vp3d.config.schema import Config
from vp3d.config.threestudio import read_layers
from vp3d.diffusion.load import load_prior
from vp3d.errors import UserError
from vp3d.guidance.condition import build_condition
from vp3d.guidance.reward_term import reward_term
from vp3d.guidance.vp_sds import Guidance
from vp3d.rewards.build import load_judges
from vp3d.runs.folder import RunFolder
from vp3d.train.generators import make_generators
from vp3d.types import Camera
from vp3d.visual_prompt.make import load_visual_prompt

FOLDER = ROOT / "integrations" / "threestudio"
YAML = FOLDER / "configs" / "vp3d.yaml"
STAND_IN = Path(__file__).parents[1] / "helpers" / "threestudio_stand_in"
NAME = "threestudio-vp3d"
NAMES = {"vp3d-prompt-processor", "vp3d-guidance", "vp3d-rewards"}
BATCH = {
    "elevation": torch.tensor([0.0, 40.0]),
    "azimuth": torch.tensor([-170.0, 80.0]),
    "camera_distances": torch.tensor([1.5, 2.0]),
    "fovy": torch.tensor([0.7, 1.2]),
    "rays_o": torch.zeros(1),  # a batch has many keys that a guidance ignores
}
RGB = torch.rand(2, 24, 24, 3, generator=torch.Generator().manual_seed(2))


def load_folder(folder: Path) -> ModuleType:
    """As `load_custom_module` of threestudio's launch.py."""
    spec = importlib.util.spec_from_file_location(NAME, folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


def take_out() -> dict[str, ModuleType]:
    """Take threestudio, real or not, and our folder out of the modules that are imported."""
    names = [name for name in sys.modules if name.partition(".")[0] in ("threestudio", NAME)]
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture
def threestudio(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The stand-in, with our folder loaded from a link named as in threestudio's `custom/`."""
    before = take_out()
    monkeypatch.syspath_prepend(str(STAND_IN))
    load_folder(FOLDER)
    yield importlib.import_module("threestudio")
    take_out()
    sys.modules.update(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return tiny_config(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def settings(tiny: Config, tmp_path: Path) -> dict[str, object]:
    """VP3D's keys of a run on tiny models, as `system.guidance.vp3d` holds them."""
    tree = dataclasses.asdict(dataclasses.replace(tiny, output_dir=str(tmp_path / "runs")))
    return {
        name: tree[name]
        for name in ("prior", "rewards", "visual_prompt", "guidance", "image", "seed", "output_dir")
    }


def test_the_folder_registers_its_names(threestudio: ModuleType) -> None:
    assert set(threestudio.modules) == NAMES


def test_guidance_is_vp3d_to_the_last_bit(
    threestudio: ModuleType, settings: dict[str, object], tiny: Config
) -> None:
    """Losses and gradients of threestudio's call and of VP3D's own parts, at half of the run."""
    processor = threestudio.find("vp3d-prompt-processor")(
        {"prompt": PROMPT, "negative_prompt": "a blue cube"}
    )
    guidance = threestudio.find("vp3d-guidance")({"vp3d": settings, "max_steps": 40})
    guidance.do_update_step(0, 20)
    rgb = RGB.clone().requires_grad_()
    found = guidance(rgb, processor(), **BATCH, rgb_as_latents=False)
    assert set(found) == {
        "loss_sds",
        "loss_text_image",
        "loss_image_image",
        "reward_text_image",
        "reward_image_image",
    }
    assert all(value.numel() == 1 for value in found.values())

    (folder,) = Path(str(settings["output_dir"])).iterdir()
    run = RunFolder.open(folder)
    picture = load_visual_prompt(run).rgb
    assert (run.config().prompt, run.config().negative_prompt) == (PROMPT, "a blue cube")
    prior, judges = load_prior(tiny.prior), load_judges(tiny.rewards, tiny.prior.manifest)
    camera = Camera(
        BATCH["azimuth"],
        BATCH["elevation"],
        BATCH["camera_distances"],
        BATCH["fovy"] * 180 / math.pi,
    )
    views = RGB.clone().permute(0, 3, 1, 2).requires_grad_()
    condition = build_condition(prior, PROMPT, "a blue cube", picture)
    noise = make_generators(tiny.seed)["noise"]
    sds = Guidance(prior, tiny.guidance)(views, camera, condition, 0.5, noise)[0]["sds"]
    words = judges.text.target([f"{PROMPT}, back view", f"{PROMPT}, left side view from above"])
    azimuth, rewards = camera.azimuth_deg, tiny.rewards
    text, _ = reward_term(judges.text.score, views, words, azimuth, rewards.text_image, 0.5)
    torch.testing.assert_close(found["loss_sds"], sds, rtol=0, atol=0)
    torch.testing.assert_close(found["loss_text_image"], text, rtol=1e-5, atol=1e-6)
    theirs = torch.autograd.grad(found["loss_sds"] + found["loss_text_image"], rgb)[0].permute(
        0, 3, 1, 2
    )
    ours = torch.autograd.grad(sds + text, views)[0]
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6 * float(ours.abs().max()))
    assert float(theirs.abs().max()) > 0.0

    models = guidance.losses
    guidance.do_update_step(0, 60)  # past the end: progress stays 1, the models stay
    assert guidance.progress == 1.0 and torch.isfinite(
        guidance(RGB, processor(), **BATCH)["loss_sds"]
    )
    assert guidance.losses is models and len(list(folder.parent.iterdir())) == 1


def test_rewards_stand_beside_another_guidance(
    threestudio: ModuleType, settings: dict[str, object]
) -> None:
    """The other guidance gets the batch and the steps; no prior is loaded; weight 0 is off."""

    @threestudio.register("other")
    class Other(threestudio.utils.base.BaseObject):
        @dataclasses.dataclass
        class Config:
            scale: float = 1.0

        def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
            self.step = global_step

        def __call__(
            self,
            rgb,
            prompt_utils,
            elevation,
            azimuth,
            camera_distances,
            rgb_as_latents=False,
            **kwargs,
        ):
            return {"loss_sds": self.cfg.scale * rgb.mean(), "grad_norm": kwargs["fovy"].sum()}

    own = {key: settings[key] for key in ("rewards", "image", "seed", "output_dir")}
    own["prior"] = {"manifest": settings["prior"]["manifest"]}
    cfg = {"base_type": "other", "base": {"scale": 3.0}, "vp3d": own, "max_steps": 10}
    guidance = threestudio.find("vp3d-rewards")(cfg)
    guidance.do_update_step(0, 5)
    prompts = threestudio.find("vp3d-prompt-processor")({"prompt": PROMPT})()
    found = guidance(RGB, prompts, **BATCH, rgb_as_latents=False)
    assert guidance.base.step == 5 and guidance.progress == 0.5
    torch.testing.assert_close(found["loss_sds"], 3.0 * RGB.mean())
    assert {"grad_norm", "loss_text_image", "loss_image_image"} <= set(found)

    lone = {**own, "image": "", "rewards": {**settings["rewards"], "image_image": {"weight": 0.0}}}
    found = threestudio.find("vp3d-rewards")({**cfg, "vp3d": lone})(RGB, prompts, **BATCH)
    assert "loss_text_image" in found and "loss_image_image" not in found
    with pytest.raises(UserError, match=r"give vp3d\.image"):
        threestudio.find("vp3d-rewards")({**cfg, "vp3d": {**own, "image": ""}})(
            RGB, prompts, **BATCH
        )


def test_mistakes_are_said_when_the_settings_are_read(threestudio: ModuleType) -> None:
    guidance = threestudio.find("vp3d-guidance")
    for settings, expected in (
        ({"optim": {"steps": 3}}, r"vp3d\.optim changes nothing in threestudio"),
        ({"guidance": {"guidance_scal": 3}}, "did you mean 'guidance.guidance_scale'"),
        ({"rewards": {"text_image": {"begin": 2.0}}}, "out of range"),
    ):
        with pytest.raises(UserError, match=expected):
            guidance({"vp3d": settings})
    with pytest.raises(UserError, match="cannot read config file"):
        guidance({"vp3d_file": "nowhere.yaml"})
    prompts = threestudio.find("vp3d-prompt-processor")({"prompt": PROMPT})()
    with pytest.raises(ValueError, match="rendered colours: rgb_as_latents"):
        guidance({})(RGB, prompts, **BATCH, rgb_as_latents=True)
    with pytest.raises(UserError, match="square views"):
        sys.modules[f"{NAME}.views"].as_views(
            RGB[:, :8], BATCH["elevation"], BATCH["azimuth"], BATCH["camera_distances"]
        )


def test_the_yaml_fits_the_guidance_and_weighs_all_it_returns(threestudio: ModuleType) -> None:
    tree = yaml.safe_load(YAML.read_text(encoding="utf-8"))
    system = tree["system"]
    assert {system["guidance_type"], system["prompt_processor_type"]} <= NAMES
    guidance = {**system["guidance"], "max_steps": tree["trainer"]["max_steps"]}
    guidance["vp3d"]["seed"] = tree["seed"]
    made = threestudio.find(system["guidance_type"])(guidance)
    assert made.settings.prior.path == "sd15" and made.settings.guidance.normalize == "sum"
    losses = ("sds", "text_image", "image_image", "aesthetic")
    assert {f"lambda_{name}" for name in losses} <= set(system["loss"])
    assert system["background"]["color"] == [made.settings.visual_prompt.ground] * 3
    assert tree["data"]["width"] == tree["data"]["height"]
    threestudio.find(system["prompt_processor_type"])(system["prompt_processor"])


def test_our_launcher_understands_the_yaml_too() -> None:
    config = load_config(None, [YAML], ["system.prompt_processor.prompt=a tree", "backend=auto"])
    assert (config.prompt, config.optim.steps, config.prior.path) == ("a tree", 10000, "sd15")
    assert (config.guidance.normalize, config.guidance.guidance_scale, config.guidance.weight) == (
        "sum",
        100.0,
        1.0,
    )
    assert (config.rewards.text_image.weight, config.rewards.image_image.weight) == (160.0, 1600.0)
    assert config.loss.sparsity.start == 1.0 and (
        config.loss.orientation.end,
        config.loss.orientation.to,
    ) == (1000.0, 0.5)
    assert not any("system.guidance" in note for note in read_layers([YAML], []).notes)
    with pytest.raises(
        UserError, match=r"'system.guidance.vp3d': .* is not a group of VP3D's keys"
    ):
        load_config(None, [YAML], ["system.guidance.vp3d=5"])


def test_the_guard_tells_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package, one whose own imports fail, and one that works."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in (
        ("studio_a", "import package_that_is_nowhere\n"),
        ("studio_b", "raise OSError('no CUDA\\nhere')\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    (tmp_path / "studio_c.py").write_text("")
    assert import_or_reason("studio_none")[1].startswith(
        "studio_none cannot be imported: ModuleNotFoundError"
    )
    assert "package_that_is_nowhere" in import_or_reason("studio_a")[1]
    assert import_or_reason("studio_b") == (
        None,
        "studio_b cannot be imported: OSError: no CUDA here",
    )
    module, reason = import_or_reason("studio_c")
    assert module is not None and reason == ""


def test_in_the_real_threestudio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own register, find, load_config and BaseObject; no model is loaded."""
    real, reason = import_or_reason("threestudio")
    if real is None:
        pytest.skip(reason)
    monkeypatch.chdir(tmp_path)  # its load_config makes folders
    link = tmp_path / "custom" / NAME
    link.parent.mkdir()
    link.symlink_to(FOLDER)
    load_folder(link)
    config = importlib.import_module("threestudio.utils.config")
    base = importlib.import_module("threestudio.utils.base")
    words = ["system.prompt_processor.prompt=a red mushroom", "trainer.max_steps=100"]
    cfg = config.load_config(str(link / "configs" / "vp3d.yaml"), cli_args=words, n_gpus=1)
    system = cfg.system
    parts = [system[f"{part}_type"] for part in ("geometry", "material", "background", "renderer")]
    assert all(real.find(name) for name in (cfg.data_type, cfg.system_type, *parts))
    assert all(issubclass(real.find(name), base.BaseObject) for name in NAMES)
    prompts = real.find(system.prompt_processor_type)(system.prompt_processor)()
    guidance = real.find(system.guidance_type)(system.guidance)
    guidance.do_update_step(0, 25)
    assert prompts.prompt == "a red mushroom" and guidance.progress == 0.25
    assert guidance.settings.guidance.normalize == "sum" and guidance.settings.prior.path == "sd15"


def set_key(key: str, value: object) -> dict[str, object]:
    """`{"a": {"b": value}}` of "a.b"."""
    tree: object = value
    for name in reversed(key.split(".")):
        tree = {name: tree}
    assert isinstance(tree, dict)
    return tree


UNUSED = {"guidance.estimate_every": 7, "guidance.weight": 99, "optim": {"steps": 3}, "field": {}}
UNUSED_BY_REWARDS = {
    "guidance.guidance_scale": 5,
    "guidance.lam": 0,
    "guidance.estimate_every": 7,
    "prior.path": "sd15",
    "prior.dtype": "float16",
    "prior.vae": "taesd",
    "visual_prompt.candidates": 3,
    "visual_prompt.steps": 5,
    "visual_prompt.prior.path": "sdxl",
    "negative_prompt": "blurry",
}


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("vp3d-guidance", *item) for item in UNUSED.items()]
    + [("vp3d-rewards", *item) for item in UNUSED_BY_REWARDS.items()],
)
def test_settings_of_no_effect_are_refused(
    threestudio: ModuleType, name: str, key: str, value: object
) -> None:
    threestudio.register("nothing")(type("Nothing", (), {"__init__": lambda self, cfg: None}))
    base = {"base_type": "nothing"} if name == "vp3d-rewards" else {}
    group = key if isinstance(value, dict) else key.split(".")[0]
    with pytest.raises(UserError, match=rf"vp3d\.{group}.* changes nothing in threestudio"):
        threestudio.find(name)({"vp3d": set_key(key, value), **base})


def test_keys_of_a_recipe_and_keys_at_their_values_are_no_mistake(threestudio: ModuleType) -> None:
    """A recipe is for VP3D's own runs too; a whole group may be given as it is."""
    guidance = threestudio.find("vp3d-guidance")
    whole = dataclasses.asdict(Config().guidance)
    assert guidance({"vp3d": {"guidance": whole}}).settings == guidance({}).settings
    sds = guidance({"vp3d_file": "configs/sds.yaml"}).settings
    assert sds.guidance.estimate_every == 1
    again = guidance({"vp3d_file": "configs/sds.yaml", "vp3d": {"guidance": {"estimate_every": 1}}})
    assert again.settings == sds
