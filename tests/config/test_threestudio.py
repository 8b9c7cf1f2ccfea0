"""YAML of threestudio as `--config`: what is read, converted, named as ignored, and refused."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from pathlib import Path

import pytest
import yaml

from vp3d.cli import main
from vp3d.cli.arguments import read_config
from vp3d.config.loader import load_config
from vp3d.config.schema import Config, Schedule
from vp3d.config.threestudio import DEFAULTS, Layers, read_layers
from vp3d.config.threestudio_file import read_schedule
from vp3d.errors import UserError

EXPERIMENT = """
name: small
tag: "${rmspace:${system.prompt_processor.prompt},_}"
seed: 7
data_type: random-camera-datamodule
data:
  batch_size: 2
  width: 48
  height: 48
  camera_distance_range: [1.5, 2.0]
  fovy_range: [40, 70]
  elevation_range: [-10, 45]
  light_sample_strategy: dreamfusion
system_type: dreamfusion-system
system:
  geometry_type: implicit-volume
  geometry:
    radius: 2.
    pos_encoding_config: {otype: HashGrid, n_levels: 16}
  renderer: {radius: "${system.geometry.radius}"}
  prompt_processor:
    prompt: ???
    negative_prompt: grey
  guidance_type: stable-diffusion-guidance
  guidance:
    pretrained_model_name_or_path: someone/some-model
    guidance_scale: 30.
    weighting_strategy: uniform
    min_step_percent: 0.05
    max_step_percent: [100, 0.9, 0.5, 300]
  loss:
    lambda_sds: 2.
    lambda_orient: [0, 10., 1000., 500]
    lambda_sparsity: "${system.loss.lambda_sds}"
    lambda_opaque: 0.
    lambda_z_variance: 1.
  optimizer: {name: Adam}
