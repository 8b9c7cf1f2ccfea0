"""The container: what its build copies is there, and the script that it runs refuses a wrong call.

`make container-env` runs the script in full; it needs the package index.
"""

from __future__ import annotations

import fnmatch
import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
SCRIPT = ROOT / "docker" / "install.sh"


def test_all_that_the_script_copies_exists_and_is_in_the_build_context() -> None:
    names = re.search(r"^for name in (.+); do$", SCRIPT.read_text(), re.MULTILINE)
    assert names is not None
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"]
    needed = [*names[1].split(), "docker/install.sh", "requirements.txt", "requirements-serve.txt"]
    for name in needed:
        assert (ROOT / name).exists(), name
        assert any(fnmatch.fnmatch(name, pattern) for pattern in kept), name
    assert "vp3d" in kept and "tests" not in kept


def test_both_targets_share_a_stage_without_rights() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert {("base", "cpu"), ("base", "cuda")} < set(stages)
    shared = DOCKERFILE.split(" AS base")[1].split("\nFROM ")[0]
    for line in ("USER 10001", 'VOLUME ["/data", "/models"]', "HEALTHCHECK", "STOPSIGNAL SIGTERM"):
        assert f"\n{line}" in shared
    for target in ("cpu", "cuda"):
        assert f"RUN /source/docker/install.sh {target} /opt/vp3d" in DOCKERFILE


def test_a_service_on_all_addresses_refuses_to_start_without_a_token() -> None:
    from vp3d.errors import UserError
    from vp3d.serve.server import check_address

    assert '"--host", "0.0.0.0"' in DOCKERFILE
    try:
        check_address("0.0.0.0", "")
    except UserError as error:
        assert "VP3D_TOKEN" in str(error)
    else:
        raise AssertionError("it would start")


def test_the_script_says_what_it_needs() -> None:
    for words in ([], ["rocm"]):
        done = subprocess.run(["sh", str(SCRIPT), *words], capture_output=True, text=True)
        assert done.returncode == 2 and "cpu|cuda" in done.stderr


def test_the_cluster_examples_call_the_verb_with_options_that_exist() -> None:
    from vp3d.cli.main import build_parser

    script = (ROOT / "examples" / "cluster" / "slurm_array.sh").read_text()
    job = yaml.safe_load((ROOT / "examples" / "cluster" / "skypilot.yaml").read_text())
    for text in (script, job["run"]):
        command = text.replace("\\\n", "").split("vp3d batch")[1].split("\n")[0]
        command = re.sub(r"\$SLURM_ARRAY_TASK_ID/\$SLURM_ARRAY_TASK_COUNT|\$SHARD", "0/4", command)
        words = command.replace('"$@"', "").replace("$PRESET", "draft").replace('"', "").split()
        arguments = build_parser().parse_args(["batch", *words])
        assert arguments.shard == "0/4" and len(arguments.words) == 1
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