trainer: {max_steps: 1000, precision: 16-mixed}
"""
LATENTS = 4 * 64 * 64


def written(folder: Path, text: str = EXPERIMENT, name: str = "theirs.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, *words: str) -> tuple[Config, list[str]]:
    files, overrides = [written(folder)], list(words)
    return load_config(None, files, overrides), read_layers(files, overrides).notes


def test_common_keys_are_read_and_converted(tmp_path: Path) -> None:
    config, _ = read(tmp_path)
    assert (config.seed, config.prompt, config.negative_prompt) == (7, "", "grey")
    assert (config.optim.steps, config.optim.views, config.render.resolution) == (1000, 2, 48)
    assert (config.camera.elevation_min_deg, config.camera.elevation_max_deg) == (-10.0, 45.0)
    guidance = config.guidance
    assert (guidance.guidance_scale, guidance.weighting, guidance.weight) == (31.0, "uniform", 2.0)
    assert guidance.t_min == Schedule(0.05, 0.05) and guidance.t_max == Schedule(0.9, 0.5, 0.1, 0.3)
    assert config.loss.orientation == Schedule(10 / LATENTS, 1000 / LATENTS, 0.0, 0.5)
    assert config.loss.sparsity == Schedule(
        2 / LATENTS, 2 / LATENTS
    ) and config.loss.opacity == Schedule(0.0, 0.0)
    assert config.prior == Config().prior and config.rewards == Config().rewards


def test_a_camera_that_steps_back_keeps_the_size_of_the_object(tmp_path: Path) -> None:
    camera = read(tmp_path)[0].camera
    assert camera.distance == 1.8
    seen = camera.distance * math.tan(math.radians(camera.fov_deg) / 2)
    assert seen == pytest.approx(1.75 * math.tan(math.radians(55.0) / 2))
    far = read(tmp_path, "data.camera_distance_range=[3, 4]")[0].camera
    assert (far.distance, far.fov_deg) == (3.5, pytest.approx(55.0))


def test_every_key_that_is_not_read_is_named_in_one_line_a_group(tmp_path: Path) -> None:
    lines = dict(
        note.removeprefix("theirs.yaml (threestudio), ").split(": ", 1)
        for note in read(tmp_path)[1]
    )
    assert lines["top level"] == "ignored name, tag, data_type"
    assert lines["data"].startswith("ignored light_sample_strategy; every camera at distance 1.8")
    assert lines["system"] == "ignored geometry_type"
    assert lines["system.geometry"] == (
        "ignored radius, pos_encoding_config; threestudio's defaults: isosurface_resolution 128"
    )
    assert (
        lines["system.renderer"] == "ignored radius" and lines["system.optimizer"] == "ignored name"
    )
    assert (
        "pretrained_model_name_or_path (someone/some-model: see prior.path"
        in lines["system.guidance"]
    )
    assert "guidance_scale 30 is 31 here" in lines["system.guidance"]
    assert lines["system.loss"].startswith(
        "ignored lambda_z_variance; lambda_orient, lambda_sparsity, lambda_opaque divided by"
    )
    assert lines["trainer"] == "ignored precision" and "system.prompt_processor" not in lines


def test_words_with_their_keys_change_their_file(tmp_path: Path) -> None:
    words = [
        "system.prompt_processor.prompt=a dog: sitting",
        "trainer.max_steps=500",
        "system.loss.lambda_orient=[5, 6, 250]",
    ]
    config, _ = read(tmp_path, *words, "guidance.guidance_scale=4", "optim.views=3")
    assert config.prompt == "a dog: sitting" and config.optim.steps == 500
    assert config.loss.orientation == Schedule(5 / LATENTS, 6 / LATENTS, 0.0, 0.5)
    assert (config.guidance.guidance_scale, config.optim.views) == (4.0, 3)
    with pytest.raises(UserError, match="unknown config key 'system.prompt_processor.prompt'"):
        load_config(None, [], ["system.prompt_processor.prompt=a dog"])


def test_files_are_layered_in_order_ours_and_theirs(tmp_path: Path) -> None:
    ours = written(tmp_path, "optim: {steps: 5, views: 9}\nfield: {levels: 3}\n", "ours.yaml")
    before, after = (
        load_config(None, files, [])
        for files in ([ours, written(tmp_path)], [written(tmp_path), ours])
    )
    assert (before.optim.steps, before.optim.views, before.field.levels) == (1000, 2, 3)
    assert (after.optim.steps, after.optim.views, after.field.levels) == (5, 9, 3)


def test_perp_neg_has_their_scale_unchanged_and_debiasing_its_model(tmp_path: Path) -> None:
    place = "system.prompt_processor"
    guidance = read(tmp_path, f"{place}.use_perp_neg=true", f"{place}.use_prompt_debiasing=true")[
        0
    ].guidance
    assert (guidance.perp_neg, guidance.guidance_scale, guidance.debias) == (1.0, 30.0, "bert-base")


def test_what_a_run_of_ours_cannot_say_is_named(tmp_path: Path) -> None:
    words = [
        "data.width=[64, 128]",
        "data.height=[64, 128]",
        "data.batch_size=[8, 4]",
        "data.elevation_range=[-10, 90]",
    ]
    words += [
        "system.loss.lambda_sds=[0, 1., 2., 100]",
        "system.loss.lambda_sparsity=[0, 1, 5, 10, 2, 20]",
    ]
    words += ["system.guidance.weighting_strategy=fantasia3d"]
    config, notes = read(tmp_path, *words)
    notes_text = "\n".join(notes)
    assert config.render.resolution == 64 and config.optim.views == Config().optim.views  # ours
    assert config.camera.elevation_max_deg == 89.0 and "limited to -10 to 89 degrees" in notes_text
    assert (
        config.guidance.weight == 1.0
        and "lambda_sds (a schedule, but a number in VP3D)" in notes_text
    )
    assert (
        config.loss.sparsity == Config().loss.sparsity
        and "[0, 1, 5, 10, 2, 20]: more than one slope" in notes_text
    )
    assert config.guidance.weighting == "sigma2" and "weighting_strategy" in notes_text
    assert "ignored batch_size, width, height, light_sample_strategy;" in notes_text
    config, notes = read(tmp_path, "system.guidance_type=stable-diffusion-vsd-guidance")
    notes_text = "\n".join(notes)
    assert config.guidance.guidance_scale == Config().guidance.guidance_scale
    assert (
        "guidance_type stable-diffusion-vsd-guidance is not known" in notes_text
        and "guidance_scale, weighting_strategy" in notes_text
    )


def theirs_at(value: list[float], step: int) -> float:
    """threestudio's rule for a list of four, in steps."""
    first, start, end, last = value
    return start + (end - start) * max(min(1.0, (step - first) / (last - first)), 0.0)


@pytest.mark.parametrize(
    "value", [[0, 10.0, 1000.0, 50], [20, 0.98, 0.5, 21], [30, 1.0, 4.0, 170], [10, 3, 3, 40]]
)
def test_a_schedule_has_their_value_at_every_step(value: list[float]) -> None:
    found = read_schedule(value, 100, "k")
    assert not isinstance(found, str)
    ours = Schedule(**found) if isinstance(found, dict) else Schedule.constant(found)
    for step in range(100):
        assert ours.at(step / 100) == pytest.approx(theirs_at(value, step))


def test_schedules_short_long_and_late() -> None:
    assert read_schedule([1.0, 2.0, 50], 100, "k") == {
        "start": 1.0,
        "end": 2.0,
        "from_": 0.0,
        "to": 0.5,
    }
    assert read_schedule([0, 1, 1, 20, 3, 40, 3, 60], 100, "k") == {
        "start": 1.0,
        "end": 3.0,
        "from_": 0.2,
        "to": 0.4,
    }
    assert read_schedule([200, 1.0, 9.0, 300], 100, "k") == 1.0
    assert "epochs" in str(read_schedule([0, 1.0, 2.0, 50.0], 100, "k"))
    assert "max_steps" in str(read_schedule([0, 1.0, 2.0, 50], None, "k"))


MISTAKES = [
    (
        "system.guidance.guidance_scale=strong",
        "'system.guidance.guidance_scale': 'strong' is not a number",
    ),
    ("system.guidance.guidance_scale=5000", "'guidance.guidance_scale': 5001.0 is out of range"),
    ("system.loss.lambda_orient=[1, 2]", "is not a number or [start_step, start, end, end_step]"),
    ("system.loss.lambda_orient=[0, a, 2, 3]", "is not a number or"),
    ("system.loss.lambda_orient=[9, 1, 2, 3]", "do not increase"),
    ("system.loss.lambda_sparsity=-1", "'loss.sparsity.start'"),
    ("system.loss=5", "'system.loss' is '5', not a group"),
    ("system.guidance.max_step_percent=0.01", "above 'guidance.t_max'"),
    ("data.elevation_range=[45, -10]", "is not a range [low, high]"),
    ("data.camera_distance_range=[1]", "is not a range [low, high]"),
    ("data.batch_size=two", "'data.batch_size': 'two' is not a whole number"),
    ("trainer.max_steps=-1", "'optim.steps'"),
    ("trainer.max_steps=${trainer.max_steps}", "refers to itself"),
    ("data.batch_size=${idiv:8,4}", "'data.batch_size' is ${idiv:8,4}; only complete references"),
    ("system.prompt_processor.prompt=lib:dog", "write the prompt out"),
    ("system.refinement=true", "give the file of the coarse stage"),
    ("system_type=x", "unknown config key 'system_type'"),
]


@pytest.mark.parametrize(("word", "expected"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, expected: str
) -> None:
    assert main.main(["a red sphere", "--config", str(written(tmp_path)), word]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and expected in error


def test_other_systems_are_refused_and_an_empty_prompt_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, expected in (
        (
            EXPERIMENT.replace("dreamfusion-system", "zero123-system"),
            "is for threestudio's zero123-system; known are",
        ),
        ("system: {}\n", "no system_type"),
        (EXPERIMENT, "the prompt is empty"),
    ):
        assert main.main(["--config", str(written(tmp_path, text))]) == 2
        assert expected in capsys.readouterr().err.splitlines()[-1]


def test_the_command_line_tells_once_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the first check behind the settings, that of the prompt's characters."""
    assert (
        main.main(["--config", str(written(tmp_path)), "system.prompt_processor.prompt=a\tball"])
        == 2
    )
    lines = capsys.readouterr().err.splitlines()
    assert sum("(threestudio)" in line for line in lines) == len(read(tmp_path)[1])
    assert all(line.startswith("vp3d: theirs.yaml (threestudio), ") for line in lines[:-1])
    assert "control character" in lines[-1]


def test_a_file_is_read_once_so_a_pipe_will_do(capsys: pytest.CaptureFixture[str]) -> None:
    """A shell's `--config <(...)` is a pipe, which is empty when it is read a second time."""
    reader, writer = os.pipe()
    os.write(writer, EXPERIMENT.encode())
    os.close(writer)
    try:
        config = read_config(
            None, [Path(f"/dev/fd/{reader}")], ["system.prompt_processor.prompt=a green car"]
        )
    finally:
        os.close(reader)
    assert (config.prompt, config.optim.steps) == ("a green car", 1000)
    assert (
        "(threestudio), system.geometry: ignored radius, pos_encoding_config"
        in capsys.readouterr().err
    )


def test_doctor_tells_what_it_ignores_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main.main(["doctor", "--config", str(written(tmp_path)), "prior.manifest=/nowhere.json"])
        == 1
    )
    assert "theirs.yaml (threestudio), trainer: ignored precision" in capsys.readouterr().err


def test_the_real_files_are_read() -> None:
    """In a checkout on PYTHONPATH; the package is not imported, so it needs no CUDA."""
    package = importlib.util.find_spec("threestudio")
    if package is None or package.origin is None:
        pytest.skip("no checkout of threestudio is on PYTHONPATH")
    for name in ("dreamfusion-sd.yaml", "magic3d-coarse-sd.yaml"):
        path = Path(package.origin).parents[1] / "configs" / name
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        found = read_layers([path], [])
        assert isinstance(found, Layers) and found.notes
        config = load_config(None, [path], [])
        assert config.guidance.guidance_scale == tree["system"]["guidance"]["guidance_scale"] + 1
        assert config.optim.steps == tree["trainer"]["max_steps"]
        assert config.camera.elevation_min_deg == tree["data"]["elevation_range"][0]


def bare(folder: Path, *lines: str) -> tuple[Config, str]:
    """A file of threestudio with these lines and no others, as a config and its notes."""
    path = written(folder, "system_type: dreamfusion-system\n" + "\n".join(lines) + "\n")
    return load_config(None, [path]), "\n".join(read_layers([path], []).notes)


@pytest.mark.parametrize(
    ("kind", "scale"), [("stable-diffusion-guidance", 100.0), ("deep-floyd-guidance", 20.0)]
)
def test_guidance_that_is_left_out_has_their_defaults(
    tmp_path: Path, kind: str, scale: float
) -> None:
    config, notes = bare(tmp_path, f"system: {{guidance_type: {kind}}}")
    guidance = config.guidance
    assert (guidance.guidance_scale, guidance.weighting) == (scale + 1.0, "sigma2")
    assert (guidance.t_min, guidance.t_max) == (Schedule(0.02, 0.02), Schedule(0.98, 0.98))
    assert f"threestudio's defaults: guidance_scale {scale}" in notes
    assert f"guidance_scale {scale:g} is {scale + 1:g} here" in notes
    perp = f"system: {{guidance_type: {kind}, prompt_processor: {{use_perp_neg: true}}}}"
    assert bare(tmp_path, perp)[0].guidance.guidance_scale == scale


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("guidance_scale: 7", "guidance_scale", 8.0),
        ("weighting_strategy: uniform", "weighting", "uniform"),
        ("min_step_percent: 0.1", "t_min", Schedule(0.1, 0.1)),
        ("max_step_percent: 0.5", "t_max", Schedule(0.5, 0.5)),
    ],
)
def test_a_key_that_is_given_keeps_its_value_and_no_note(
    tmp_path: Path, line: str, key: str, value: object
) -> None:
    system = f"system: {{guidance_type: stable-diffusion-guidance, guidance: {{{line}}}}}"
    config, notes = bare(tmp_path, system)
    assert getattr(config.guidance, key) == value
    defaults = notes.split("threestudio's defaults: ")[1].split(";")[0]
    assert line.split(":")[0] not in defaults and defaults.count(",") == 2


@pytest.mark.parametrize(
    "lines", [["data_type: random-camera-datamodule"], ["data: {rays_d_normalize: true}"]]
)
def test_cameras_that_are_left_out_have_their_defaults(tmp_path: Path, lines: list[str]) -> None:
    config, notes = bare(tmp_path, "system: {}", *lines)
    camera = config.camera
    assert (config.render.resolution, config.optim.views) == (64, 1)
    assert (camera.elevation_min_deg, camera.elevation_max_deg) == (-10.0, 89.0)
    seen = camera.distance * math.tan(math.radians(camera.fov_deg) / 2)
    assert camera.distance == 1.8
    assert seen == pytest.approx(1.25 * math.tan(math.radians(55.0) / 2))
    assert "camera_distance_range [1, 1.5]" in notes and "elevation_range [-10, 90]" in notes


def test_a_file_without_data_or_guidance_leaves_ours(tmp_path: Path) -> None:
    config, notes = bare(tmp_path, "system: {prompt_processor: {prompt: a red cube}}")
    assert (config.camera, config.guidance) == (Config().camera, Config().guidance)
    assert notes == ""
    for data in ("data:", "data: {}", "data_type: co3d-datamodule"):
        assert bare(tmp_path, "system: {}", data)[0].camera == Config().camera


@pytest.mark.parametrize("kind", ["implicit-volume", "volume-grid", "implicit-sdf"])
def test_the_grid_of_the_mesh_is_theirs(tmp_path: Path, kind: str) -> None:
    assert bare(tmp_path, f"system: {{geometry_type: {kind}}}")[0].export.grid == 128
    given = f"system: {{geometry_type: {kind}, geometry: {{isosurface_resolution: 64}}}}"
    assert bare(tmp_path, given)[0].export.grid == 64


def test_a_missing_value_of_theirs_is_no_default(tmp_path: Path) -> None:
    """`???` must be set by the user in threestudio; here it is as if the key were left out."""
    guidance = "guidance: {guidance_scale: '???'}"
    system = f"system: {{guidance_type: stable-diffusion-guidance, {guidance}}}"
    assert bare(tmp_path, system)[0].guidance.guidance_scale == 101.0


def test_the_defaults_are_those_of_the_real_package() -> None:
    """Of a checkout on PYTHONPATH, read as text: every default stands in its class."""
    package = importlib.util.find_spec("threestudio")
    if package is None or package.origin is None:
        pytest.skip("no checkout of threestudio is on PYTHONPATH")
    root = Path(package.origin).parent
    files = {
        "stable-diffusion-guidance": "models/guidance/stable_diffusion_guidance.py",
        "deep-floyd-guidance": "models/guidance/deep_floyd_guidance.py",
        "random-camera-datamodule": "data/uncond.py",
        "implicit-volume": "models/geometry/base.py",
        "volume-grid": "models/geometry/base.py",
        "implicit-sdf": "models/geometry/base.py",
    }
    for (_, kind), defaults in DEFAULTS.items():
        text = "".join((root / files[kind]).read_text(encoding="utf-8").split())
        for key, value in defaults.items():
            shown = str(value).replace("[", "(").replace("]", ")").replace(" ", "")
            name = key.rsplit(".", 1)[1]
            found = re.search(rf"{name}:[\w\[\],]+=(\([^)]*\)|[\w.\"]+)", text)
            assert found and found[1].replace('"', "").replace(",)", ")").startswith(shown), key
